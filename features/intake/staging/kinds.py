"""What a file is by what it begins with, wherever it lies and whatever it is called.

kind_of(name, head, …)     csv, json or parquet; an InputError that says what it is instead
"""

import json
import re

from plumline.errors import InputError

_OTHERS = (
    (b"ARROW1", "an Arrow or Feather file; write it as parquet"),
    (b"ORC", "an ORC file; write it as parquet"),
    (b"Obj\x01", "an Avro file; write it as parquet"),
    (b"SQLite format 3\0", "an SQLite database; write its table as CSV or parquet"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; write it as parquet"),
    (b"\x93NUMPY", "a NumPy array; write it as parquet"),
    (b"\xfd7zXZ\0", "packed with xz; unpack it first, or pack it with gzip, zstd or bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it first"),
    (b"\x04\x22\x4d\x18", "packed with lz4; unpack it first, or pack it with gzip, zstd or bzip2"),
    (b"\xff\x06\x00\x00sNaPpY", "packed with snappy; unpack it first, or pack it with gzip, zstd or bzip2"),
    (b"\xd0\xcf\x11\xe0", "an old office document; save the sheet as CSV"),
    (b"%PDF", "a PDF document, not data"),
    (b"\x7fELF", "a program, not data"),
    (b"PARE", "a parquet file with an encrypted footer; write it unencrypted"),
    (b"version https://git-lfs.github.com", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
)
"""First bytes → what such a file is and what to do; the kinds that are read are not here."""
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_NAMES = {"csv": "lines of separated cells", "json": "JSON", "parquet": "parquet"}
_CONTROL = re.compile(rb"[\x00\x04-\x08\x0e-\x1a]")  # 1 to 3 and 1b to 1f separate cells somewhere


def refuse_others(name: str, head: bytes) -> None:
    """Raises InputError for a known kind of file that is none of ours."""
    for begin, what in _OTHERS:
        if head.startswith(begin):
            raise InputError(f"{name}: is {what}")
    if head[257:262] == b"ustar":
        raise InputError(f"{name}: is a tar archive; unpack it first")
    if _PAGE.match(head):
        raise InputError(f"{name}: is a web page or XML, not data; was it fetched by its right address?")
    if _PICKLE.match(head):
        raise InputError(f"{name}: is a Python pickle; write it as parquet")


def is_parquet(name: str, head: bytes, *, told: str | None) -> bool:
    """Whether it is parquet. Raises InputError if it was told to be, and is not."""
    found = head.startswith(b"PAR1")
    if told is not None and found != (told == "parquet"):
        stands = "parquet" if found else "no parquet"
        raise InputError(f"{name}: is {stands}, though --format says {told}; leave --format out")
    return found


def refuse_bytes(name: str, head: bytes) -> None:
    """Raises InputError for bytes that are no text in any encoding of one byte a letter or UTF-8."""
    sample = head[: 1 << 16]
    controls = len(_CONTROL.findall(sample))
    if controls > 4 and controls * 50 > len(sample):
        raise InputError(f"{name}: holds bytes that are no text; wanted are {', '.join(_NAMES.values())}")


def text_kind(name: str, text: str, *, by_name: str | None, told: str | None) -> str:
    """csv or json for a text: as told, else by what it begins with.

    A brace or a bracket begins JSON, in a file that is called CSV only if its first line can be read as such. Raises
    InputError for a file that is called JSON and is neither.
    """
    if told is not None:
        return told
    begin = text.lstrip()[:1]
    if begin in ("{", "["):
        return "json" if by_name != "csv" or _is_json(text.lstrip()) else "csv"
    if by_name == "json" and begin and not _is_separated(text):
        line = text[: len(text) - len(text.lstrip())].count("\n") + 1
        raise InputError(f"{name}: line {line}: no JSON ({text.lstrip()[:20]!r} begins neither an object nor a list)")
    if by_name == "parquet" and not begin:
        raise InputError(f"{name}: holds no parquet but blank lines")
    return "csv"


def _is_json(text: str) -> bool:
    line = text.split("\n", 1)[0]
    try:
        value, _ = json.JSONDecoder(parse_int=str).raw_decode(line)
    except RecursionError:
        return True
    except json.JSONDecodeError as error:
        return bool(re.match(r"\[\s*(\{|\n)|\{\s*(\n|\")", text)) and error.pos >= len(line.rstrip()) - 1
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(part, dict) for part in value))


def _is_separated(text: str) -> bool:
    """Whether the first lines can be lines of cells: as many separators in each of them."""
    lines = [line for line in text.split("\n")[:20] if line.strip()][:10]
    for separator in (",", "\t", ";", "|"):
        counts = {line.count(separator) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts != {0}:
            return True
    return False
