"""Who may write into a home's artifacts/ and lake: one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumline.stage import say


@contextmanager
def workspace_lock(home: Path) -> Iterator[None]:
    """Hold the one right to write artifacts/. A second run waits for the first and then finds its work done."""
    path = home / "artifacts" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"another run (process {file.read().strip()}) is at work in {home.resolve()}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
