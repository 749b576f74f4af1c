"""Fine-tuning of a model that reads one place an item, as a stage: its head is new, goes on, or is drawn anew."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.corpus.item_examples import ItemExamples
from models.language.item_model import ItemModel, load_item_model, start_item_model
from models.language.model import load_language_model
from models.language.places import HeadParams
from models.language.words import Vocabulary
from models.training.packing import LoopParams
from models.training.sft import SftParams, run
from plumline import artifact
from plumline.artifact import list_files, read_json
from plumline.errors import CorruptArtifactError, MissingArtifactError, MixedReleaseError

LOOP = LoopParams(row_tokens=64, rows=2, accumulation=1, log_every=1)
PARAMS = SftParams(steps=3, daily_steps=2, loop=LOOP, head=HeadParams(intermediate=24, prefix_rows=40))
STILL = PARAMS.model_copy(update={"daily_learning_rate": 1e-9})
"""A daily increment that moves nothing far."""


@pytest.fixture
def inputs(places_world: Any) -> dict[str, Path]:
    return {name: getattr(places_world, name) for name in ("corpus", "vocabulary", "cpt")}


@pytest.fixture
def base(places_world: Any) -> Path:
    """A release whose part `sft` the first fine-tuning made."""
    folder: Path = places_world.sft.parent
    return folder


@pytest.fixture(autouse=True)
def in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUMLINE_THREADS", "1")


def weights(model: ItemModel) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def load(inputs: dict[str, Path], folder: Path) -> dict[str, torch.Tensor]:
    return weights(load_item_model(folder / "weights", Vocabulary.load(inputs["vocabulary"])))


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], part: str) -> list[bool]:
    assert one.keys() == other.keys()
    return [torch.allclose(one[name], other[name], atol=1e-6) for name in one if name.startswith(part)]


def test_first_run(inputs: dict[str, Path], tmp_path: Path) -> None:
    run(PARAMS, **inputs, base=None, seed=1, out=tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in list_files(tmp_path / "out")} == {
        "loss.json",
        "metrics.json",
        "weights/config.json",
        "weights/generation_config.json",
        "weights/model.safetensors",
        "weights/sid_head.json",
        "weights/sid_head.safetensors",
    }
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert (metrics["steps"], metrics["start"], metrics["averagings"]) == (3, "cpt", 0)
    assert metrics["anchor_distance"] > 0
    examples = ItemExamples.load(inputs["corpus"] / "sft.npz")
    assert 0 < metrics["examples"] == len(examples.of_kinds("older", "replay")) < examples.num_examples
    assert metrics["target_tokens"] % 3 == 0
    words = Vocabulary.load(inputs["vocabulary"])
    new = weights(start_item_model(load_language_model(inputs["cpt"] / "weights"), words, PARAMS.head, seed=1))
    assert not any(close(load(inputs, tmp_path / "out"), new, "head.outputs"))
    assert (tmp_path / "artifacts" / "progress" / "sft.jsonl").is_file()


def test_a_daily_increment_goes_on_with_the_head(inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    run(STILL, **inputs, base=base, seed=2, out=tmp_path / "out")
    assert all(close(load(inputs, tmp_path / "out"), load(inputs, base / "sft"), ""))
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert (metrics["steps"], metrics["start"]) == (2, "previous")
    kinds = read_json(inputs["corpus"] / "report.json")["sft"]["kinds"]
    assert metrics["examples"] == kinds["recent"]["examples"] + kinds["replay"]["examples"]
    assert kinds["older"]["examples"] > 0


def test_a_daily_increment_from_the_checkpoint_draws_the_head_anew(
    inputs: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    head = HeadParams(intermediate=20, prefix_rows=7)
    params = STILL.model_copy(update={"start": "cpt", "head": head})
    run(params, **inputs, base=base, seed=2, out=tmp_path / "out")
    assert read_json(tmp_path / "out" / "metrics.json")["start"] == "cpt"
    words = Vocabulary.load(inputs["vocabulary"])
    new = weights(start_item_model(load_language_model(inputs["cpt"] / "weights"), words, head, seed=2))
    assert new["prefixes.table.weight"].shape == (7, 16)
    assert all(close(load(inputs, tmp_path / "out"), new, ""))


def test_another_lineage_is_refused(inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    with artifact.writing(tmp_path / "cpt", stage="cpt", key="k") as scratch:
        (scratch / "metrics.json").write_text("{}")
    with pytest.raises(MixedReleaseError, match="without a base"):
        run(PARAMS, **{**inputs, "cpt": tmp_path / "cpt"}, base=base, seed=1, out=tmp_path / "out")


def test_a_base_of_the_other_form_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    parents = {"cpt": artifact.read_manifest(inputs["cpt"]).digest}
    with artifact.writing(tmp_path / "base" / "sft", stage="sft", key="k", parents=parents) as scratch:
        artifact.copy_payload(inputs["cpt"], scratch)
    with pytest.raises(MissingArtifactError, match=r"no sid_head\.safetensors"):
        run(PARAMS, **inputs, base=tmp_path / "base", seed=1, out=tmp_path / "out")


def test_examples_of_the_other_form_are_refused(world: Any, inputs: dict[str, Path], tmp_path: Path) -> None:
    """In either direction: places for a vocabulary of tokens, tokens for one of places."""
    from models.corpus.corpus import run as run_corpus
    from models.corpus.material import CorpusParams

    tables = {name: getattr(world, name) for name in ("catalog", "histories", "sids", "vocabulary")}
    (tmp_path / "corpus").mkdir()
    run_corpus(CorpusParams(max_tokens=256), **tables, as_of=world.as_of, seed=1, out=tmp_path / "corpus")
    with pytest.raises(CorruptArtifactError, match=r"corpus/sft\.npz: holds"):
        run(PARAMS, **{**inputs, "corpus": tmp_path / "corpus"}, base=None, seed=1, out=tmp_path / "out")
    with pytest.raises(CorruptArtifactError, match=r"corpus/sft\.npz: holds"):
        run(PARAMS, **{**inputs, "vocabulary": world.vocabulary}, base=None, seed=1, out=tmp_path / "out")
