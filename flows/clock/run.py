"""Run a flow from the command line: a Prefect server around it, Prefect's own chatter out of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from flows.clock.server import prefect_server
from flows.steps.calendar import check_day, days_to_process, default_as_of, newest_as_of
from plumline.errors import RefusedError
from plumline.stage import say
from serving.pointers import read_pointer

if TYPE_CHECKING:
    from flows.steps.produce import Made


def run_bootstrap(home: Path, as_of: str | None, *, anew: bool = False) -> list["Made"]:
    """`plumline bootstrap`: the release it made or found. anew: also if only the code has changed since."""
    if as_of:  # refuse before a server is started
        check_day(home, date.fromisoformat(as_of))
    else:
        default_as_of(home)
    with prefect_server(home), _quiet():
        from flows.bootstrap import bootstrap

        return [bootstrap(str(home), as_of, anew)]


def run_daily(home: Path, as_of: str | None, max_days: int | None) -> list["Made"]:
    """`plumline daily`: the releases it made, none if no day waits. A gate's no is in them, not raised."""
    if read_pointer(home / "releases") is None:  # refuse before a server is started
        raise RefusedError("no champion to continue from; run plumline bootstrap first")
    if not days_to_process(home, date.fromisoformat(as_of) if as_of else None):
        say("every landed day has its release; nothing to do")
        return []
    with prefect_server(home), _quiet():
        from flows.daily import daily

        return daily(str(home), as_of, max_days, raise_refusal=False)


def run_retrain_sids(home: Path) -> list["Made"]:
    """`plumline retrain-sids`: the release it made or found. A gate's no is in it, not raised."""
    newest_as_of(home)  # refuse before a server is started
    with prefect_server(home), _quiet():
        from flows.retrain_sids import retrain_sids

        return [retrain_sids(str(home), raise_refusal=False)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Prefect's tracebacks of our own, explained errors off the console; the server has them in its log."""
    logger = logging.getLogger("prefect")
    kept = list(logger.handlers)
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in list(logging.getLogger(name).handlers):
            if type(handler).__name__ == "PrefectConsoleHandler":
                logging.getLogger(name).removeHandler(handler)
    try:
        yield
    finally:
        logger.handlers[:] = kept
