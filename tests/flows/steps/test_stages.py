import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.steps.graph import Stage
from flows.steps.stages import (
    Finished,
    StageFailed,
    StageKilled,
    execute,
    launched,
    run_stage,
    run_stages,
    workspace_lock,
)
from plumline.errors import RefusedError
from plumline.settings import get_settings


def python(code):
    return [sys.executable, "-c", code]


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
        "import sys; from pathlib import Path; from flows.steps.stages import execute; "
        f"execute('toy', [sys.executable, '-c', {child!r}], Path('.'))"
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


def test_a_second_run_waits_for_the_first(tmp_path, root):
    code = (
        "from pathlib import Path\nfrom flows.steps.stages import workspace_lock\n"
        "with workspace_lock(Path('.')): print('in')"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with workspace_lock(tmp_path):
        second = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    out, _ = second.communicate(timeout=30)
    assert out.strip() == "in"


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


def test_what_looks_at_an_artifact_is_called_when_it_is_finished_and_may_stop_the_run(tmp_path, monkeypatch):
    done = []
    stages = {name: Stage(name, f"python -m {name}", (), ()) for name in "abc"}
    monkeypatch.setattr(
        "flows.steps.stages.run_stage", lambda name, *_: done.append(name) or Finished(name, 1.0, False)
    )

    def stop():
        done.append("look")
        raise RefusedError("no")

    with pytest.raises(RefusedError, match="no"):
        run_stages(stages, ["a", "b", "c"], {}, tmp_path, {"b": stop, "other": stop})
    assert done == ["a", "b", "look"]
    done.clear()
    assert [one.stage for one in run_stages(stages, ["a", "c"], {}, tmp_path, {"b": stop})] == ["a", "c"]
    assert [one.stage for one in run_stages(stages, ["b"], {}, tmp_path)] == ["b"]
