"""Tables and arrays, so that damage is seen: parquet with page checksums, npz without pickle."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumline.errors import CorruptArtifactError, MissingArtifactError


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table with a checksum a page (zstd). Equal tables give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, checking every page's checksum. Raises CorruptArtifactError naming the file."""
    if not path.is_file():
        raise MissingArtifactError(f"{path}: no such file; run the stage that writes it")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptArtifactError(
            f"{path}: unreadable parquet ({error}); run the stage that writes it again"
        ) from None


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as one uncompressed npz (no pickle, no clock: equal arrays give equal bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"{path}: array {name!r} holds Python objects; only plain numbers are stored")
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an npz without pickle. Raises CorruptArtifactError naming the file."""
    if not path.is_file():
        raise MissingArtifactError(f"{path}: no such file; run the stage that writes it")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, KeyError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: unreadable npz ({error}); run the stage that writes it again") from None


def column(table: pa.Table, name: str) -> Any:
    """A column as a plain Python list (strings, lists of ints …); use numpy for numbers."""
    return table.column(name).to_pylist()
