import os
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.steps import stages
from flows.steps.graph import Stage
from flows.steps.stages import (
    Finished,
    StageFailed,
    StageKilled,
    launched,
    run_stage,
    run_stages,
)
from plumline.errors import InputError, RefusedError
from plumline.settings import get_settings


def python(code):
    return [sys.executable, "-c", code]


def execute(name, argv, home, stop=None):
    return stages.execute(name, argv, home, stop or threading.Event())


def test_a_stage_s_output_is_shown_kept_and_timed(tmp_path, capsys):
    done = execute("toy", python("print('working'); print('toy: already done')"), tmp_path)
    assert done.skipped
    assert done.seconds > 0
    assert "working" in capsys.readouterr().err
    assert "working" in (tmp_path / "artifacts" / "logs" / "toy.log").read_text()


def test_exit_2_is_a_refusal_in_the_stage_s_own_words(tmp_path):
    with pytest.raises(RefusedError, match="toy: too few rows"):
        execute("toy", python("import sys; print('toy: too few rows', file=sys.stderr); sys.exit(2)"), tmp_path)


def test_exit_1_and_a_signal_are_told_apart(tmp_path):
    with pytest.raises(StageFailed, match="boom"):
        execute("toy", python("raise ValueError('boom')"), tmp_path)
    with pytest.raises(StageKilled, match="SIGKILL"):
        execute("toy", python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), tmp_path)


def test_a_stage_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMLINE_STAGE_TIMEOUT_S", "1")
    began = time.monotonic()
    with pytest.raises(StageFailed, match="PLUMLINE_STAGE_TIMEOUT_S"):
        execute("toy", python("import time; time.sleep(60)"), tmp_path)
    assert time.monotonic() - began < 20


def test_a_stage_dies_with_its_flow(tmp_path, root):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = (
        "import sys, threading; from pathlib import Path; from flows.steps.stages import execute; "
        f"execute('toy', [sys.executable, '-c', {child!r}], Path('.'), threading.Event())"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    flow = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    pid = int(flow.stderr.readline())
    flow.kill()
    flow.wait()
    flow.stderr.close()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_training_stages_are_launched_in_as_many_processes_as_told(monkeypatch):
    argv = ["python", "-m", "models.training.sft", "--seed", "1"]
    assert launched("sft", argv) == argv
    monkeypatch.setenv("PLUMLINE_PROCESSES", "2")
    assert launched("sft", argv) == [
        "python",
        "-m",
        "models.training.processes",
        "2",
        "models.training.sft",
        "--seed",
        "1",
    ]
    assert launched("corpus", argv) == argv


class State:
    """How a task ended."""

    def __init__(self, error):
        self.error = error

    def result(self):
        if self.error is not None:
            raise self.error


def test_a_killed_stage_is_tried_twice_again_after_two_and_twenty_seconds():
    assert (run_stage.retries, run_stage.retry_delay_seconds) == (2, [2, 20])
    again = [run_stage.retry_condition_fn(run_stage, None, State(error)) for error in (StageKilled("x"), None)]
    assert again == [True, False]


@pytest.mark.parametrize("error", [StageFailed("x"), RefusedError("x"), OSError("x")])
def test_a_stage_that_failed_by_itself_is_not_tried_again(error):
    assert not run_stage.retry_condition_fn(run_stage, None, State(error))


def test_a_stage_has_six_hours():
    assert get_settings().stage_timeout_s == 6 * 3600


def graph_of(needed):
    """Stages by what they need."""
    return {name: Stage(name, f"python -m {name}", tuple(deps), (name,)) for name, deps in needed.items()}


class Submitted:
    """A future with the words of Prefect's."""

    def __init__(self, future: Future):
        self.result, self.add_done_callback = future.result, lambda call: future.add_done_callback(lambda _: call(self))
        self.wait = lambda: futures.wait([future])


class Ran(list):
    """What happened, in order. seconds, errors: of stages that take longer, and of those that fail. Stands for a task:
    `submit` is all that is used of one."""

    def __init__(self, threads):
        super().__init__()
        self.threads, self.seconds, self.errors = threads, {}, {}

    def submit(self, name, argv, home, stop):
        return Submitted(self.threads.submit(self.stage, name))

    def stage(self, name):
        self.append(f"{name}+")
        time.sleep(self.seconds.get(name, 0.01))
        self.append(f"{name}-")
        if name in self.errors:
            raise self.errors[name]
        return Finished(name, 1.0, False)


@pytest.fixture
def ran(monkeypatch):
    with ThreadPoolExecutor(9) as threads:
        events = Ran(threads)
        monkeypatch.setattr("flows.steps.stages.run_stage", events)
        monkeypatch.setattr("flows.steps.stages.num_cores", lambda: 2)
        yield events


def test_stages_run_two_at_a_time_when_what_they_need_is_there(tmp_path, ran):
    graph = graph_of({"a": "", "long": "a", "b": "a", "c": "b", "d": ["long", "c"], "e": ""})
    ran.seconds |= {"long": 1.0}
    done = run_stages(graph, ["a", "long", "b", "c", "d"], {}, tmp_path)
    assert [one.stage for one in done] == ["a", "long", "b", "c", "d"]  # as they were asked for
    place = {event: number for number, event in enumerate(ran)}
    assert set(place) == {f"{name}{mark}" for name in ["a", "long", "b", "c", "d"] for mark in "+-"}
    assert place["a-"] < min(place["long+"], place["b+"])
    assert place["long+"] < place["c+"] < place["c-"] < place["long-"] < place["d+"]


def test_no_more_than_two_at_a_time_and_what_most_wait_for_first(tmp_path, ran, monkeypatch):
    graph = graph_of({"a": "", "b": "", "c": "", "d": ["c"], "e": ["d"]})
    run_stages(graph, list("abcde"), {}, tmp_path)
    assert "c+" in ran[:2]
    open_now = [sum(1 if event.endswith("+") else -1 for event in ran[: at + 1]) for at in range(len(ran))]
    assert max(open_now) == 2
    ran.clear()
    monkeypatch.setattr("flows.steps.stages.num_cores", lambda: 1)
    run_stages(graph, list("abcde"), {}, tmp_path)
    assert [event[0] for event in ran] == list("ccddaabbee")


def test_after_a_failure_nothing_begins_and_what_is_at_work_is_finished(tmp_path, ran):
    graph = graph_of({"a": "", "long": "", "b": "a", "c": "long"})
    ran.seconds |= {"long": 0.6}
    ran.errors |= {"a": StageFailed("boom"), "long": StageFailed("later")}
    with pytest.raises(StageFailed, match="boom"):
        run_stages(graph, ["a", "long", "b", "c"], {}, tmp_path)
    assert sorted(ran) == ["a+", "a-", "long+", "long-"]


def test_what_looks_at_an_artifact_is_called_when_it_is_finished_and_may_stop_the_run(tmp_path, ran):
    graph = graph_of({"a": "", "b": "a", "c": "b", "cpt": "a"})

    def look():
        ran.append("look")

    def stop():
        ran.append("look")
        raise RefusedError("no")

    run_stages(graph, ["a", "b", "c", "cpt"], {}, tmp_path, {"b": look, "other": stop})
    place = {event: number for number, event in enumerate(ran)}
    assert place["b-"] < place["look"] < min(place["c+"], place["cpt+"])  # what takes minutes waits for it
    ran.clear()
    with pytest.raises(RefusedError, match="no"):
        run_stages(graph, ["a", "b", "c", "cpt"], {}, tmp_path, {"b": stop, "other": stop})
    assert ran == ["a+", "a-", "b+", "b-", "look"]


def test_a_stage_whose_flow_was_stopped_is_ended_and_not_tried_again(tmp_path):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    began = time.monotonic()
    with pytest.raises(StageFailed, match="stopped with its flow"):
        execute("toy", python("import time; time.sleep(120)"), tmp_path, stop)
    assert time.monotonic() - began < 20
    with pytest.raises(StageFailed, match="stopped with its flow"):  # nor is one begun after that
        execute("toy", python("open('ran', 'w')"), tmp_path, stop)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("number", "whom"), [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)])
