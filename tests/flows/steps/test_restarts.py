"""A run that crashes whenever it is started is started three times, not for ever."""

import pytest

from flows.steps.restarts import give_up_after_too_many_starts
from plumline.errors import PlumlineError


@pytest.mark.parametrize("starts", [1, 3])
def test_a_run_may_start_three_times(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", str(starts))
    give_up_after_too_many_starts()


def test_the_fourth_start_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "4")
    with pytest.raises(PlumlineError, match="started 4 times"):
        give_up_after_too_many_starts()
