"""The SID table: known items never move, digits are handed out as written, the report adds up."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams
from models.semantic_ids.quantizer_training import neighbours_of, train
from models.semantic_ids.sids import SidsParams, SidTable, TieBreakBy, describe_table, digit_of, extend_table, run
from models.semantic_ids.vectors import Vectors
from plumline import artifact, tables
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, MixedReleaseError
from plumline.sid import SidSpace

PARAMS = QuantizerParams(codebooks=(8, 4), latent_dimensions=4, hidden=8, steps=20, warmup_steps=5)


def make_vectors(rows: range, *, seed: int = 0) -> Vectors:
    values = np.random.default_rng(seed).normal(size=(rows.stop, 6)).astype(np.float32)[rows.start :]
    return Vectors([f"i{row:05d}" for row in rows], {"text": values}, {"text": np.ones(len(values), bool)})


def write_vectors(folder: Path, vectors: Vectors) -> Path:
    folder.mkdir(parents=True)
    vectors.save(folder)
    return folder


def write_quantizer(folder: Path, *, seed: int = 0) -> Path:
    vectors = make_vectors(range(200))
    pairs = pa.table(
        {"item_a": pa.array([], pa.string()), "item_b": pa.array([], pa.string()), "count": pa.array([], pa.int64())}
    )
    folder.mkdir(parents=True)
    train(vectors, neighbours_of(pairs, vectors.item_ids, 4), PARAMS, seed).save(folder)
    return folder


def make(params: SidsParams, *, embeddings: Path, quantizer: Path, base: Path | None, out: Path) -> None:
    nowhere = embeddings.parent / "histories"  # read only where there is a previous release
    run(params, embeddings=embeddings, quantizer=quantizer, histories=nowhere, base=base, previous=None, out=out)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release's quantizer and SID table of 200 items."""
    folder = tmp_path_factory.mktemp("release")
    quantizer = write_quantizer(folder / "quantizer")
    embeddings = write_vectors(folder / "embeddings", make_vectors(range(200)))
    (folder / "sids").mkdir()
    make(SidsParams(tie_break=4), embeddings=embeddings, quantizer=quantizer, base=None, out=folder / "sids")
    return folder


def test_stage_leaves_these_files_and_a_report_that_adds_up(base: Path) -> None:
    assert {path.name for path in (base / "sids").iterdir()} == {"sids.parquet", "space.json", "report.json"}
    table = SidTable.load(base / "sids")
    assert table.space == SidSpace((8, 4, 4))
    assert table.tie_break
    assert table.item_ids == sorted(table.item_ids)
    assert table.codes.shape == (200, 3)
    assert table.codes.dtype == np.int32
    codes = Quantizer.load(base / "quantizer").encode(make_vectors(range(200)))
    assert np.array_equal(table.prefixes, codes)
    assert table.codes_of["i00007"] == tuple(table.codes[7].tolist())
    report = artifact.read_json(base / "sids/report.json")
    _, counts = np.unique(table.codes, axis=0, return_counts=True)
    _, prefix_counts = np.unique(table.prefixes, axis=0, return_counts=True)
    assert report["num_items"] == 200
    assert report["collisions"] == counts[counts > 1].sum() > 0
    assert report["largest_bucket"] == counts.max()
    assert report["uniqueness"] == (prefix_counts == 1).sum() / 200
    assert report["uniqueness_with_tie_break"] == pytest.approx(1 - report["collisions"] / 200)
    assert [level["size"] for level in report["levels"]] == [8, 4, 4]


def test_with_base_old_rows_stay_and_new_ones_come(base: Path, tmp_path: Path) -> None:
    embeddings = write_vectors(tmp_path / "embeddings", make_vectors(range(200, 260)))
    (tmp_path / "out").mkdir()
    make(SidsParams(tie_break=4), embeddings=embeddings, quantizer=base / "quantizer", base=base, out=tmp_path / "out")
    old, new = SidTable.load(base / "sids"), SidTable.load(tmp_path / "out")
    assert len(new.item_ids) == 260
    assert np.array_equal(new.codes[:200], old.codes)
    assert np.array_equal(new.prefixes[200:], Quantizer.load(base / "quantizer").encode(make_vectors(range(200, 260))))


