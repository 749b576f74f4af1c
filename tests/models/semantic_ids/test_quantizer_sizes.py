"""Codebooks that size themselves: what they become, what a retraining keeps, what counts as collapsed."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams
from models.semantic_ids.quantizer import fit, run, sized
from models.semantic_ids.sids import extend_table
from models.semantic_ids.vectors import VectorFile, Vectors
from plumline import artifact, tables
from plumline.errors import RefusedError
from plumline.schema import PAIRS, conform

NO_PAIRS = conform(pa.table({"item_a": [], "item_b": [], "count": []}), PAIRS)
AUTO = QuantizerParams(codebooks="auto", latent_dimensions=8, hidden=16, steps=6, warmup_steps=4, batch_size=32)
LISTED = AUTO.model_copy(update={"codebooks": (128, 256)})


def make_vectors(num_items: int) -> Vectors:
    """Twelve clusters; the first n items are the same whatever n is."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(12, 10)) * 3
    values = np.array([centres[row % 12] + generator.normal(size=10) for row in range(num_items)], np.float32)
    return Vectors([f"i{row:05d}" for row in range(num_items)], {"text": values}, {"text": np.ones(num_items, bool)})


def run_stage(tmp_path: Path, vectors: Vectors, params: QuantizerParams, *, name: str = "quantizer") -> Path:
    (tmp_path / "embeddings").mkdir(exist_ok=True)
    vectors.save(tmp_path / "embeddings")
    tables.write_parquet(tmp_path / "histories/pairs.parquet", NO_PAIRS)
    (tmp_path / name).mkdir()
    inputs = {"embeddings": tmp_path / "embeddings", "histories": tmp_path / "histories"}
    run(params, **inputs, base=None, previous=None, seed=17, out=tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("kind", ["rqvae", "rq_kmeans"])
@pytest.mark.parametrize("num_items", [1, 2, 3, 64, 300, 400])
def test_codebooks_size_themselves(num_items: int, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    vectors = make_vectors(num_items)
    folder = run_stage(tmp_path, vectors, AUTO.model_copy(update={"kind": kind}))
    sizes = [64, 64] if num_items <= 320 else [128, 256]
    assert artifact.read_json(folder / "config.json")["codebooks"] == sizes
    assert f"codebooks {sizes} for {num_items} different contents" in capsys.readouterr().err
    report = artifact.read_json(folder / "report.json")
    assert (report["num_items"], report["num_contents"], report["content_uniqueness"]) == (num_items, num_items, 1.0)
    assert [level["size"] for level in report["levels"]] == sizes
    if num_items <= 3:
        assert len(np.unique(Quantizer.load(folder).encode(vectors), axis=0)) == num_items


def repeated(vectors: Vectors, times: int) -> Vectors:
    """The first item of them, `times` times, before the others."""
    rows = np.concatenate([np.zeros(times, int), np.arange(len(vectors.item_ids))])
    ids = [f"r{row:05d}" for row in range(len(rows))]
    return Vectors(ids, vectors.take(rows).modalities, vectors.take(rows).masks)


def test_auto_counts_contents_and_judges_them(tmp_path: Path) -> None:
    """Of 1,300 items 900 are alike: no collapse, since the other 400 are told apart; a list is judged as it is."""
    vectors = repeated(make_vectors(400), 900)
    folder = run_stage(tmp_path, vectors, AUTO.model_copy(update={"perplexity_floor": 0.5}))
    report = artifact.read_json(folder / "report.json")
    assert (report["num_items"], report["num_contents"]) == (1300, 400)
    assert report["content_uniqueness"] == 399 / 1300
    assert artifact.read_json(folder / "config.json")["codebooks"] == [128, 256]
    listed = LISTED.model_copy(update={"perplexity_floor": 0.5})
    with pytest.raises(RefusedError, match="level 1 uses .* for 1300 items"):
        run_stage(tmp_path, vectors, listed, name="listed")


def test_auto_refuses_a_collapse_of_contents(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"level \d uses .* for 300 items"):
        run_stage(tmp_path, repeated(make_vectors(300), 50), AUTO.model_copy(update={"usage_floor": 1.0}))


def test_items_that_are_all_alike_are_no_collapse_of_auto(tmp_path: Path) -> None:
    alike = repeated(make_vectors(1), 500)
    assert len(np.unique(Quantizer.load(run_stage(tmp_path, alike, AUTO)).encode(alike), axis=0)) == 1


@pytest.mark.parametrize(
    ("before", "num_contents", "sizes", "said"),
    [
        ((64, 64), 300, (64, 64), "[64, 64] as those of the release that this one follows"),
        ((256, 256), 300, (256, 256), "[256, 256] as those of the release that this one follows"),
        ((64, 512), 400, (64, 512), "[64, 512] as those of the release that this one follows"),  # as many SIDs
        (
            (64, 64),
            400,
            (128, 256),
            "[128, 256] for 400 different contents, which have outgrown the [64, 64] of the release that this",
        ),
        ((2048, 1024), 50_000, (1024, 512, 256), "have outgrown the [2048, 1024]"),
    ],
)
@pytest.mark.parametrize("tie_break", [0, 16])
def test_a_retraining_keeps_the_sizes_until_the_catalogue_has_outgrown_them(
    before: tuple[int, ...],
    num_contents: int,
    sizes: tuple[int, ...],
    said: str,
    tie_break: int,
    capsys: pytest.CaptureFixture,
) -> None:
    old = extend_table(None, ["a"], np.zeros((1, len(before)), int), before, tie_break)
    assert sized(AUTO, num_contents, old).codebooks == sizes
    assert said in capsys.readouterr().err


def test_a_list_of_sizes_is_what_it_is(capsys: pytest.CaptureFixture) -> None:
    old = extend_table(None, ["a"], np.array([[3, 1]]), (32, 8), 4)
    assert sized(LISTED, 100_000, old) is LISTED
    assert capsys.readouterr().err == ""


def test_fit_sizes_what_nobody_has_sized(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    vectors = make_vectors(100)
    vectors.save(tmp_path / "embeddings")
    old = extend_table(None, vectors.item_ids[:1], np.array([[3, 1]]), (128, 64), 0)
    file = VectorFile(tmp_path / "embeddings")
    assert fit(file, NO_PAIRS, AUTO, 1).codebooks == (64, 64)
    assert fit(file, NO_PAIRS, AUTO, 1, old).codebooks == (128, 64)


@pytest.mark.parametrize("codebooks", ["automatic", [], [256, 0], [256, "x"], 256, None, [True]])
def test_sizes_are_auto_or_a_list(codebooks: object) -> None:
    with pytest.raises(ValidationError, match=re.escape("give auto, or the number of codes of each level")):
        QuantizerParams.model_validate({"codebooks": codebooks})
    assert QuantizerParams.model_validate({"codebooks": [256, 1]}).sizes == (256, 1)
