"""Fine-tuning as a stage: first and daily, and from which weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.corpus.corpus import run as run_corpus
from models.corpus.material import CorpusParams
from models.language.model import LanguageParams, load_language_model
from models.training.cpt import CptParams
from models.training.cpt import run as run_cpt
from models.training.packing import LoopParams
from models.training.sft import SftParams, run, start_weights
from plumline import artifact
from plumline.artifact import list_files, read_json, read_manifest
from plumline.errors import InputError, MixedReleaseError

LOOP = LoopParams(row_tokens=256, rows=2, accumulation=1, log_every=2)
MODEL = LanguageParams(hidden=16, layers=1, heads=2, kv_heads=1, intermediate=24)
PARAMS = SftParams(steps=4, daily_steps=2, loop=LOOP)


@pytest.fixture(scope="module")
def inputs(world: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """corpus and cpt as sealed artifacts."""
    folder = tmp_path_factory.mktemp("inputs")
    tables = {name: getattr(world, name) for name in ("catalog", "histories", "sids", "vocabulary")}
    corpus = CorpusParams(max_tokens=256, recent_days=20, replay_share=0.5)
    with artifact.writing(folder / "corpus", stage="corpus", key="k") as scratch:
        run_corpus(corpus, **tables, as_of=world.as_of, seed=1, out=scratch)
    with artifact.writing(folder / "cpt", stage="cpt", key="k") as scratch:
        told = CptParams(steps=0, model=MODEL, loop=LOOP)
        read = {"corpus": folder / "corpus", "vocabulary": world.vocabulary, "quantizer": world.quantizer}
        run_cpt(told, **read, base=None, seed=1, out=scratch)
    return {"corpus": folder / "corpus", "vocabulary": world.vocabulary, "cpt": folder / "cpt"}


@pytest.fixture
def base(inputs: dict[str, Path], tmp_path: Path) -> Path:
    """A release made of a first fine-tuning."""
    base = tmp_path / "base"
    base.mkdir()
    parents = {"cpt": read_manifest(inputs["cpt"]).digest}
    with artifact.writing(base / "sft", stage="sft", key="k", parents=parents) as scratch:
        run(PARAMS, **inputs, base=None, seed=1, out=scratch)
    return base


@pytest.fixture(autouse=True)
def in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUMLINE_THREADS", "1")


def embeddings(folder: Path) -> torch.Tensor:
    return load_language_model(folder / "weights").get_input_embeddings().weight.detach()


def test_first_run(inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    names = {p.relative_to(base / "sft").as_posix() for p in list_files(base / "sft")}
    assert names == {
        "loss.json",
        "metrics.json",
        "weights/config.json",
        "weights/generation_config.json",
        "weights/model.safetensors",
    }
    metrics = read_json(base / "sft" / "metrics.json")
    assert (metrics["steps"], metrics["start"]) == (4, "cpt")
    assert metrics["anchor_distance"] > 0
    assert not torch.equal(embeddings(base / "sft"), embeddings(inputs["cpt"]))
    assert (tmp_path / "artifacts" / "progress" / "sft.jsonl").is_file()


@pytest.mark.parametrize("start", ["cpt", "previous"])
def test_daily_increment(inputs: dict[str, Path], base: Path, tmp_path: Path, start: str) -> None:
    params = PARAMS.model_copy(update={"start": start, "daily_learning_rate": 1e-9})
    run(params, **inputs, base=base, seed=1, out=tmp_path / "out")
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert (metrics["steps"], metrics["start"]) == (2, start)
    report = read_json(inputs["corpus"] / "report.json")["sft"]["kinds"]
    assert metrics["examples"] == report["recent"]["examples"] + report["replay"]["examples"]
    assert report["older"]["examples"] > 0
    begun = embeddings(inputs["cpt"] if start == "cpt" else base / "sft")
    assert torch.allclose(embeddings(tmp_path / "out"), begun, atol=1e-6)  # at that rate nothing moves far


def test_anew_from_the_checkpoint_every_few_days(inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"reanchor_days": 3})
    told = []
    for day in range(5):
        out = tmp_path / f"day {day}" / "sft"
        parents = {"cpt": read_manifest(inputs["cpt"]).digest}
        with artifact.writing(out, stage="sft", key="k", parents=parents) as scratch:
            run(params, **inputs, base=base, seed=1, out=scratch)
        base = out.parent
        metrics = read_json(out / "metrics.json")
        told.append((metrics["increments"], metrics["steps"], metrics["start"]))
    increments = [(1, 2, "previous"), (2, 2, "previous")]
    assert told == [*increments, (0, 4, "cpt"), *increments]


def test_another_lineage_is_refused(inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    with artifact.writing(tmp_path / "other", stage="cpt", key="k") as scratch:
        (scratch / "metrics.json").write_text("{}")
    with pytest.raises(MixedReleaseError, match="without a base"):
        start_weights(PARAMS, tmp_path / "other", base)


def test_an_adopted_cpt_is_the_same_lineage(inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    with artifact.writing(tmp_path / "cpt", stage="cpt", key="another key", params={"steps": 9}) as scratch:
        artifact.copy_payload(inputs["cpt"], scratch)
    assert start_weights(PARAMS, tmp_path / "cpt", base) == base / "sft" / "weights"


def test_a_day_without_anything_is_refused(world: Any, inputs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    tables = {name: getattr(world, name) for name in ("catalog", "histories", "sids", "vocabulary")}
    (tmp_path / "corpus").mkdir()
    params = CorpusParams(max_tokens=256, recent_days=1, replay_share=0.0)
    run_corpus(params, **tables, as_of=world.as_of, seed=1, out=tmp_path / "corpus")
    with pytest.raises(InputError, match="recent_days"):
        run(PARAMS, **{**inputs, "corpus": tmp_path / "corpus"}, base=base, seed=1, out=tmp_path / "out")
