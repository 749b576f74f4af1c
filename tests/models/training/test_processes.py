"""Several processes: the same training as one with as much to add up, one artifact, and the exit code of the stage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from models.corpus.corpus import run as run_corpus
from models.corpus.material import CorpusParams
from models.language.model import LanguageParams
from models.training.cpt import CptParams
from models.training.cpt import run as run_cpt
from models.training.packing import LoopParams
from plumline import artifact

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(1500)]

LOOP = LoopParams(row_tokens=256, rows=2, accumulation=4, log_every=1, dropout=0.1, average_decay=0.9)
MODEL = LanguageParams(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=24)


@pytest.fixture
def inputs(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUMLINE_THREADS", "1")
    tables = {name: getattr(world, name) for name in ("catalog", "histories", "sids", "vocabulary")}
    with artifact.writing(tmp_path / "corpus", stage="corpus", key="k") as scratch:
        run_corpus(CorpusParams(max_tokens=256), **tables, as_of=world.as_of, seed=1, out=scratch)
    with artifact.writing(tmp_path / "cpt", stage="cpt", key="k") as scratch:
        told = CptParams(steps=0, model=MODEL, loop=LOOP)
        inputs = {"corpus": tmp_path / "corpus", "vocabulary": world.vocabulary, "quantizer": None, "base": None}
        run_cpt(told, **inputs, seed=1, out=scratch)
    return {"corpus": tmp_path / "corpus", "vocabulary": world.vocabulary, "cpt": tmp_path / "cpt"}


def train(
    root: Path, inputs: dict[str, Path], launcher: list[str], crash_at: str = "", **loop: Any
) -> subprocess.CompletedProcess[str]:
    """models.training.sft with artifacts/sft as its artifact. launcher: what stands between `python` and the module."""
    told = {"sft": {"steps": 6, "loop": LOOP.model_copy(update=loop).model_dump(mode="json")}}
    Path("recipe.yaml").write_text(yaml.safe_dump(told))
    command = [sys.executable, *launcher, "models.training.sft", "--params", "recipe.yaml", "--base=", "--seed", "17"]
    for name, path in inputs.items():
        command += [f"--{name}", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(root), "PLUMLINE_CRASH_AT": crash_at}
    command += ["--out", "artifacts/sft"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


TWO = ["-m", "models.training.processes", "2"]


def test_two_processes_are_one_with_twice_the_accumulation(root: Path, inputs: dict[str, Path]) -> None:
    out = Path("artifacts/sft")
    alone = train(root, inputs, ["-m"])
    assert alone.returncode == 0, alone.stderr[-3000:]
    shutil.move(out, "one")

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    both = train(root, inputs, torchrun)
    assert both.returncode == 0, both.stderr[-3000:]
    artifact.verify(out)
    assert list(Path("artifacts/.scratch").iterdir()) == []
    assert "already done" in train(root, inputs, TWO).stderr

    one, two = (json.loads((folder / "loss.json").read_text()) for folder in (Path("one"), out))
    assert [point["step"] for point in two] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    one, two = (load_file(folder / "weights" / "model.safetensors") for folder in (Path("one"), out))
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    print(f"largest difference of a weight {worst:.1e}")
    assert worst < 1e-5
    shutil.move(out, "two")

    # killed, gone on with, refused
    killed = train(root, inputs, TWO, crash_at="sft:step:5", checkpoint_every=2)
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert not out.exists()
    single = train(root, inputs, ["-m"], checkpoint_every=2)
    assert single.returncode == 2
    assert "PLUMLINE_PROCESSES is 1, but" in single.stderr
    again = train(root, inputs, TWO, checkpoint_every=2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("goes on after step 4") == 1
    for name in ("weights/model.safetensors", "loss.json"):
        assert (out / name).read_bytes() == (Path("two") / name).read_bytes()
    odd = train(root, inputs, TWO, accumulation=3)
    assert odd.returncode == 2
    assert odd.stderr.splitlines()[-1].startswith("sft: sft.loop.accumulation 3 is no multiple of the 2 processes")


def test_two_processes_are_one_for_places_too(
    root: Path, places_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an output layer of its own, which nothing asks: processes wait for the gradient of all that is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUMLINE_THREADS", "1")
    inputs = {"corpus": places_world.corpus, "vocabulary": places_world.vocabulary}
    with artifact.writing(tmp_path / "cpt", stage="cpt", key="k") as scratch:
        told = CptParams(steps=0, model=MODEL.model_copy(update={"tied": False}), loop=LOOP)
        run_cpt(told, **inputs, quantizer=None, base=None, seed=1, out=scratch)
    inputs["cpt"] = tmp_path / "cpt"
    for name, launcher in (("one", ["-m"]), ("two", TWO)):
        done = train(root, inputs, launcher, row_tokens=64)
        assert done.returncode == 0, done.stderr[-3000:]
        shutil.move("artifacts/sft", name)
    one, two = (json.loads((tmp_path / name / "loss.json").read_text()) for name in ("one", "two"))
    assert [point["loss"] for point in one] == pytest.approx([point["loss"] for point in two], abs=1e-5)
    assert one[-1]["loss"] < one[0]["loss"]
    for part in ("model.safetensors", "sid_head.safetensors"):
        first, second = (load_file(tmp_path / name / "weights" / part) for name in ("one", "two"))
        assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
