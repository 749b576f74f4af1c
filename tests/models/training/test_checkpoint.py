"""Checkpoints: whole or absent, of this training or refused; and a training that is killed ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.corpus.examples import ExamplesBuilder
from models.training import checkpoint
from models.training.checkpoint import Checkpoint, identify
from plumline import artifact
from plumline.errors import InputError

TENSORS = {"weights/a": torch.arange(6.0).reshape(2, 3), "adam_step/a": torch.tensor(3.0)}


def keeper(folder: Path, lines: list[str] | None = None, **about: Any) -> Checkpoint:
    told = {"stage": "cpt", "key": "k", "told": {"steps": 9, "loop.accumulation": 4}, **about}
    return Checkpoint(folder / "cpt.checkpoint", say=(lines if lines is not None else []).append, **told)


def test_what_was_saved_is_found(tmp_path: Path) -> None:
    lines: list[str] = []
    kept = keeper(tmp_path, lines)
    kept.discard()  # nothing is there yet, which is no mistake
    assert kept.find() is None
    assert lines == []
    assert kept.step == 0
    kept.save(TENSORS, {"step": 2})
    kept.save(TENSORS, {"step": 3, "curve": [[2, 0.1 + 0.2]]})
    again = keeper(tmp_path, lines)
    found = again.find()
    assert (kept.step, again.step) == (3, 3)
    assert found is not None
    assert found.notes == {"step": 3, "curve": [[2, 0.1 + 0.2]]}
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    assert lines == [f"cpt: goes on after step 3, from {kept.folder}"]
    assert list((tmp_path / ".scratch").iterdir()) == []
    assert {path.suffix for path in kept.folder.iterdir()} == {".json", ".safetensors"}
    manifest = artifact.read_manifest(kept.folder)
    assert (manifest.stage, manifest.key, manifest.params) == ("cpt.checkpoint", "k", kept.told)
    kept.discard()
    assert keeper(tmp_path).find() is None


def test_another_training_begins_anew_in_one_line(tmp_path: Path) -> None:
    keeper(tmp_path).save(TENSORS, {"step": 2})
    lines: list[str] = []
    assert keeper(tmp_path, lines, key="other", told={}).find() is None
    assert len(lines) == 1
    assert "of other data" in lines[0]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"steps": 9, "loop.accumulation": 8}, ["loop.accumulation is 8", "with 4", "set it to 4", "delete"]),
        ({"steps": 10, "loop.accumulation": 4}, ["steps is 10", "with 9"]),
        ({"steps": 9, "loop.accumulation": 4, "loop.new": 1}, ["loop.new is 1", "with None"]),
    ],
)
def test_the_same_training_told_otherwise_is_refused_by_name(tmp_path: Path, told: Any, words: list[str]) -> None:
    keeper(tmp_path).save(TENSORS, {"step": 2})
    with pytest.raises(InputError) as caught:
        keeper(tmp_path, told=told).find()
    assert all(word in str(caught.value) for word in [*words, "cpt.checkpoint"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_told_and_left_out(tmp_path: Path, damage: str) -> None:
    kept = keeper(tmp_path)
    kept.save(TENSORS, {"step": 2})
    path = kept.folder / ("manifest.json" if damage == "no manifest" else "state.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-4])
    else:
        path.unlink()
    lines: list[str] = []
    assert keeper(tmp_path, lines).find() is None
    assert len(lines) == 1
    assert "damaged" in lines[0]


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    kept.save(TENSORS, {"step": 2})
    with pytest.raises(TypeError):
        kept.save(TENSORS, {"step": object()})
    found = keeper(tmp_path).find()
    assert found is not None
    assert found.notes["step"] == 2


def test_identity_is_weights_examples_seed_stage_and_what_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config:
        def __init__(self, name: str = "", layers: int = 2) -> None:
            self.told = {"_name_or_path": name, "layers": layers}

        def to_dict(self) -> dict[str, Any]:
            return self.told

    def model(fill: float = 1.0, name: str = "", layers: int = 2) -> Any:
        layer: Any = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(layer.weight, fill)
        torch.nn.init.zeros_(layer.bias)
        layer.config = Config(name, layers)
        return layer

    def examples(last: int = 3) -> Any:
        builder = ExamplesBuilder()
        builder.add_sequence(np.array([1, 2, last], dtype=np.int32), "behaviour")
        builder.add_sequence(np.array([4, 5], dtype=np.int32), "behaviour")
        return builder.build()

    both = np.arange(2)
    same = identify(model(), examples(), both, 1, "cpt")
    assert same == identify(model(name="/elsewhere"), examples(), both, 1, "cpt")
    others = {
        identify(model(fill=2.0), examples(), both, 1, "cpt"),
        identify(model(layers=3), examples(), both, 1, "cpt"),
        identify(model(), examples(last=9), both, 1, "cpt"),
        identify(model(), examples(), both[:1], 1, "cpt"),
        identify(model(), examples(), both, 2, "cpt"),
        identify(model(), examples(), both, 1, "sft"),
    }
    assert len(others | {same}) == 7
    artifact.seal(tmp_path, stage="cpt", key="k")
    anchored = identify(model(), examples(), both, 1, "cpt", tmp_path)
    assert anchored == identify(model(), examples(), both, 1, "cpt", tmp_path) not in {*others, same}
    monkeypatch.setattr(torch, "__version__", "1.0.0")  # another version adds up in another order
    assert identify(model(), examples(), both, 1, "cpt") not in {*others, same, anchored}
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "code_version", {"models.training.loop": "another loop"}.__getitem__)
    assert identify(model(), examples(), both, 1, "cpt") not in {*others, same, anchored}


# One process imports torch and then forks a child a run: the child trains, is killed for good, and is replaced.
TRAININGS = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from models.corpus.examples import ExamplesBuilder
from models.training.packing import LoopParams
from models.training.loop import train

STEPS = 30
LOOP = LoopParams(row_tokens=48, rows=2, accumulation=2, warmup_steps=2, learning_rate=5e-3, log_every=3,
                  dropout=0.1, average_decay=0.9, cooldown_share=0.2, checkpoint_every=3)

def once(home):
    rng = np.random.default_rng(0)
    builder = ExamplesBuilder()
    for _ in range(40):
        builder.add_sequence(rng.integers(1, 40, rng.integers(2, 31)).astype(np.int32), "behaviour")
    examples = builder.build()
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=40, pad_token_id=0, **sizes))
    metrics = train(model, examples, LOOP, chosen=np.arange(40), steps=STEPS, seed=3, stage="cpt",
                    progress_path=home / "cpt.jsonl", checkpoint=home / "cpt.checkpoint")
    save_file(dict(model.named_parameters()), home / "weights.safetensors")
    (home / "metrics.json").write_text(json.dumps(metrics))

def child(home, crash_at):
    pid = os.fork()
    if pid == 0:
        os.environ["PLUMLINE_CRASH_AT"] = crash_at
        try:
            once(home)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for number, crash_at in enumerate(json.loads(sys.argv[1])):
    home = Path(str(number))
    home.mkdir()
    codes = [child(home, crash_at)] if crash_at else []
    print(json.dumps([crash_at, *codes, child(home, "")]), flush=True)
"""


