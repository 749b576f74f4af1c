"""Codes keep their names over a retraining as far as any renaming can, and what moved all the same is counted right."""

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.alignment import align, churn, common_rows, undo
from models.semantic_ids.frozen_quantizer import QuantizerParams
from models.semantic_ids.quantizer import run
from models.semantic_ids.quantizer_training import neighbours_of, train
from models.semantic_ids.sids import SidsParams, extend_table
from models.semantic_ids.sids import run as run_sids
from models.semantic_ids.table import SidTable
from models.semantic_ids.vectors import Vectors
from plumline import artifact, tables
from plumline.errors import InputError
from plumline.schema import HISTORIES, PAIRS, conform

SMALL = QuantizerParams(
    codebooks=(12, 8), latent_dimensions=8, hidden=16, steps=150, warmup_steps=50, batch_size=64, learning_rate=1e-2
)


def table_of(codes: list[list[int]] | np.ndarray, sizes: tuple[int, ...], tie_break: int = 0) -> SidTable:
    return extend_table(None, ids_of(len(codes)), np.asarray(codes), sizes, tie_break)


def ids_of(num_items: int) -> list[str]:
    return [f"i{row:04d}" for row in range(num_items)]


def renamed(names: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    return np.stack([new[codes[:, level]] for level, new in enumerate(names)], axis=1)


def clusters(num_items: int, num_clusters: int = 12) -> Vectors:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(num_clusters, 10)) * 3
    values = centres[generator.integers(num_clusters, size=num_items)] + generator.normal(size=(num_items, 10))
    return Vectors(ids_of(num_items), {"text": values.astype(np.float32)}, {"text": np.ones(num_items, bool)})


NO_PAIRS = conform(pa.table({"item_a": [], "item_b": [], "count": []}), PAIRS)


# --- by hand ---


@pytest.mark.parametrize("tie_break", [0, 4])
def test_other_names_for_the_same_codes_are_no_churn(tie_break: int) -> None:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, (8, 4), size=(300, 2))
    shuffled = [generator.permutation(8), generator.permutation(4)]
    new = renamed(shuffled, codes)
    old = table_of(codes, (8, 4), tie_break)
    names = align(old, ids_of(300), new, (8, 4))
    assert [list(back[forth]) for back, forth in zip(names, shuffled, strict=True)] == [list(range(8)), list(range(4))]
    before = churn(old, ids_of(300), new, {})
    after = churn(old, ids_of(300), renamed(names, new), {})
    assert [row["items"] for row in after] == [0, 0]
    assert before[0]["items"] > 0.7
    assert before[1]["items"] > 0.85
    assert (undo(names, renamed(names, new)) == new).all()


def test_the_most_items_win_a_name_and_a_lower_level_counts_only_those_that_stayed() -> None:
    old = table_of([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]], (2, 2))
    # new code 1 holds two of old code 0 and both of old code 1; new code 0 holds the last of old code 0
    new = np.array([[1, 0], [1, 0], [0, 0], [1, 0], [1, 0]])
    names = align(old, ids_of(5), new, (2, 2))
    # level 1: 0 → 1, 1 → 0 would keep two items, 0 → 0, 1 → 1 keeps three. Level 2: of these three two were called 1;
    # of all five three were called 0, but two of them have left level 1 and have no vote.
    assert [list(level) for level in names] == [[0, 1], [1, 0]]
    rows = churn(old, ids_of(5), renamed(names, new), {"i0000": 3.0, "i0003": 1.0})
    assert rows == [
        {"level": 1, "items": pytest.approx(2 / 5), "traffic": pytest.approx(3 / 4)},
        {"level": 2, "items": pytest.approx(3 / 5), "traffic": pytest.approx(1.0)},
    ]


def test_only_items_that_both_know_are_compared() -> None:
    old = table_of([[0], [1], [2]], (3,))
    item_ids = ["zz", "i0002", "i0000"]  # another order, one gone, one new
    assert [list(rows) for rows in common_rows(old, item_ids)] == [[0, 2], [2, 1]]
    new = np.array([[2], [1], [0]])
    names = align(old, item_ids, new, (3,))
    assert (names[0][0], names[0][1]) == (0, 2)
    assert churn(old, item_ids, renamed(names, new), {"zz": 9.0}) == [{"level": 1, "items": 0.0, "traffic": None}]


def test_without_a_common_item_all_keep_their_names_and_there_is_no_churn_to_tell() -> None:
    old = table_of([[0, 1], [1, 0]], (2, 2))
    names = align(old, ["other"], np.array([[1, 1]]), (2, 2))
    assert [list(level) for level in names] == [[0, 1], [0, 1]]
    assert churn(old, ["other"], np.array([[1, 1]]), {}) == []
    assert churn(old, [], np.zeros((0, 2), int), {}) == []


