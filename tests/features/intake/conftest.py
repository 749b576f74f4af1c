"""Rows for the tests of intake: a table in memory as if it had been staged from files, and what typing makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from features.intake.facts import Facts
from features.intake.options import Options
from features.intake.staged import FILE, LINE, RowsOf
from features.intake.typed import Reading, look
from plumline.schema import Contract


def make_rows(columns: dict[str, Sequence[Any]], block: int = 2) -> RowsOf:
    """columns: lists of cells or arrow arrays. block: rows of a block. The n-th row lies in line n + 1 of its file."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    table = table.append_column(LINE, pa.array(range(2, table.num_rows + 2), pa.int64()))
    return RowsOf([table.slice(at, block) for at in range(0, table.num_rows, block)], ["log.csv"])


@pytest.fixture
def rows() -> Callable[..., RowsOf]:
    """`make_rows`."""
    return make_rows


@pytest.fixture
def read() -> Callable[[Any], dict[str, list[Any]]]:
    """All blocks of rows as plain columns, without FILE; `line` is LINE."""

    def as_columns(found: Any) -> dict[str, list[Any]]:
        table = pa.concat_tables(list(found.blocks())).to_pydict()
        assert set(table) == {*found.columns, FILE, LINE}
        return {("line" if name == LINE else name): values for name, values in table.items() if name != FILE}

    return as_columns


@dataclass
class Typed:
    """What a reading made of some columns. table: None where there is a problem."""

    reading: Reading
    table: pa.Table | None

    def __getitem__(self, name: str) -> list[Any]:
        """Cells of a column of the contract."""
        assert self.table is not None, self.said
        return self.table.column(name).to_pylist()

    @property
    def said(self) -> list[str]:
        """The findings as they are printed."""
        return [str(finding) for finding in self.reading.findings]

    @property
    def problems(self) -> list[str]:
        """The fatal findings."""
        return [str(finding) for finding in self.reading.findings if finding.fatal]


@pytest.fixture
def typed() -> Callable[..., Typed]:
    """`typed(EVENTS, {"user_id": ["u"], …}, map={…})`: columns looked at and read; lines of log.csv from 2 on."""

    def read(contract: Contract, columns: dict[str, Any], facts: Facts | None = None, **options: Any) -> Typed:
        block, file = options.pop("block", 2), options.pop("file", "log.csv")
        rows = make_rows(columns, block)
        rows.files = (file,)
        now = datetime(2026, 12, 1, tzinfo=UTC)
        reading = look(rows, contract, Options(**options), facts or Facts(), now=now)
        for finding in reading.findings:
            assert "\n" not in str(finding)
        if any(finding.fatal for finding in reading.findings):
            return Typed(reading, None)
        return Typed(reading, pa.concat_tables(reading.blocks()))

    return read
