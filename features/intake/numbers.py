"""Optional numbers: 12, $1,299.00, 1.299,00 €, true. What is none is left empty and counted; it never blocks a row.

    column = NumberColumn("price", "price_eur", words, tally)
    column.look(values, places)     every block once: is 1,299 a thousand or a fraction
    column.decide()
    column.read(values, places)     every block again, as float64

1,299 and 1.299 can be either. They are read as the other cells of the column say (12,50 or 1.299,00; 12.5 or 1,299.00);
where those contradict each other they are left empty, and where they are silent a comma groups thousands.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from features.intake.findings import Places, Tally
from features.intake.words import Words, as_text, is_numeric, is_textual, map_values

_CURRENCY = r"(?:US\$|CA\$|A\$|R\$|[$€£¥₹₽₩₺₫฿]|USD|EUR|GBP|JPY|CNY|INR|CAD|AUD|CHF|BRL|RUB|KRW|SEK|NOK|DKK|PLN|kr|zł)"
_DRESSED = re.compile(rf"^([+-]?)\s*(?:{_CURRENCY})?\s*([+-]?[0-9][0-9.,'’\s]*)(?:{_CURRENCY})?$")
_POINT = r"^[+-]?[0-9]+\.([0-9]{1,2}|[0-9]{4,})$|^[+-]?0\.[0-9]+$|[0-9],[0-9]{3}[.,]"  # a point before the fraction
_COMMA = r"^[+-]?[0-9]+,([0-9]{1,2}|[0-9]{4,})$|^[+-]?0,[0-9]+$|[0-9]\.[0-9]{3}[.,]"  # a comma before it
_EITHER = re.compile(r"^[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}$")
_PLAIN = re.compile(r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")
_GROUPED_POINT = re.compile(r"^[+-]?[1-9][0-9]{0,2}(?:([,'’\s])[0-9]{3})(?:\1[0-9]{3})*(?:\.[0-9]*)?$")
_GROUPED_COMMA = re.compile(r"^[+-]?[1-9][0-9]{0,2}(?:([.'’\s])[0-9]{3})(?:\1[0-9]{3})*(?:,[0-9]*)?$")
_UNGROUPED_COMMA = re.compile(r"^[+-]?[0-9]+,[0-9]+$")
_TRUTHS = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}


class NumberColumn:
    """One column of optional numbers. source: its name in the file; `duration_ms` → `duration_s` is divided by 1000."""

    def __init__(self, name: str, source: str, words: Words, tally: Tally) -> None:
        self.name, self._words, self._tally = name, words, tally
        self._is_milli = name.endswith("_s") and source.endswith("_ms")
        self._source = source
        self._has_point = self._has_comma = False

    def look(self, values: pa.Array, places: Places) -> None:
        """See one block: which of point and comma stands before fractions."""
        if not is_textual(values.type) or (self._has_point and self._has_comma):
            return
        text = self._words.clean(as_text(values))
        bare = map_values(text, _undress, pc.match_substring_regex(text, r"[^0-9.,+\-]"))
        self._has_point = self._has_point or _any(bare, _POINT)
        self._has_comma = self._has_comma or _any(bare, _COMMA)

    def decide(self) -> None:
        """Say what was decided."""
        if self._is_milli:
            self._tally.note(self.name, f"= {self._source} / 1000")
        if self._has_comma and not self._has_point:
            self._tally.note(self.name, "is read with a comma before the fraction, as in 1.299,00")

    def read(self, values: pa.Array, places: Places) -> pa.Array:
        """Numbers of a block as float64."""
        numbers = self._read(values, places)
        self._tally.add(self.name, "is not finite and is left empty", pc.is_inf(numbers), values, places)
        numbers = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))
        return pc.divide(numbers, 1000.0) if self._is_milli else numbers

    def _read(self, values: pa.Array, places: Places) -> pa.Array:
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.int8())
        if is_numeric(values.type):
            return values.cast(pa.float64(), safe=False)
        text = self._words.clean(as_text(values))
        self._tally.nulled(self.name, self._words, values, places)
        if not self._has_comma:
            try:
                return text.cast(pa.float64())
            except pa.ArrowInvalid:
                pass
        coded = text.dictionary_encode()
        found = [self._parse(value) for value in coded.dictionary.to_pylist()]
        numbers = pa.array(found, pa.float64()).take(coded.indices)
        missed = pc.and_(pc.is_null(numbers), pc.is_valid(text))
        self._tally.add(self.name, "is no number and is left empty", missed, values, places)
        return numbers

    def _parse(self, text: str) -> float | None:
        bare = _undress(text)
        if text in _TRUTHS or bare is None:
            return _TRUTHS.get(text)
        if _EITHER.match(bare) and self._has_comma:
            return None if self._has_point else _read_comma(bare)
        if _PLAIN.match(bare):
            return float(bare)
        if _GROUPED_POINT.match(bare):
            return float(re.sub(r"[,'’\s]", "", bare))
        return _read_comma(bare)


def _read_comma(bare: str) -> float | None:
    """1.299,00 and 1299,5."""
    if not (_GROUPED_COMMA.match(bare) or _UNGROUPED_COMMA.match(bare)):
        return None
    return float(re.sub(r"[.'’\s]", "", bare).replace(",", "."))


def _any(text: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(text, pattern)).as_py())


def _undress(text: str) -> str | None:
    """12.50 of "$12.50", "12.50 €" and "-$12.50"; None where more stands there."""
    if _PLAIN.match(text):
        return text
    found = _DRESSED.match(text)
    if found is None or (found[1] and found[2][0] in "+-"):
        return None
    return (found[1] + found[2]).strip()