@pytest.mark.parametrize(("old_size", "new_size"), [(4, 8), (8, 4), (1, 3), (3, 1)])
def test_codebooks_of_another_size(old_size: int, new_size: int) -> None:
    num_items, both = 240, min(old_size, new_size)
    codes = np.arange(num_items)[:, None] % both
    shuffled = np.random.default_rng(2).permutation(new_size)
    old = table_of(codes, (old_size,))
    names = align(old, ids_of(num_items), shuffled[codes], (new_size,))
    assert sorted(names[0]) == list(range(new_size))
    assert churn(old, ids_of(num_items), renamed(names, shuffled[codes]), {})[0]["items"] == 0


def test_names_that_the_new_codebook_is_too_small_for_are_nobody_s() -> None:
    old = table_of([[5], [5], [0], [1]], (6,))
    names = align(old, ids_of(4), np.array([[0], [0], [1], [1]]), (2,))
    assert sorted(names[0]) == [0, 1]
    assert churn(old, ids_of(4), renamed(names, np.array([[0], [0], [1], [1]])), {})[0]["items"] == 0.75


@pytest.mark.parametrize(("old_levels", "new_levels"), [(1, 3), (3, 1), (2, 3)])
def test_fewer_and_more_levels(old_levels: int, new_levels: int) -> None:
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 4, size=(200, 3))
    shuffled = [generator.permutation(4) for _ in range(3)]
    old = table_of(codes[:, :old_levels], (4,) * old_levels)
    new = renamed(shuffled, codes)[:, :new_levels]
    names = align(old, ids_of(200), new, (4,) * new_levels)
    assert [sorted(level) for level in names] == [list(range(4))] * new_levels
    assert [list(level) for level in names[old_levels:]] == [list(range(4))] * max(0, new_levels - old_levels)
    rows = churn(old, ids_of(200), renamed(names, new), {})
    assert [row["level"] for row in rows] == list(range(1, min(old_levels, new_levels) + 1))
    assert {row["items"] for row in rows} == {0.0}


# --- for all tables ---


@st.composite
def retrainings(draw: st.DrawFn) -> tuple[SidTable, list[str], np.ndarray, tuple[int, ...]]:
    """An old table, and the codes of a new quantiser for items of which it may know some."""
    old_sizes, new_sizes = (tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))) for _ in ("old", "new"))
    chosen = draw(st.lists(st.sampled_from(ids_of(12)), unique=True, max_size=12))

    def codes(sizes: tuple[int, ...], num_items: int) -> np.ndarray:
        rows = [[draw(st.integers(0, size - 1)) for size in sizes] for _ in range(num_items)]
        return np.array(rows, np.int64).reshape(-1, len(sizes))

    return table_of(codes(old_sizes, 9), old_sizes), chosen, codes(new_sizes, len(chosen)), new_sizes


@given(retrainings())
def test_names_are_permutations_and_no_item_that_identity_keeps_at_level_1_is_lost(
    retraining: tuple[SidTable, list[str], np.ndarray, tuple[int, ...]],
) -> None:
    old, item_ids, codes, sizes = retraining
    names = align(old, item_ids, codes, sizes)
    assert [sorted(level) for level in names] == [list(range(size)) for size in sizes]
    again = renamed(names, codes) if len(codes) else codes
    assert (undo(names, again) == codes).all() if len(codes) else True
    before, after = churn(old, item_ids, codes, {}), churn(old, item_ids, again, {})
    assert [row["level"] for row in after] == [row["level"] for row in before]
    if after:
        assert after[0]["items"] <= before[0]["items"]
    for first, second in pairwise(after):  # what moved above has moved below
        assert first["items"] <= second["items"]


# --- real trainings ---


def test_another_seed_on_the_same_data_alignment_cuts_the_churn_of_level_1_by_half() -> None:
    vectors = clusters(360)
    graph = neighbours_of(NO_PAIRS, vectors.item_ids, 8)
    first, second = (train(vectors, graph, SMALL, seed).encode(vectors) for seed in (1, 2))
    old = table_of(first, SMALL.codebooks)
    names = align(old, vectors.item_ids, second, SMALL.codebooks)
    before = churn(old, vectors.item_ids, second, {})
    after = churn(old, vectors.item_ids, renamed(names, second), {})
    assert before[0]["items"] > 0.5, "two seeds agreed on the names by chance: nothing was tested"
    assert after[0]["items"] <= before[0]["items"] / 2


@pytest.fixture
def landed(tmp_path: Path) -> Path:
    """Embeddings and histories of 200 items in tmp_path, as the stages want them."""
    vectors = clusters(200)
    (tmp_path / "embeddings").mkdir()
    vectors.save(tmp_path / "embeddings")
    tables.write_parquet(tmp_path / "histories/pairs.parquet", NO_PAIRS)
    row = {"user_id": ["u"], "item_ids": [ids_of(200)[:50]], "timestamps": [list(range(50))], "rewards": [[1.0] * 50]}
    tables.write_parquet(tmp_path / "histories/histories.parquet", conform(pa.table(row), HISTORIES))
    return tmp_path


