import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from plumline import artifact
from plumline.errors import InputError
from plumline.stage import Params, hash_seed, import_closure, load_params

STAGE = '''"""A toy stage.   reads source   writes toy"""
from datetime import date
from pathlib import Path
from plumline.errors import RefusedError
from plumline.stage import Params, main


class ToyParams(Params):
    times: int
    """How often the source is repeated."""


def run(params: ToyParams, *, source: Path, base: Path | None, as_of: date, seed: int, out: Path) -> None:
    if params.times > 9:
        raise RefusedError(f"times {params.times}: at most 9")
    text = (source / "text").read_text() * params.times
    (out / "toy.txt").write_text(f"{text} {base} {as_of} {seed}")


if __name__ == "__main__":
    main(run, section="toy", unfinished=Path("unfinished"))
'''


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.py").write_text(STAGE)
    (tmp_path / "recipe.yaml").write_text("toy: {times: 2}\n")
    with artifact.writing(tmp_path / "source", stage="source", key="s") as scratch:
        (scratch / "text").write_text("ab")
    return tmp_path


def run(toy: Path, root: Path, *extra: str, crash_at: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{toy}:{root}", "PLUMLINE_CRASH_AT": crash_at}
    command = [sys.executable, "-m", "toy", "--params", "recipe.yaml", "--source", "source", "--base="]
    command += ["--as-of", "2020-01-31", "--seed", "7", "--out", "out/toy", *extra]
    return subprocess.run(command, cwd=toy, env=environment, capture_output=True, text=True, check=False)


def test_a_stage_publishes_once_and_skips_afterwards(toy, root):
    first, second = run(toy, root), run(toy, root)
    assert first.returncode == second.returncode == 0, first.stderr
    assert (toy / "out/toy/toy.txt").read_text() == "abab None 2020-01-31 7"
    manifest = artifact.verify(toy / "out/toy")
    assert manifest.parents["source"] == artifact.read_manifest(toy / "source").digest
    assert manifest.arguments == {"as_of": "2020-01-31", "seed": 7}
    assert "already done" in second.stderr
    assert "already done" not in first.stderr


def test_unfinished_work_stays_until_the_artifact_stands(toy, root):
    (toy / "unfinished").mkdir()
    (toy / "recipe.yaml").write_text("toy: {times: 10}\n")
    assert run(toy, root).returncode == 2
    assert (toy / "unfinished").is_dir()
    (toy / "recipe.yaml").write_text("toy: {times: 2}\n")
    assert run(toy, root).returncode == 0
    assert not (toy / "unfinished").exists()


def test_anything_that_matters_makes_it_run_again(toy, root):
    run(toy, root)
    assert "already done" not in run(toy, root, "--seed", "8").stderr
    (toy / "recipe.yaml").write_text("toy: {times: 3}\n")
    assert "already done" not in run(toy, root, "--seed", "8").stderr
    assert "already done" in run(toy, root, "--seed", "8").stderr


def test_a_damaged_output_is_made_again_and_a_damaged_input_is_refused(toy, root):
    run(toy, root)
    (toy / "out/toy/toy.txt").write_text("zzzz None 2020-01-31 7")
    assert "already done" not in run(toy, root).stderr
    (toy / "source/text").write_text("xy")
    done = run(toy, root)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("toy: ")
    assert "source/text" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("toy: {times: 2, tmes: 3}", "tmes"),
        ("toy: {}", "times"),
        ("toy: {times: many}", "many"),
        ("other: {}", "toy"),
        ("- a", "mapping"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_2(toy, root, recipe, word):
    (toy / "recipe.yaml").write_text(recipe)
    done = run(toy, root)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert "recipe.yaml" in done.stderr


def test_a_refusal_is_exit_2_and_publishes_nothing(toy, root):
    (toy / "recipe.yaml").write_text("toy: {times: 10}\n")
    assert run(toy, root).returncode == 2
    assert not (toy / "out/toy").exists()


@pytest.mark.parametrize("point", ["start", "body", "written", "sealed", "published"])
def test_a_killed_stage_started_again_leaves_the_same_bytes(toy, root, point):
    run(toy, root)
    reference = {p.name: p.read_bytes() for p in (toy / "out/toy").iterdir()}
    for path in (toy / "out/toy").iterdir():
        path.unlink()
    (toy / "out/toy").rmdir()
    assert run(toy, root, crash_at=f"toy:{point}").returncode == -signal.SIGKILL
    assert (toy / "out/toy").exists() == (point == "published")
    assert run(toy, root).returncode == 0
    assert {p.name: p.read_bytes() for p in (toy / "out/toy").iterdir()} == reference


def test_the_closure_holds_lazy_imports_and_nothing_foreign():
    closure = import_closure("plumline.stage")
    assert "plumline/crash.py" in closure
    assert "plumline/settings.py" in closure
    assert "plumline/sid.py" not in closure
    assert all(path.startswith("plumline/") for path in closure)


def test_params_are_frozen_and_typed(tmp_path):
    class Small(Params):
        a: int = 1

    (tmp_path / "r.yaml").write_text("small:\n")
    assert load_params(tmp_path / "r.yaml", "small", Small).a == 1
    with pytest.raises(InputError, match="no such recipe"):
        load_params(tmp_path / "none.yaml", "small", Small)


def test_seeds_are_the_same_everywhere():
    assert hash_seed("a", 1) == hash_seed("a", 1) != hash_seed("a", 2)
    assert 0 <= hash_seed("x") < 1 << 63


def test_a_line_is_written_in_one_piece(root):
    """Two processes that refuse the same at the same time wrote `line line` and then two ends of a line."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # what is received is what one call wrote
    with ours, theirs:
        ours.settimeout(60)
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
        code = "from plumline.stage import say; say('a line'); say('another')"
        subprocess.run([sys.executable, "-c", code], env=environment, stderr=theirs.fileno(), check=True)
        assert [ours.recv(99), ours.recv(99)] == [b"a line\n", b"another\n"]
