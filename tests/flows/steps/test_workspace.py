"""One process at a time writes into artifacts/."""

import os
import subprocess
import sys

from flows.steps.workspace import workspace_lock


def test_a_second_run_waits_for_the_first(tmp_path, root):
    code = (
        "from pathlib import Path\nfrom flows.steps.workspace import workspace_lock\n"
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
