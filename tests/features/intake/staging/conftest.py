"""What the tests of staging share: writing a file, reading it, the line with which it is refused."""

import bz2
import gzip
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from features.intake.staged import FILE, Staged
from features.intake.staging import csv_blocks, json_blocks
from features.intake.staging.stage import stage
from plumline.errors import InputError


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """write("a.csv.gz", content): packed as the name says; `a.csv.zip` holds a.csv."""

    def write(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            data = gzip.compress(data, 1)
        elif name.endswith(".bz2"):
            data = bz2.compress(data)
        elif name.endswith(".zst"):
            data = pa.compress(data, "zstd", asbytes=True)
        elif name.endswith(".zip"):
            packed = BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(path.name.removesuffix(".zip"), data)
            data = packed.getvalue()
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def options() -> Callable[..., Any]:
    """Options of one noun, as far as staging reads them."""
    return lambda **told: SimpleNamespace(
        **{"format": None, "separator": None, "encoding": None, "columns": (), **told}
    )


@pytest.fixture
def staged(tmp_path: Path, options: Callable[..., Any]) -> Callable[..., Staged]:
    """staged(path, …, separator=";")."""

    def staged(*paths: Path | str, stdin: Any = None, **told: Any) -> Staged:
        given = [str(path) for path in paths]
        return stage(given, options(**told), noun="items", into=tmp_path / "scratch", stdin=stdin)

    return staged


@pytest.fixture
def read(staged: Callable[..., Staged]) -> Callable[..., list[dict[str, Any]]]:
    """All rows without FILE."""

    def read(*paths: Path | str, **told: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for block in staged(*paths, **told).blocks():
            block.validate(full=True)
            rows += block.drop_columns([FILE]).to_pylist()
        return rows

    return read


@pytest.fixture
def refusal(staged: Callable[..., Staged]) -> Callable[..., str]:
    """The one line with which files are refused, without the path in front."""

    def refusal(*paths: Path | str, **told: Any) -> str:
        with pytest.raises(InputError) as error:
            for _ in staged(*paths, **told).blocks():
                pass
        text = str(error.value)
        assert "\n" not in text
        return text.removeprefix(f"{paths[0]}: ")

    return refusal


@pytest.fixture
def small_pieces() -> Callable[[int], AbstractContextManager[None]]:
    """with small_pieces(7): files are read in pieces of so many bytes."""

    @contextmanager
    def small_pieces(size: int) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module in (csv_blocks, json_blocks):
                patch.setattr(module, "_FIRST", size)
            patch.setattr(json_blocks, "_PIECE", size)
            patch.setattr(csv_blocks, "_SMALLEST", min(size, csv_blocks._SMALLEST))
            patch.setattr(csv_blocks, "_LARGEST", size)
            yield

    return small_pieces