def run_killed(folder: Path, root: Path, crash_at: list[str]) -> list[list[Any]]:
    """Train once a crash point, each in a folder of its own; returns [crash point, exit codes…]."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PLUMLINE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAININGS, json.dumps(crash_at)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(1500)
def test_a_training_killed_at_any_step_ends_in_the_same_bytes(tmp_path: Path, root: Path) -> None:
    rng = np.random.default_rng(5)
    kills = [f"cpt:step:{step}" for step in rng.choice(np.arange(1, 31), 20, replace=False)]
    writing = [f"cpt.checkpoint:{point}:2" for point in ("body", "sealed", "published")]
    found = run_killed(tmp_path, root, ["", *kills, *writing])
    whole = tmp_path / "0"
    same = 0
    for number, (crash_at, *codes) in enumerate(found):
        assert codes == ([0] if not crash_at else [-9, 0]), crash_at
        home = tmp_path / str(number)
        for name in ("weights.safetensors", "metrics.json"):
            assert (home / name).read_bytes() == (whole / name).read_bytes(), f"{name} after {crash_at}"
        steps = [json.loads(line)["step"] for line in (home / "cpt.jsonl").read_text().splitlines()]
        assert steps == [*range(3, 31, 3)]
        same += crash_at in kills
    print(f"{same}/20 killed trainings ended in the same bytes, and {len(writing)} killed while they saved")
    assert same == 20
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["cursor"][0] >= 2  # borders of epochs were crossed
    manifest = artifact.verify(whole / "cpt.checkpoint")
    assert manifest.params["steps"] == 30
