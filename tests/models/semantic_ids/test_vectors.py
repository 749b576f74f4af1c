"""Vectors on disk: what is written is read, block by block as well as whole; damage and holes are seen."""

from pathlib import Path

import numpy as np
import pytest

from models.semantic_ids.vectors import FILE, VectorFile, Vectors, VectorWriter, concatenate
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError


def make_vectors(num_items: int, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    modalities = {"emb_b": generator.normal(size=(num_items, 3)), "emb_a": generator.normal(size=(num_items, 5))}
    masks = {name: generator.random(num_items) < 0.7 for name in modalities}
    values = {n: np.where(masks[n][:, None], v, 0).astype(np.float32) for n, v in modalities.items()}
    return Vectors([f"i{row:05d}" for row in range(num_items)], values, masks)


def assert_equal(found: Vectors, expected: Vectors) -> None:
    assert found.item_ids == expected.item_ids
    assert set(found.modalities) == set(expected.modalities)
    for name, values in expected.modalities.items():
        assert found.modalities[name].dtype == np.float32
        assert np.array_equal(found.modalities[name], values)
        assert np.array_equal(found.masks[name], expected.masks[name])


@pytest.mark.parametrize("num_items", [0, 1, 20_000])
def test_what_is_written_is_read(num_items: int, tmp_path: Path) -> None:
    vectors = make_vectors(num_items)
    vectors.save(tmp_path)
    assert_equal(Vectors.load(tmp_path), vectors)
    file = VectorFile(tmp_path)
    assert (file.num_items, file.item_ids(), file.widths) == (num_items, vectors.item_ids, {"emb_a": 5, "emb_b": 3})
    assert_equal(concatenate(list(file.blocks(777)), file.widths), vectors)
    assert all(len(block.item_ids) <= 777 for block in file.blocks(777))


def test_blocks_of_any_size_write_the_same_values_and_the_same_bytes_again(tmp_path: Path) -> None:
    vectors = make_vectors(9000)
    for name, size in (("once", 9000), ("again", 9000), ("blocks", 1234)):
        with VectorWriter(tmp_path / name, vectors.widths) as writer:
            for block in vectors.blocks(size):
                writer.write(block)
    assert_equal(Vectors.load(tmp_path / "blocks"), vectors)
    assert (tmp_path / "once" / FILE).read_bytes() == (tmp_path / "again" / FILE).read_bytes()


def test_some_rows(tmp_path: Path) -> None:
    vectors = make_vectors(20_000)
    vectors.save(tmp_path)
    rows = np.array([0, 3, 8191, 8192, 16_384, 19_999])
    assert_equal(VectorFile(tmp_path).take(rows), vectors.take(rows))
    assert_equal(VectorFile(tmp_path).take(rows[:0]), vectors.take(rows[:0]))


def test_selecting_modalities_names_what_is_not_there() -> None:
    vectors = make_vectors(4)
    assert list(vectors.select(["emb_b"]).modalities) == ["emb_b"]
    with pytest.raises(InputError, match=r"no modality 'emb_c'; there are \['emb_a', 'emb_b'\]"):
        vectors.select(["emb_a", "emb_c"])


def test_readers_name_what_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"vectors\.parquet: no such file; run the stage embeddings"):
        Vectors.load(tmp_path)
    make_vectors(100).save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for broken in (whole[:-40], b"\0" * 40, whole[:1500] + bytes([whole[1500] ^ 1]) + whole[1501:]):
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(CorruptArtifactError, match=r"vectors\.parquet: unreadable"):
            Vectors.load(tmp_path)
