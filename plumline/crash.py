"""Named points at which a test may kill the process: PLUMLINE_CRASH_AT=<stage>:<point>[:n].

The kill is SIGKILL to ourselves, so no `finally`, no atexit and no buffer flush softens it.
"""

import os
import signal

from plumline.settings import get_settings

_passed: dict[str, int] = {}


def crash_point(stage: str, point: str) -> None:
    """Die here if the environment says so, at the n-th passing of `<stage>:<point>` (n counts from 1)."""
    wanted = get_settings().crash_at
    if not wanted:
        return
    name = f"{stage}:{point}"
    parts = wanted.split(":")
    if ":".join(parts[:2]) != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == (int(parts[2]) if len(parts) > 2 else 1):
        os.kill(os.getpid(), signal.SIGKILL)