def test_with_base_and_nothing_new_the_table_is_the_same_bytes(base: Path, tmp_path: Path) -> None:
    embeddings = write_vectors(tmp_path / "embeddings", make_vectors(range(200, 200)))
    (tmp_path / "out").mkdir()
    make(SidsParams(tie_break=4), embeddings=embeddings, quantizer=base / "quantizer", base=base, out=tmp_path / "out")
    for name in ("sids.parquet", "space.json", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / "sids" / name).read_bytes()


def test_the_daily_run_imports_no_torch(base: Path, tmp_path: Path, root: Path) -> None:
    embeddings = write_vectors(tmp_path / "embeddings", make_vectors(range(200, 205)))
    (tmp_path / "out").mkdir()
    code = (
        "import sys; from pathlib import Path; from models.semantic_ids.sids import *\n"
        f"base = Path({str(base)!r})\n"
        f"run(SidsParams(tie_break=4), embeddings=Path({str(embeddings)!r}), quantizer=base / 'quantizer', "
        f"histories=base, base=base, previous=None, out=Path({str(tmp_path / 'out')!r}))\n"
        "print(sorted({'torch', 'transformers', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert len(SidTable.load(tmp_path / "out").item_ids) == 205


def test_another_quantizer_than_the_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = write_quantizer(tmp_path / "quantizer", seed=1)
    embeddings = write_vectors(tmp_path / "embeddings", make_vectors(range(200, 210)))
    with pytest.raises(MixedReleaseError, match="another quantizer"):
        make(SidsParams(tie_break=4), embeddings=embeddings, quantizer=other, base=base, out=tmp_path)
    with pytest.raises(InputError, match=r"sids\.tie_break is 8 but the SIDs of .* have levels \(8, 4, 4\)"):
        make(SidsParams(tie_break=8), embeddings=embeddings, quantizer=base / "quantizer", base=base, out=tmp_path)


AUTO = SidsParams(tie_break="auto", tie_break_by="arrival")


def alike(num_items: int) -> Vectors:
    """Items that nothing tells apart."""
    vectors = make_vectors(range(1)).take(np.zeros(num_items, int))
    return Vectors([f"a{row:05d}" for row in range(num_items)], vectors.modalities, vectors.masks)


def test_as_many_digits_as_the_catalogue_needs(base: Path, tmp_path: Path) -> None:
    for num_items, digits in ((16, 16), (17, 32), (200, 256)):
        embeddings, out = write_vectors(tmp_path / f"v{num_items}", alike(num_items)), tmp_path / f"o{num_items}"
        out.mkdir()
        make(AUTO, embeddings=embeddings, quantizer=base / "quantizer", base=None, out=out)
        table = SidTable.load(out)
        assert (table.tie_break, table.space.sizes) == (True, (8, 4, digits))
        report = artifact.read_json(out / "report.json")
        assert (report["uniqueness"], report["uniqueness_with_tie_break"]) == (0, 1)


def test_a_day_has_as_many_digits_as_its_base(base: Path, tmp_path: Path) -> None:
    """Four, and what finds none free shares the last one, as ever; a base without a tie-break has none."""
    embeddings = write_vectors(tmp_path / "embeddings", alike(40))
    for name in ("out", "plain", "day"):
        (tmp_path / name).mkdir()
    make(AUTO, embeddings=embeddings, quantizer=base / "quantizer", base=base, out=tmp_path / "out")
    old, new = SidTable.load(base / "sids"), SidTable.load(tmp_path / "out")
    assert (new.space, new.tie_break) == (old.space, True)
    assert all(new.codes_of[item] == row for item, row in old.codes_of.items())
    release = tmp_path / "release"
    shutil.copytree(base, release)
    make(
        SidsParams(),
        embeddings=base / "embeddings",
        quantizer=base / "quantizer",
        base=None,
        out=tmp_path / "plain",
    )
    shutil.rmtree(release / "sids")
    shutil.copytree(tmp_path / "plain", release / "sids")
    make(AUTO, embeddings=embeddings, quantizer=base / "quantizer", base=release, out=tmp_path / "day")
    assert SidTable.load(tmp_path / "day").space.sizes == (8, 4)


def test_the_report_says_how_many_items_have_content_of_their_own(base: Path, tmp_path: Path) -> None:
    """The quantizer's figure, where it has one; also for a day, whose vectors are those of the new items alone."""
    quantizer = tmp_path / "quantizer"
    shutil.copytree(base / "quantizer", quantizer)
    artifact.write_json(quantizer / "report.json", {"num_items": 200, "content_uniqueness": 0.25})
    assert "content_uniqueness" not in artifact.read_json(base / "sids/report.json")
    for name, of in (("first", None), ("day", base)):
        (tmp_path / name).mkdir()
        params = SidsParams(tie_break=4)
        make(params, embeddings=base / "embeddings", quantizer=quantizer, base=of, out=tmp_path / name)
        assert artifact.read_json(tmp_path / name / "report.json")["content_uniqueness"] == 0.25


def test_digits_by_hand() -> None:
    prefixes = np.array([[1, 1]] * 4 + [[0, 1]])
    table = extend_table(None, ["d", "b", "a", "c", "e"], prefixes, (2, 2), 3, "arrival")
    assert table.codes_of == {"a": (1, 1, 0), "b": (1, 1, 1), "c": (1, 1, 2), "d": (1, 1, 2), "e": (0, 1, 0)}
    later = extend_table(table, ["0", "a"], np.array([[0, 1], [0, 0]]), (2, 2), 3, "arrival")
    assert later.codes_of == {**table.codes_of, "0": (0, 1, 1)}  # "a" keeps its row, "0" comes after "e"
    assert describe_table(later)["collisions"] == 2
    plain = extend_table(None, ["b", "a"], np.array([[1, 1], [1, 1]]), (2, 2), 0)
    assert plain.space.sizes == (2, 2)
    assert plain.codes_of == {"a": (1, 1), "b": (1, 1)}


def test_a_digit_of_the_id_is_even_and_the_same_everywhere() -> None:
    assert [digit_of(item, 16) for item in ("a", "b", "é", "")] == [15, 5, 15, 4]
    counts = np.bincount([digit_of(f"item{number}", 16) for number in range(16_000)], minlength=16)
    assert counts.min() > 850
    table = extend_table(None, ["b", "a"], np.array([[1, 1], [0, 1]]), (2, 2), 16)
    assert table.codes_of == {"a": (0, 1, digit_of("a", 16)), "b": (1, 1, digit_of("b", 16))}


def test_after_a_retraining_an_item_whose_prefix_stayed_keeps_its_digit() -> None:
    prefixes = np.array([[1, 1]] * 3 + [[0, 1]])
    old = extend_table(None, ["a", "b", "c", "d"], prefixes, (2, 2), 4, "arrival")
    digits = {item: (row[:-1], row[-1]) for item, row in old.codes_of.items()}
    moved = np.array([[0, 0], [1, 1], [1, 1], [1, 1]])
    new = extend_table(None, ["a", "b", "c", "d"], moved, (2, 2), 4, "arrival", digits=digits)
    assert new.codes_of == {"a": (0, 0, 0), "b": (1, 1, 1), "c": (1, 1, 2), "d": (1, 1, 0)}


def test_item_twice_is_refused() -> None:
    with pytest.raises(InputError, match="item 'a' stands there twice"):
        extend_table(None, ["a", "b", "a"], np.zeros((3, 1), int), (2,), 0)


@st.composite
def arrivals(draw: st.DrawFn) -> list[dict[str, tuple[int, int]]]:
    """Some days of items, each with a prefix of a small space; days may name items that are known already."""
    prefix = st.tuples(st.integers(0, 1), st.integers(0, 2))
    return draw(st.lists(st.dictionaries(st.sampled_from("abcdefghijklmnop"), prefix, max_size=8), max_size=5))


@given(arrivals(), st.sampled_from([0, 2, 3, 100]), st.sampled_from(["item_id", "arrival"]))
def test_known_items_never_move_and_order_within_a_day_is_nothing(
    days: list[dict[str, tuple[int, int]]], tie_break: int, by: TieBreakBy
) -> None:
    table: SidTable | None = None
    first_seen: dict[str, tuple[int, int]] = {}
    for day in days:
        ids = list(day)
        codes = np.array([day[item] for item in ids], np.int64).reshape(-1, 2)
        before: dict[str, tuple[int, ...]] = {} if table is None else table.codes_of
        turned = extend_table(table, ids[::-1], codes[::-1], (2, 3), tie_break, by)
        table = extend_table(table, ids, codes, (2, 3), tie_break, by)
        assert turned.codes_of == table.codes_of
        assert all(table.codes_of[item] == row for item, row in before.items())
        first_seen = {**day, **first_seen}
    if table is None:
        return
    assert {item: row[:2] for item, row in table.codes_of.items()} == first_seen
    if by == "item_id":  # nothing but the item decides, so all at once is the same table
        once = np.array(list(first_seen.values()), np.int64).reshape(-1, 2)
        assert extend_table(None, list(first_seen), once, (2, 3), tie_break).codes_of == table.codes_of
        return
    buckets: dict[tuple[int, ...], list[int]] = {}
    for row in table.codes_of.values():
        buckets.setdefault(row[:2], []).append(row[-1])
    for digits in buckets.values():
        if tie_break:  # the first ones are all handed out, and only the last one is ever shared
            expected = [min(place, tie_break - 1) for place in range(len(digits))]
            assert sorted(digits) == expected


@pytest.mark.parametrize("by", ["item_id", "arrival"])
def test_ten_thousand_items_in_random_order_and_batches(by: TieBreakBy) -> None:
    generator = np.random.default_rng(3)
    ids = [f"i{row:05d}" for row in range(10_000)]
    codes = generator.integers(0, (40, 20), size=(10_000, 2))
    once = extend_table(None, ids, codes, (40, 20), 8, by)
    for num_batches in (1, 7, 100):
        table: SidTable | None = None
        seen: dict[str, tuple[int, ...]] = {}
        for batch in np.array_split(generator.permutation(10_000), num_batches):
            table = extend_table(table, [ids[row] for row in batch], codes[batch], (40, 20), 8, by)
            assert all(table.codes_of[item] == row for item, row in seen.items())
            seen = table.codes_of
        assert table is not None
        assert np.array_equal(table.prefixes, codes)
        if by == "item_id" or num_batches == 1:
            assert table.codes_of == once.codes_of
        else:  # which item has which digit depends on the batches, the counts do not
            assert describe_table(table) == describe_table(once)


def test_only_what_is_past_capacity_collides_by_arrival() -> None:
    codes = np.random.default_rng(3).integers(0, (40, 20), size=(10_000, 2))
    table = extend_table(None, [f"i{row:05d}" for row in range(10_000)], codes, (40, 20), 8, "arrival")
    _, sizes = np.unique(codes, axis=0, return_counts=True)
    assert describe_table(table)["collisions"] == sum(size - 7 for size in sizes if size > 8)


def test_report_of_an_empty_table() -> None:
    report = describe_table(extend_table(None, [], np.zeros((0, 1), int), (2,), 2))
    assert (report["num_items"], report["uniqueness"], report["largest_bucket"]) == (0, 0, 0)


def test_params_refuse_a_level_that_tells_nothing_apart() -> None:
    for value in (1, -1, True, "many", 2.5):
        with pytest.raises(ValidationError, match="give auto, 0 or at least 2"):
            SidsParams.model_validate({"tie_break": value})
    assert [SidsParams.model_validate({"tie_break": value}).tie_break for value in ("auto", 0, 2)] == ["auto", 0, 2]


def test_reader_refuses_codes_out_of_the_space(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"space\.json"):
        SidTable.load(tmp_path)
    artifact.write_json(tmp_path / "space.json", {"sizes": [2], "tie_break": False})
    codes = pa.array([[0], [2]], pa.list_(pa.int32()))
    tables.write_parquet(tmp_path / "sids.parquet", pa.table({"item_id": ["a", "b"], "codes": codes}))
    with pytest.raises(CorruptArtifactError, match="codes outside"):
        SidTable.load(tmp_path)
