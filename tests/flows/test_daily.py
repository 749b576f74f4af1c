"""A day that cannot pass the gate is not made and does not hold up the days after it."""

from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import daily as module
from flows.daily import daily
from flows.steps.foresight import ForeseenError
from flows.steps.produce import Made
from flows.steps.registry import Entry

DAYS = [date(2020, 1, day) for day in (2, 3, 4)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was done, in order: nothing of the last two days is trained, since the gate would turn it down."""
    done: list[tuple[str, str]] = []

    def produce(home: Path, *, as_of: date, base: str, previous: str, kind: str) -> Made:
        if as_of in DAYS[1:]:
            raise ForeseenError(f"as_of {as_of}: no")
        done.append(("produce", as_of.isoformat()))
        return Made(Entry(f"{as_of}-x", "digest", as_of.isoformat(), base, kind, "key"), True, True, ())

    monkeypatch.setattr(module, "produce", produce)
    monkeypatch.setattr(module, "publish_day", lambda _, made: done.append(("publish", made.entry.as_of)))
    monkeypatch.setattr(module, "give_up_after_too_many_starts", lambda: None)
    monkeypatch.setattr(module, "days_to_process", lambda *_: DAYS)
    monkeypatch.setattr(module, "read_pointer", lambda _: SimpleNamespace(release_id="2020-01-01-a"))
    monkeypatch.setattr(module, "_base_of", lambda *_: "2020-01-01-a")
    return done


def test_later_days_are_tried_and_the_refusal_is_raised_in_the_end(
    calls: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ForeseenError, match="as_of 2020-01-03: no"):
        daily.fn(str(tmp_path), raise_refusal=False)
    assert calls == [("produce", "2020-01-02"), ("publish", "2020-01-02")]
    assert capsys.readouterr().err == "as_of 2020-01-04: no\n"


def test_days_that_were_not_asked_for_wait(
    calls: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert [made.entry.as_of for made in daily.fn(str(tmp_path), max_days=1)] == ["2020-01-02"]
    assert "2 more landed days wait; plumline daily --as-of 2020-01-04" in capsys.readouterr().err
    with pytest.raises(ForeseenError):
        daily.fn(str(tmp_path), max_days=2)
    assert "1 more landed days wait" in capsys.readouterr().err
