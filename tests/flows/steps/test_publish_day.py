"""What goes online is of what was promoted; a release that was kept out is judged and seen, and changes no answer."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.steps import publish_day as module
from flows.steps.produce import Made
from flows.steps.publish_day import publish_day
from flows.steps.registry import Entry

ENTRY = Entry("2020-01-02-a", "digest", "2020-01-02", "", "bootstrap", "key")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was done, in order."""
    done: list[tuple[str, str]] = []

    def submit(_: str, as_of: str, stop: object) -> SimpleNamespace:
        del stop
        done.append(("features", as_of))
        return SimpleNamespace(result=lambda: None)

    monkeypatch.setattr(module, "push_features", SimpleNamespace(submit=submit))
    monkeypatch.setattr(module, "build_bento_of", lambda _, release: done.append(("bento", release)))
    monkeypatch.setattr(module, "monitor_day", lambda _, release, day: done.append(("monitor", day)))
    return done


@pytest.mark.parametrize(("promoted", "wanted"), [(True, ["features", "bento", "monitor"]), (False, ["monitor"])])
def test_features_and_bento_are_the_champion_s(
    calls: list[tuple[str, str]], tmp_path: Path, promoted: bool, wanted: list[str]
) -> None:
    """The case late.csv: after a refused bootstrap a user of its day alone is a new one."""
    publish_day(tmp_path, Made(ENTRY, promoted, True, ()))
    assert [name for name, _ in calls] == wanted


def test_what_artifacts_no_longer_hold_is_not_pushed(tmp_path: Path) -> None:
    module.push_features.fn(str(tmp_path), "2020-01-02")
    assert not (tmp_path / "data").exists()
