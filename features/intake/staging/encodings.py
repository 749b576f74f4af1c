"""Bytes of text in any encoding → UTF-8, a piece at a time; which encoding it is, told or guessed.

    guess = guess_encoding(head, whole)     by a byte order mark, by the NULs of UTF-16, by what can be decoded
    text = Utf8(stream, guess.name, …)      read(size) → UTF-8; what cannot be decoded is a NotDecodableError

Bytes that are no UTF-8 are a single-byte encoding, unless most of what is not ASCII is UTF-8: then the file is UTF-8
with broken bytes, and reading it as anything else would change every other letter in silence.
"""

import codecs
import re
from dataclasses import dataclass

import numpy as np

from features.intake.staging.streams import Stream
from plumline.errors import InputError

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_RUN = re.compile(rb"[\x80-\xff]+")
_UTF8 = re.compile(
    rb"(?<![\x80-\xff])(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})+(?![\x80-\xff])"
)
_WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
_FOREIGN = 0.5  # share of bytes beyond ASCII in the words that have one, above which the script is not Latin
_FEW = 16  # bytes beyond ASCII from which nothing can be told
_SAMPLE = 1 << 15  # bytes that charset-normalizer looks at
_MANY = 8  # sequences of UTF-8 in a file of another encoding that are no chance any more


class NotDecodableError(Exception):
    """Bytes that the encoding has not. line: of the file, from 1; around: bytes to guess another encoding by; plain:
    nothing speaks against one byte a letter, as whole sequences of UTF-8 would."""

    def __init__(self, line: int, byte: int, around: bytes, *, plain: bool) -> None:
        super().__init__(f"line {line}: byte {byte:#04x}")
        self.line, self.byte, self.around, self.plain = line, byte, around, plain


@dataclass(frozen=True)
class Encoding:
    """An encoding as Python calls it, the bytes of its mark, and whether it was guessed from bytes without a mark."""

    name: str
    mark: int = 0
    guessed: bool = False


