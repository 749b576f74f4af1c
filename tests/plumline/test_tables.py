import random

import numpy as np
import pyarrow as pa
import pytest

from plumline import tables
from plumline.errors import CorruptArtifactError, MissingArtifactError


def test_parquet_round_trip_is_the_same_bytes_twice(tmp_path):
    table = pa.table({"a": [1, 2, 3], "b": [["x"], [], None]})
    tables.write_parquet(tmp_path / "1.parquet", table)
    tables.write_parquet(tmp_path / "2.parquet", table)
    assert tables.read_parquet(tmp_path / "1.parquet").equals(table)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_bit_flips_in_parquet_pages_never_read_as_other_rows(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 1 << 40, 5000)
    path = tmp_path / "t.parquet"
    tables.write_parquet(path, pa.table({"a": numbers}))
    good = path.read_bytes()
    chance = random.Random(1)
    wrong = 0
    for _ in range(60):
        position = chance.randrange(4, len(good) - 2000)
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << chance.randrange(8))]) + good[position + 1 :])
        try:
            wrong += not np.array_equal(tables.read_parquet(path).column("a").to_numpy(), numbers)
        except CorruptArtifactError as error:
            assert "t.parquet" in str(error)
    assert wrong == 0


def test_npz_holds_no_clock_and_no_pickle(tmp_path):
    tables.save_arrays(tmp_path / "a.npz", x=np.arange(3))
    tables.save_arrays(tmp_path / "b.npz", x=np.arange(3))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with pytest.raises(TypeError, match="Python objects"):
        tables.save_arrays(tmp_path / "c.npz", x=np.array([{}]))


def test_damage_and_absence_are_named(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(CorruptArtifactError, match="bad.npz"):
        tables.load_arrays(tmp_path / "bad.npz")
    with pytest.raises(MissingArtifactError, match="none.parquet"):
        tables.read_parquet(tmp_path / "none.parquet")
