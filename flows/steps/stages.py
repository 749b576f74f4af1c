"""dvc.yaml → Prefect tasks: each stage runs as one task in a process of its own, two of them at a time.

Whether a stage has anything to do is the stage's own knowledge (the key in its manifest), so a rerun is cheap and there
is no second cache to disagree. A stage that was killed by a signal is tried again; one that failed or refused is not.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prefect import task
from prefect.futures import PrefectFuture

from flows.steps.graph import Stage, needs
from plumline.errors import PlumlineError, RefusedError
from plumline.settings import child_environment, get_settings
from plumline.stage import CODE_ROOT, die_with_parent, num_cores

PARALLEL = ("cpt", "sft")
"""Stages that know how to share their work among processes."""
LONG = (*PARALLEL, "rivals")
"""Stages that take minutes: none begins before all is there that one of them needs, and all has been looked at that
might stop a run."""
STOP_S = 0.3
"""Seconds after which a stage that waits sees that its flow was stopped, and a flow that waits sees a signal."""


class StageFailed(PlumlineError):  # noqa: N818  a state, named as Prefect names it
    """A stage ended with exit code 1."""


class StageKilled(PlumlineError):  # noqa: N818
    """A stage was ended by a signal: out of memory, a machine going down, kill -9. Worth another try."""


@dataclass(frozen=True)
class Finished:
    """A stage that is done. seconds: wall time of this run. skipped: its key was finished already."""

    stage: str
    seconds: float
    skipped: bool


def _was_killed(task: Any, run: Any, state: Any) -> bool:
    try:
        state.result()
    except StageKilled:
        return True
    except Exception:
        return False
    return False


@task(
    task_run_name="{name}", retries=2, retry_delay_seconds=[2, 20], retry_condition_fn=_was_killed, persist_result=False
)
def run_stage(name: str, argv: list[str], home: str, stop: threading.Event) -> Finished:
    """Run one stage. Raises RefusedError (exit 2), StageFailed (exit 1) or StageKilled with the stage's last word.

    stop: once set, the stage is ended and not tried again.
    """
    return execute(name, argv, Path(home), stop)


def execute(name: str, argv: list[str], home: Path, stop: threading.Event) -> Finished:
    """`run_stage` without Prefect."""
    if stop.is_set():
        raise StageFailed(f"{name}: stopped with its flow")
    began = time.perf_counter()
    log_path = home / "artifacts" / "logs" / f"{name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    python_path = os.pathsep.join(filter(None, [str(CODE_ROOT), os.environ.get("PYTHONPATH", "")]))
    interval = "0.2" if sys.stderr.isatty() else "10"  # progress bars in a log file, but not ten lines a second
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            argv,
            cwd=home,
            env=child_environment(PYTHONPATH=python_path, PYTHONUNBUFFERED="1", TQDM_MININTERVAL=interval),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        assert process.stdout is not None
        tail = _Tee(process.stdout, log)
        try:
            code = _wait(process, get_settings().stage_timeout_s, stop)
        except subprocess.TimeoutExpired:
            raise StageFailed(
                f"{name}: not done after {get_settings().stage_timeout_s} s (PLUMLINE_STAGE_TIMEOUT_S); see {log_path}"
            ) from None
        finally:
            process.kill()
            process.wait()
            tail.join()
    seconds = time.perf_counter() - began
    last = tail.last_line()
    if stop.is_set() and code != 0:
        raise StageFailed(f"{name}: stopped with its flow; see {log_path}")
    if code < 0:
        raise StageKilled(f"{name}: ended by {signal.Signals(-code).name}; see {log_path}")
    if code == 2:
        raise RefusedError(last or f"{name}: refused; see {log_path}")
    if code != 0:
        raise StageFailed(f"{last or name}; see {log_path}")
    return Finished(name, seconds, skipped="already done" in last)


def _wait(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> int:
    """The exit code of a process; it is killed at `stop`. Raises TimeoutExpired after so many seconds.

    A signal reaches the flow's first thread alone, and this runs in another: it has to look.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return process.wait(timeout=min(STOP_S, max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()
            elif time.monotonic() >= deadline:
                raise


