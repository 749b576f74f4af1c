"""How many rows of a run are put aside, from where and why; and when that is too many.

Landed days have a limit: behind a day that is full of bad rows there is a person, and a file to be mended. Traffic has
none. What clients report is counted and said, and monitoring watches its share: one bad client stops no day. Rows that
are judged again were put aside before and are no news.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.expectations.events import UNKNOWN_ITEM
from features.expectations.validation import Check
from features.partitions import AGAIN, LANDED, TRAFFIC_FILE
from plumline.errors import RefusedError

_NOUNS = {LANDED: "rows of deliveries", TRAFFIC_FILE: "reactions", AGAIN: "rows that had been put aside"}


@dataclass(frozen=True)
class Limits:
    """How bad a landed day may be. share: of its rows. slack: rows, whatever its size."""

    share: float
    slack: int

    def allowed(self, num_rows: int) -> float:
        """Bad rows that a day, or all days together, may have."""
        return max(self.slack, self.share * num_rows)


class Tally:
    """Rows and bad rows of a run. Repeated deliveries are not bad."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[str, date]] = Counter()
        self._bad: Counter[tuple[str, date, str, str]] = Counter()  # kind, day, source, reason

    def add(self, rows: pa.Table, reasons: np.ndarray) -> None:
        """Count rows. rows: with kind, day, source. reasons: what counts against each, "" for nothing. (num_rows,)"""
        for row in rows.group_by(["kind", "day"]).aggregate([([], "count_all")]).to_pylist():
            self._rows[row["kind"], row["day"]] += row["count_all"]
        bad = rows.select(["kind", "day", "source"]).append_column("reason", pa.array(reasons, pa.string()))
        bad = bad.filter(pc.not_equal(bad.column("reason"), ""))
        for row in bad.group_by(bad.column_names).aggregate([([], "count_all")]).to_pylist():
            self._bad[row["kind"], row["day"], row["source"], row["reason"]] += row["count_all"]

    def check(self, limits: Limits) -> list[dict[str, Any]]:
        """The last lines of a verdict. Raises RefusedError for the worst landed day, or the sum, above the limit."""
        rows = Counter({day: n for (kind, day), n in self._rows.items() if kind == LANDED})
        bad: Counter[date] = Counter()
        for (kind, day, _, _), number in self._bad.items():
            if kind == LANDED:
                bad[day] += number
        over = [day for day, number in bad.items() if number > limits.allowed(rows[day])]
        if over or bad.total() > limits.allowed(rows.total()):
            worst = max(over or bad, key=lambda day: bad[day] / rows[day])
            raise RefusedError(
                f"events: {worst}: {bad[worst]} of {rows[worst]} rows are bad ({len(over)} such days, {bad.total()} of "
                f"{rows.total()} rows in all), allowed are {limits.share:.1%} and {limits.slack} rows a day; "
                f"{self._advice(over or list(bad))}"
            )
        share = bad.total() / rows.total() if rows.total() else 0.0
        told = [Check("too many bad rows", "quarantine_share", "critical", True, share, bad.total()).describe()]
        reactions, unfit = self._num(self._rows, TRAFFIC_FILE), self._num(self._bad, TRAFFIC_FILE)
        if reactions:
            found = Check("reactions put aside", "reactions_share", "info", True, unfit / reactions, unfit)
            told.insert(0, found.describe())
        return told

    def lines(self) -> list[str]:
        """One line for each kind of source of which something was put aside, with the reasons."""
        found = []
        for kind, noun in _NOUNS.items():
            reasons: Counter[str] = Counter()
            for (of, _, _, reason), number in self._bad.items():
                reasons[reason] += number if of == kind else 0
            if reasons.total():
                told = ", ".join(f"{number} × {reason}" for reason, number in reasons.most_common() if number)
                found.append(f"events: {reasons.total()} of {self._num(self._rows, kind)} {noun} are put aside: {told}")
        return found

    def _num(self, counter: Mapping[Any, int], kind: str) -> int:
        return sum(number for key, number in counter.items() if key[0] == kind)

    def _advice(self, days: list[date]) -> str:
        """The most frequent reason on these days, the delivery that it comes from most, and what can be done."""
        reasons: Counter[str] = Counter()
        deliveries: Counter[str] = Counter()
        for (kind, day, source, reason), number in self._bad.items():
            if kind == LANDED and day in days:
                reasons[reason] += number
                deliveries[source.partition("/")[0]] += number
        [(reason, number)], [(delivery, _)] = reasons.most_common(1), deliveries.most_common(1)
        mend = "land the items, " if reason == UNKNOWN_ITEM else ""
        return (
            f"most: {reason} ({number}); {mend}take the delivery back with plumline unland {delivery}, put a mended "
            f"one in its place with plumline land --replace {delivery}, or raise events.quarantine_limit"
        )