def guess_encoding(head: bytes, *, whole: bool) -> Encoding:
    """head: the first bytes; whole: there are no more. Raises NotDecodableError for UTF-8 with broken bytes."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return Encoding(name, len(mark))
    wide = None if whole and len(head) % 2 else _utf16(head)
    if wide:
        return Encoding(wide, guessed=True)
    broken = first_broken(head, whole=whole)
    if broken is None:
        return Encoding("utf-8")
    if is_mostly_utf8(head):
        raise NotDecodableError(head.count(b"\n", 0, broken) + 1, head[broken], head, plain=False)
    return single_byte(head)


def known_encoding(name: str) -> str:
    """An encoding as the user calls it → as Python does. Raises InputError for one that there is not."""
    try:
        known = codecs.lookup(name.strip())
        "a".encode(known.name)  # a LookupError for base64 and others that are no text
        if known.incrementaldecoder is None:
            raise LookupError
    except (LookupError, ValueError):
        raise InputError(f"--encoding {name}: no encoding; there are utf-8, utf-16, latin-1, cp1252, gbk, …") from None
    return "utf-8" if known.name == "utf-8-sig" else known.name


def mark_of(head: bytes, name: str) -> Encoding:
    """The told encoding with the mark that the file has of it; utf-16 and utf-32 without a mark are little-endian."""
    for mark, marked in _BOMS:
        if head.startswith(mark) and marked.startswith(name):
            return Encoding(marked, len(mark))
    return Encoding(f"{name}-le" if name in ("utf-16", "utf-32") else name)


def first_broken(data: bytes, *, whole: bool) -> int | None:
    """Where bytes are no UTF-8 any more; a sequence that the end cuts is whole unless nothing follows."""
    if data.isascii():
        return None
    try:
        codecs.utf_8_decode(data, "strict", whole)
    except UnicodeDecodeError as error:
        return error.start
    return None


def is_mostly_utf8(data: bytes) -> bool:
    """Whether more runs of bytes beyond ASCII are UTF-8 than are not."""
    good, bad = _runs(data)
    return good > bad


def _runs(data: bytes) -> tuple[int, int]:
    """Runs of bytes beyond ASCII: whole sequences of UTF-8, and others."""
    good = len(_UTF8.findall(data))
    return good, len(_RUN.findall(data)) - good


def single_byte(sample: bytes) -> Encoding:
    """What bytes that are no UTF-8 most likely are: Western, or what charset-normalizer says of other scripts."""
    words = [word for word in _WORD.findall(sample) if not word.isascii()]
    beyond = sum(len(run) for word in words for run in _RUN.findall(word))
    if beyond > _FEW and beyond > _FOREIGN * sum(map(len, words)):
        from charset_normalizer import from_bytes

        runs = b"\n".join(line for line in sample.split(b"\n") if not line.isascii())[:_SAMPLE]
        best = from_bytes(runs).best()
        if best is not None and not best.encoding.startswith(("utf", "ascii")):
            return Encoding(best.encoding, guessed=True)
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return Encoding("latin-1", guessed=True)
    return Encoding("cp1252", guessed=True)


def _utf16(head: bytes) -> str | None:
    """UTF-16 without a mark: digits, separators and line ends have a NUL in every second byte."""
    sample = head[: min(len(head) // 2 * 2, _SAMPLE)]
    values = np.frombuffer(sample, np.uint8).reshape(-1, 2)
    if not len(values):
        return None
    first, second = (values == 0).mean(axis=0)
    feeds, ends = int((values == 10).sum()), int(((values == 10) & (values[:, ::-1] == 0)).sum())
    if max(first, second) < 0.25 or min(first, second) > 0.02 or ends * 2 < feeds:
        return None  # NULs here and there, and line feeds without one beside them
    return "utf-16-le" if second > first else "utf-16-be"


class Utf8:
    """The text of a stream as UTF-8 without its mark. Raises NotDecodableError; with UTF-8 the reader has to check."""

    def __init__(self, stream: Stream, encoding: Encoding, *, returns: bool = False) -> None:
        """returns: lines end with a carriage return alone, as on the Macs of the last century."""
        self._stream, self._encoding, self._returns = stream, encoding, returns
        self._decoder = None
        if encoding.name != "utf-8":
            self._decoder = codecs.getincrementaldecoder(encoding.name)("strict")
        self._rest = b""
        self._lines = 1
        self._is_guess = encoding.guessed and not encoding.name.startswith("utf")
        self._good = self._bad = 0
        stream.read(encoding.mark)

    def read(self, size: int) -> bytes:
        """UTF-8 of the next `size` bytes, so more or fewer bytes than that; empty only at the end."""
        while True:
            piece = self._stream.read(size)
            text = piece if self._decoder is None else self._decoded(piece)
            if text or not piece:
                return text.replace(b"\r", b"\n") if self._returns else text

    def _decoded(self, piece: bytes) -> bytes:
        assert self._decoder is not None
        self._judge(piece)
        try:
            text = self._decoder.decode(piece, not piece)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self._encoding.name, "replace")
            line = self._lines + before.count("\n")
            around = bytes(error.object[max(error.start - _SAMPLE, 0) : error.start + _SAMPLE])
            raise NotDecodableError(line, error.object[error.start], around, plain=self._is_guess) from None
        self._lines += text.count("\n")
        return text.encode("utf-8", "replace")

    def _judge(self, piece: bytes) -> None:
        """A guess of one byte a letter is withdrawn where most of what follows is UTF-8 after all."""
        if not self._is_guess or piece.isascii():
            return
        good, bad = _runs(piece if len(piece) < 2 * _SAMPLE else piece[:_SAMPLE] + b"\n" + piece[-_SAMPLE:])
        self._good, self._bad = self._good + good, self._bad + bad
        if self._good > self._bad and self._good >= _MANY:
            raise NotDecodableError(self._lines, next(byte for byte in piece if byte > 127), piece, plain=False)