def run_stages(
    graph: dict[str, Stage],
    names: list[str],
    values: dict[str, str],
    home: Path,
    after: Mapping[str, Callable[[], None]] | None = None,
) -> list[Finished]:
    """Run stages inside a flow, one task each, every one when all of `names` that it needs are finished.

    A process takes half of the cores (PLUMLINE_THREADS), so two run at a time; of those that could, the one that most
    others wait for. after: stage → what is called when it is finished. Once a stage or one of these calls has failed,
    nothing begins any more; what is at work is finished, for the next run to find, and the first error is raised.
    Ctrl-C or SIGTERM to the flow ends what is at work.
    """
    after, limit = after or {}, min(2, num_cores())
    all_needs = needs(graph)
    waiting = {name: all_needs[name] & set(names) for name in names}
    long = waiting.keys() & set(LONG)
    for name in long:
        waiting[name] |= ((set[str]().union(*(all_needs[one] for one in long)) - long) | after.keys()) & set(names)
    order = sorted(names, key=lambda name: -_num_behind(name, waiting))
    commands = {name: launched(name, graph[name].argv(sys.executable, values)) for name in names}
    at_work: dict[PrefectFuture[Finished], str] = {}
    ended: queue.SimpleQueue[PrefectFuture[Finished]] = queue.SimpleQueue()
    finished: dict[str, Finished] = {}
    error: Exception | None = None
    stop = threading.Event()
    try:
        while waiting or at_work:
            ready = [name for name in order if name in waiting and waiting[name] <= finished.keys()]
            for name in ready[: limit - len(at_work)] if error is None else ():
                del waiting[name]
                future = run_stage.submit(name, commands[name], str(home), stop)
                at_work[future] = name
                future.add_done_callback(ended.put)
            if not at_work:
                break
            future = _first(ended)
            name = at_work.pop(future)
            try:
                finished[name] = future.result()
                if name in after:
                    after[name]()
            except Exception as failure:
                error = error or failure
    finally:  # an interruption has left stages at work; the right to write artifacts/ is given up when they are gone
        stop.set()
        for future in at_work:
            future.wait()
    if error is not None:
        raise error
    return [finished[name] for name in names]


def _first(ended: queue.SimpleQueue[PrefectFuture[Finished]]) -> PrefectFuture[Finished]:
    """The first task that ends. It waits in bits: a signal does not always end a wait of Python's, and is then acted
    upon when the wait is over, which may be hours later."""
    while True:
        with suppress(queue.Empty):
            return ended.get(timeout=STOP_S)


def _num_behind(name: str, needed: Mapping[str, set[str]]) -> int:
    """How many stages wait for one, directly or not."""
    behind = {name}
    while more := {other for other, these in needed.items() if these & behind} - behind:
        behind |= more
    return len(behind) - 1


def launched(name: str, argv: list[str]) -> list[str]:
    """The command of a stage that trains, in as many processes as the settings say; any other as it is.

    argv: interpreter, -m, module, arguments.
    """
    processes = get_settings().processes
    if processes == 1 or name not in PARALLEL:
        return argv
    return [*argv[:2], "models.training.processes", str(processes), *argv[2:]]


class _Tee(threading.Thread):
    """Copy a stage's output to our stderr and its log as it comes (progress bars included); remember its end."""

    def __init__(self, source: IO[bytes], log: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._source, self._log, self._tail = source, log, b""
        self.start()

    def run(self) -> None:
        for block in iter(lambda: self._source.read1(4096), b""):  # type: ignore[attr-defined]
            self._log.write(block)
            sys.stderr.write(block.decode(errors="replace"))
            sys.stderr.flush()
            self._tail = (self._tail + block)[-8192:]
        self._source.close()

    def last_line(self) -> str:
        lines = [line for line in self._tail.decode(errors="replace").replace("\r", "\n").split("\n") if line.strip()]
        return lines[-1].strip() if lines else ""
