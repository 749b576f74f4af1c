"""Which days there are and which still want a release. Days are UTC; a day counts once an event of it has landed."""

from datetime import date
from pathlib import Path

from flows.steps.graph import read_params
from flows.steps.registry import Registry
from flows.steps.unlanding import finish_withdrawal, landing_of
from plumline.errors import InputError, RefusedError
from serving.pointers import read_pointer

_NOTHING_LANDED = "no events have landed; run plumline init --items F --events F (or plumline day for the sample)"
_NO_EVENTS = "no events have landed; land some with plumline land --events F (plumline deliveries says what there is)"


def landed_days(home: Path) -> list[date]:
    """Days with at least one landed event, sorted. What a killed withdrawal left is finished first."""
    finish_withdrawal(home)
    files = (home / "data" / "landing").glob("*/events/day=*.parquet")
    return sorted({date.fromisoformat(path.stem.removeprefix("day=")) for path in files})


def default_as_of(home: Path) -> date:
    """params.yaml's as_of, checked against what has landed."""
    return check_day(home, date.fromisoformat(read_params(home)["as_of"]))


def check_day(home: Path, day: date) -> date:
    """The day itself. Raises RefusedError if nothing landed at all, InputError if nothing landed up to it."""
    days = landed_days(home)
    if not days:
        raise RefusedError(_NO_EVENTS if any(landing_of(home).glob("*/manifest.json")) else _NOTHING_LANDED)
    if day < days[0] or day > days[-1]:
        raise InputError(f"--as-of {day}: events have landed from {days[0]} to {days[-1]}; choose a day in between")
    return day


def newest_as_of(home: Path) -> date:
    """The last day that another landed day follows, so that there is something to score on."""
    days = landed_days(home)
    if not days:
        raise RefusedError(_NO_EVENTS if any(landing_of(home).glob("*/manifest.json")) else _NOTHING_LANDED)
    if len(days) < 2:
        raise RefusedError(
            f"events of one day landed ({days[0]}); a release needs one more to be scored on: plumline land --events F"
        )
    return days[-2]


def days_to_process(home: Path, as_of: date | None) -> list[date]:
    """Landed days after the last release's, up to `as_of` (None: up to `newest_as_of`), oldest first.

    The last release of the lineage that answers: one of another lineage was turned down or rolled back, and its days
    still want a release.
    """
    goal = newest_as_of(home) if as_of is None else check_day(home, as_of)
    registry, pointer = Registry(home), read_pointer(home / "releases")
    entries = registry.lineage(pointer.release_id) if pointer else registry.entries()
    last = max((date.fromisoformat(entry.as_of) for entry in entries), default=date.min)
    return [day for day in landed_days(home) if last < day <= goal]
