"""Run a Great Expectations suite over a table and say which rows may not pass.

Great Expectations decides: the rows of a `Verdict` are its unexpected rows and nothing else. What an expectation
cannot see (other tables, other batches) is computed before and stands in a column of its own (`frame` of events.py).
Severity says what follows:

    critical  the rows are quarantined and count towards the limit; a critical check of the whole table stops the work
    warning   the rows are quarantined, no more (deliveries that came twice); a check of the whole table is only noted
    info      noted; the rows pass

Importing Great Expectations takes 5 to 9 seconds, so it happens inside `validate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from plumline.settings import switch_telemetry_off

_ROW = "row"


@dataclass(frozen=True)
class Check:
    """One expectation's outcome.

    reason: what is wrong with a row (or the table) that fails it. observed: bad rows, or the table's own number.
    num_bad: unexpected rows; 0 for checks of a whole table.
    """

    reason: str
    expectation: str
    severity: str
    success: bool
    observed: float | None
    num_bad: int

    def describe(self) -> dict[str, Any]:
        """The check as JSON."""
        return {
            "reason": self.reason,
            "expectation": self.expectation,
            "severity": self.severity,
            "success": self.success,
            "observed": self.observed,
            "num_bad": self.num_bad,
        }


@dataclass(frozen=True)
class Verdict:
    """Outcome of one suite on one table. bad_rows: reason → sorted row numbers (int64, from 0), failed ones only."""

    checks: tuple[Check, ...]
    bad_rows: dict[str, np.ndarray]

    def reasons(self, num_rows: int, *severities: str) -> np.ndarray:
        """The first reason (in suite order) against each row, "" for none. Shape (num_rows,), strings as objects."""
        reasons = np.full(num_rows, "", dtype=object)
        for check in reversed(self.checks):
            if check.severity in severities and check.reason in self.bad_rows:
                reasons[self.bad_rows[check.reason]] = check.reason
        return reasons


def validate(table: pa.Table, suite_name: str, parameters: Mapping[str, Any]) -> Verdict:
    """Run the suite "events" or "items" on a table in memory.

    parameters: numbers for the suite's `$PARAMETER`s. Raises RuntimeError where an expectation itself broke: that says
    nothing about the data.
    """
    switch_telemetry_off()
    import great_expectations as gx

    from features.expectations import events, items

    expectations = {"events": events.build_suite, "items": items.build_suite}[suite_name]()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    suite = context.suites.add(gx.ExpectationSuite(suite_name, expectations=expectations))
    asset = context.data_sources.add_pandas("plumline").add_dataframe_asset(suite_name)
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=suite_name, data=asset.add_batch_definition_whole_dataframe("whole"), suite=suite)
    )
    columns = sorted({c for e in expectations if (c := getattr(e, "column", None)) is not None})
    frame = table.select(columns).to_pandas()
    frame[_ROW] = np.arange(table.num_rows)
    outcome = definition.run(
        batch_parameters={"dataframe": frame},
        expectation_parameters=dict(parameters),
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": [_ROW],
            "return_unexpected_index_query": False,  # or every result carries a filter as long as its rows
        },
    )
    bad_rows: dict[str, np.ndarray] = {}
    return Verdict(tuple(_check(result, bad_rows) for result in outcome.results), bad_rows)


def _check(result: Any, bad_rows: dict[str, np.ndarray]) -> Check:
    config = result.expectation_config
    if result.exception_info.get("raised_exception", True):  # one entry a metric instead: some metric raised
        raise RuntimeError(f"{config.type} of {config.kwargs} broke: {result.exception_info}")
    reason = config.meta["reason"]
    rows = np.array(sorted(int(entry[_ROW]) for entry in result.result.get("unexpected_index_list") or []), np.int64)
    if len(rows):
        bad_rows[reason] = rows
    observed = result.result.get("observed_value", len(rows))
    return Check(
        reason=reason,
        expectation=config.type,
        severity=config.severity.value,
        success=bool(result.success),
        observed=None if observed is None else float(observed),
        num_bad=len(rows),
    )
