"""A run that is started again and again gives up after a few times. The restarting is `flows/clock/schedule.py`'s."""

from plumline.errors import PlumlineError

MAX_STARTS = 3


def give_up_after_too_many_starts() -> None:
    """Inside a flow: raise PlumlineError when the same run was started more than MAX_STARTS times."""
    from prefect import runtime

    starts = int(runtime.flow_run.run_count or 1)
    if starts > MAX_STARTS:
        raise PlumlineError(
            f"this run was started {starts} times and crashed each time; look at its log, then run by hand"
        )