def test_a_signal_ends_a_flow_and_all_it_started(tmp_path, root, number, whom):
    """Ctrl-C in a terminal reaches the stages as well, and what a signal ended is tried again, else."""
    says = (
        "import os, time; os.write(1, b'began' + bytes([10])); time.sleep(120)"  # one write: two stages say it at once
    )
    (tmp_path / "long.py").write_text(says)
    code = """
import signal
from pathlib import Path
from flows.clock.server import prefect_server
from flows.steps.graph import Stage
signal.signal(signal.SIGINT, signal.default_int_handler)
graph = {name: Stage(name, "python long.py", (), (name,)) for name in ("a", "b", "c")}
with prefect_server(Path(".")):
    from prefect import flow
    from flows.steps.stages import run_stages
    flow(lambda: run_stages(graph, list(graph), {}, Path(".")), name="toy", persist_result=False)()
"""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    said = tmp_path / "said.txt"
    at_work = min(2, stages.num_cores())
    with said.open("w") as file:
        flow = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=file, start_new_session=True)
        try:
            assert _soon(lambda: said.read_text().splitlines().count("began") == at_work, 120), said.read_text()
            began = time.monotonic()
            whom(flow.pid, number)
            assert flow.wait(timeout=60) != 0
            assert time.monotonic() - began < 30
            assert _soon(lambda: not _session(flow.pid), 10)
            assert said.read_text().splitlines().count("began") == at_work  # none was begun or tried again
        finally:
            for pid in _session(flow.pid):
                os.kill(pid, signal.SIGKILL)
            flow.wait()


def test_a_signal_that_wakes_nobody_ends_a_flow(tmp_path, monkeypatch):
    """The first thread acts upon a signal, and sleeps on where another received it or where it was about to sleep."""

    def interrupt(*_):
        raise KeyboardInterrupt

    def stage(stop):
        time.sleep(0.2)
        signal.raise_signal(signal.SIGUSR1)  # to this thread
        return stop.wait(10)

    class Task:
        def submit(self, name, argv, home, stop):
            self.was_stopped = threads.submit(stage, stop)
            return Submitted(self.was_stopped)

    task = Task()
    monkeypatch.setattr("flows.steps.stages.run_stage", task)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ThreadPoolExecutor(1) as threads, pytest.raises(KeyboardInterrupt):
            run_stages(graph_of({"a": ""}), ["a"], {}, tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert task.was_stopped.result()


def _session(number):
    """Ids of the processes that were started in a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        found += [int(path.parent.name)] if session == str(number) and state != "Z" else []
    return found


def _soon(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_template_that_nothing_fills_is_told_before_anything_runs(tmp_path, ran):
    graph = graph_of({"a": "", "b": "a"})
    graph["b"] = Stage("b", "python -m b ${nothing}", ("a",), ("b",))
    with pytest.raises(InputError, match="nothing"):
        run_stages(graph, ["a", "b"], {}, tmp_path)
    assert ran == []
