"""The main job (`make day`): bootstrap, two daily increments, serve and check 200 requests, monitor, one table.

Every part may be run again: what is finished is found finished, and only the serving check is done anew.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from features.intake.options import Options
from flows.clock.run import run_bootstrap, run_daily
from flows.clock.server import prefect_server
from flows.commands.traffic_check import TrafficCheck, check_service
from flows.steps.calendar import default_as_of, landed_days
from flows.steps.graph import read_params
from flows.steps.landing import init_home
from flows.steps.registry import Registry
from plumline.errors import PlumlineError, RefusedError
from plumline.stage import CODE_ROOT, hash_seed, load_params, say
from serving.deploy import serve_process
from serving.pointers import read_pointer

if TYPE_CHECKING:
    from flows.commands.day_table import DayTable

SAMPLE = CODE_ROOT / "examples" / "online_retail"
NUM_REQUESTS = 200
NUM_DAYS = 2


def main_job(home: Path) -> "DayTable":
    """Do everything and return the table. With nothing landed it takes the sample."""
    if not landed_days(home):
        say("nothing has landed: taking the sample, Online Retail II (UCI, CC BY 4.0)")
        files = {noun: (Options(files=(str(SAMPLE / f"{noun}.parquet"),)),) for noun in ("items", "events", "users")}
        init_home(home, files, recipe="cpu_tiny", as_of=read_params(home)["as_of"])
    first = default_as_of(home)
    days = [day for day in landed_days(home) if day > first][: NUM_DAYS + 1]
    if len(days) <= NUM_DAYS:
        raise RefusedError(f"{len(days)} days have landed after {first}; the main job wants {NUM_DAYS + 1}")
    with prefect_server(home):
        with clock_at(_noon_after(first)):
            made = run_bootstrap(home, first.isoformat())
        if read_pointer(home / "releases") is None:
            raise RefusedError(f"the gate refused {made[0].entry.release_id}: {'; '.join(made[0].reasons)}")
        for day in days[:NUM_DAYS]:
            with clock_at(_noon_after(day)):
                run_daily(home, day.isoformat(), None)
        with clock_at(_noon_after(days[NUM_DAYS - 1])):
            traffic = serve_and_check(home)
            report = monitor_served_day(home, _noon_after(days[NUM_DAYS - 1]))
    from features.histories import read_some_users
    from flows.commands.day_table import (
        day_table,  # imports Prefect, which reads its settings once: after the server's are set
    )

    [user] = read_some_users(home / "artifacts" / "histories", 1)
    return day_table(home, first, traffic, report, user)


def champion_folder(home: Path) -> Path:
    """The sealed folder of the champion. Raises RefusedError if there is none."""
    pointer = read_pointer(home / "releases")
    if pointer is None:
        raise RefusedError("no champion yet; run plumline bootstrap first")
    return Registry(home).restore(pointer.release_id)


def serve_and_check(home: Path) -> TrafficCheck:
    """Serve the champion on a free port and check NUM_REQUESTS answers; the service logs the traffic."""
    folder = champion_folder(home)
    say("serving the champion on a free port")
    with serve_process(home) as server:
        found = check_service(server.url, folder, _sample_users(home))
    if found.num_invalid:
        raise PlumlineError(
            f"{found.num_invalid} of {found.num_items} served items are not fit to serve; see {server.log}"
        )
    return found


def monitor_served_day(home: Path, noon: datetime) -> Path:
    """Judge the day the requests fell on, with its traffic. Returns the report's path."""
    from flows.steps.verdicts import read_verdict
    from monitoring.health import MonitorParams
    from monitoring.reports import publish_day

    folder = champion_folder(home)
    return publish_day(
        home,
        folder,
        day=noon.date(),
        now=noon,
        params=load_params(home / read_params(home)["recipe"], "monitor", MonitorParams),
        verdict=read_verdict(home, folder.name),
    ).report


@contextmanager
def clock_at(moment: datetime) -> Iterator[None]:
    """Let the flows and the service live at a moment of the log's own time, while real seconds pass."""
    before = os.environ.get("PLUMLINE_CLOCK_OFFSET_S")
    os.environ["PLUMLINE_CLOCK_OFFSET_S"] = str((moment - datetime.now(UTC)).total_seconds())
    try:
        yield
    finally:
        if before is None:
            del os.environ["PLUMLINE_CLOCK_OFFSET_S"]
        else:
            os.environ["PLUMLINE_CLOCK_OFFSET_S"] = before


def _noon_after(day: date) -> datetime:
    """When, in the log's time, the release of a day is made and serves."""
    return datetime.combine(day + timedelta(days=1), time(12), UTC)


def _sample_users(home: Path) -> list[tuple[str, list[str]]]:
    """NUM_REQUESTS users with a history, the same ones each time."""
    import numpy as np

    from features.histories import read_histories

    table = read_histories(home / "artifacts" / "histories")
    rows = np.random.default_rng(hash_seed("main job", NUM_REQUESTS)).permutation(table.num_rows)[:NUM_REQUESTS]
    picked = table.take(np.sort(rows))
    pairs = zip(picked.column("user_id").to_pylist(), picked.column("item_ids").to_pylist(), strict=True)
    users = [(str(user), list(items)) for user, items in pairs]
    return [users[number % len(users)] for number in range(NUM_REQUESTS)]