def make(
    landed: Path,
    name: str,
    previous: Path | None,
    seed: int,
    params: QuantizerParams = SMALL,
    tie_break: int | Literal["auto"] = 4,
) -> Path:
    """The stages quantizer and sids into <landed>/<name>, which is laid out like a release."""
    inputs = {"embeddings": landed / "embeddings", "histories": landed / "histories"}
    for stage in ("quantizer", "sids"):
        (landed / name / stage).mkdir(parents=True)
    quantizer, sids = landed / name / "quantizer", landed / name / "sids"
    run(params, **inputs, base=None, previous=previous, seed=seed, out=quantizer)
    run_sids(SidsParams(tie_break=tie_break), **inputs, quantizer=quantizer, base=None, previous=previous, out=sids)
    return landed / name


def test_the_stages_rename_and_report_what_moved(landed: Path) -> None:
    first = make(landed, "first", None, seed=1)
    assert not (first / "quantizer/alignment.json").exists()
    assert "churn" not in artifact.read_json(first / "sids/report.json")
    alone, after = make(landed, "alone", None, seed=2), make(landed, "after", first, seed=2)
    names = [np.array(level) for level in artifact.read_json(after / "quantizer/alignment.json")["names"]]
    tables_of = {folder.name: SidTable.load(folder / "sids") for folder in (first, alone, after)}
    # the same quantiser but for its names, and the names are those of the artifact
    assert (renamed(names, tables_of["alone"].prefixes) == tables_of["after"].prefixes).all()
    assert not (tables_of["alone"].prefixes == tables_of["after"].prefixes).all()
    report = artifact.read_json(after / "sids/report.json")["churn"]
    traffic = dict.fromkeys(ids_of(50), 1.0)
    old = tables_of["first"]
    assert report == {
        "num_known": 200,
        "before": churn(old, ids_of(200), tables_of["alone"].prefixes, traffic),
        "after": churn(old, ids_of(200), tables_of["after"].prefixes, traffic),
    }
    assert report["after"][0]["items"] <= report["before"][0]["items"] / 2
    kept = (old.codes == tables_of["after"].codes).all(axis=1)
    assert kept.mean() == pytest.approx(1 - report["after"][-1]["items"])  # the digit of a known item is its own


def test_the_same_seed_again_moves_nothing(landed: Path) -> None:
    first = make(landed, "first", None, seed=1)
    again = make(landed, "again", first, seed=1)
    assert (again / "sids/sids.parquet").read_bytes() == (first / "sids/sids.parquet").read_bytes()
    assert [row["items"] for row in artifact.read_json(again / "sids/report.json")["churn"]["after"]] == [0, 0]


def test_a_catalogue_that_has_outgrown_its_codebooks_gets_larger_ones_and_keeps_names(landed: Path) -> None:
    """200 items have 64, 64 codes, and 400 get 128, 256: an old name goes to one of the codes that its items have."""
    auto = SMALL.model_copy(update={"codebooks": "auto"})
    first = make(landed, "first", None, 1, auto, "auto")
    again = make(landed, "again", first, 2, auto, "auto")
    assert [SidTable.load(f / "sids").space.sizes for f in (first, again)] == [(64, 64, 16)] * 2
    grown, known = clusters(400), Vectors.load(landed / "embeddings")
    grown.modalities["text"][:200] = known.modalities["text"]
    grown.save(landed / "embeddings")
    after = make(landed, "after", first, 2, auto, "auto")
    assert SidTable.load(after / "sids").space.sizes == (128, 256, 16)
    assert len(SidTable.load(after / "sids").item_ids) == 400
    moved = artifact.read_json(after / "sids/report.json")["churn"]
    assert moved["num_known"] == 200
    assert moved["after"][0]["items"] < moved["before"][0]["items"]


def test_a_retraining_has_no_fewer_digits_than_before(landed: Path) -> None:
    first = make(landed, "first", None, 1, tie_break=64)
    after = make(landed, "after", first, 2, tie_break="auto")
    assert SidTable.load(after / "sids").space.sizes == (12, 8, 64)
    assert SidTable.load(make(landed, "alone", None, 2, tie_break="auto") / "sids").space.sizes == (12, 8, 16)


def test_a_day_that_continues_a_release_follows_no_other(landed: Path) -> None:
    first = make(landed, "first", None, seed=1)
    (landed / "out").mkdir()
    with pytest.raises(InputError, match="base and previous"):
        run_sids(
            SidsParams(tie_break=4),
            embeddings=landed / "embeddings",
            quantizer=first / "quantizer",
            histories=landed / "histories",
            base=first,
            previous=first,
            out=landed / "out",
        )
