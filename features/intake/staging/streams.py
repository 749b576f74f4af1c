"""Packed bytes → plain bytes, a piece at a time: gzip, zstd, bzip2 and zip, told by what a file begins with.

with open_file(path, "log.csv") as stream:      a gzip that is called log.csv is unpacked all the same
    head = stream.head(1 << 16)                 the first bytes again and again
    while piece := stream.read(1 << 20): …      exactly so many bytes, fewer only at the end
"""

import bz2
import gzip
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pyarrow as pa

from plumline.errors import InputError

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_MAGICS = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzip2"),
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "zip"),
)
_LAYERS = 3  # a.csv.gz.gz happens; more than that is no file of data
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)
"""What the unpackers raise on broken bytes; pa.ArrowInvalid is a ValueError, a zip with a password a RuntimeError."""


class Stream:
    """Plain bytes of one file. Raises InputError that names the file where they cannot be unpacked."""

    def __init__(self, name: str, file: Any, packing: str = "") -> None:
        self.name = name
        self.packing = packing
        """gzip, zstd, bzip2, zip, `gzip in zip`; empty for a plain file."""
        self._file = file
        self._head = b""
        self._given = 0

    def head(self, size: int) -> bytes:
        """The next `size` bytes, which `read` gives again."""
        if len(self._head) < size:
            self._head += self._exactly(size - len(self._head))
        return self._head[:size]

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        taken, self._head = self._head[:size], self._head[size:]
        self._given += len(taken)
        if len(taken) < size:
            more = self._exactly(size - len(taken))
            self._given += len(more)
            taken = taken + more if taken else more
        return taken

    def _exactly(self, size: int) -> bytes:
        pieces: list[bytes] = []
        try:
            while size > 0 and (piece := self._file.read(size)):
                pieces.append(piece)
                size -= len(piece)
        except _BROKEN as error:
            if not self.packing:
                raise InputError(f"{self.name}: cannot be read ({_reason(error)})") from None
            raise InputError(
                f"{self.name}: its {self.packing} is broken after {self._given + sum(map(len, pieces))} bytes "
                f"({_reason(error)}); download or pack it again"
            ) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_file(path: Path, name: str) -> Stream:
    """A file on disk, unpacked as often as it was packed."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({_reason(error)})") from None
    return _unpacked(Stream(name, file))


def open_member(path: Path, member: str, name: str) -> Stream:
    """A file in a zip archive."""
    try:
        archive = zipfile.ZipFile(path)
        file = archive.open(member)
    except (*_BROKEN, KeyError) as error:
        raise InputError(
            f"{name}: cannot be unpacked ({_reason(error)}); unpack the archive, then give the file"
        ) from None
    return _unpacked(Stream(name, _Chained(file, archive.close), "zip"))


def _unpacked(stream: Stream) -> Stream:
    try:
        return _without_layers(stream)
    except BaseException:
        stream.close()
        raise


def _without_layers(stream: Stream) -> Stream:
    for _ in range(_LAYERS):
        begin = stream.head(10)
        packing = next((name for magic, name in _MAGICS if magic.match(begin)), None)
        if packing is None:
            return stream
        if packing == "zip":
            raise InputError(f"{stream.name}: a zip archive in {stream.packing or 'pieces'}; unpack it first")
        inner = _Chained(_AsFile(stream), stream.close)
        shown = f"{packing} in {stream.packing}" if stream.packing else packing
        stream = Stream(stream.name, _Chained(_UNPACKERS[packing](inner), inner.close), shown)
    return stream


def _zstd(file: Any) -> Any:
    # Arrow's own reader. It calls this file from the reading thread alone, so nothing of it outlives the process.
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "zstd": _zstd,
}


class _AsFile:
    """A Stream for readers that ask for a file: read with any size, never seek."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size if size >= 0 else 1 << 62)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class _Chained:
    """A file whose close also closes what it reads from."""

    def __init__(self, file: Any, close: Callable[[], None]) -> None:
        self._file, self._close = file, close

    def read(self, size: int = -1) -> bytes:
        return cast(bytes, self._file.read(size))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._close()


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
