"""What a landed item must be. `frame` adds `described`; `build_suite` is the suite.

An item that nothing describes cannot get a Semantic ID and is quarantined. Odd prices and lengths are only noted:
-1 for "not known" is common, and the item is still there to be bought.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plumline.schema import DESCRIBING

UNDESCRIBED = f"nothing describes it: no {', '.join(DESCRIBING)} and no emb_*"


def described(items: pa.Table) -> pa.ChunkedArray:
    """Which items (bool, one a row) have at least one describing column filled: text, a topic or a vector."""
    found = pa.chunked_array([np.zeros(items.num_rows, bool)])
    for name in items.column_names:
        if name in DESCRIBING or name.startswith("emb_"):
            values = items.column(name)
            filled = pc.is_valid(values)
            if name == "topics":
                filled = pc.fill_null(pc.greater(pc.list_value_length(values), 0), False)
            found = pc.or_(found, filled)
    return found


def frame(items: pa.Table) -> pa.Table:
    """Items plus `described` (bool) and `retires_late` (bool: not retired before it was published)."""
    order = pc.fill_null(pc.greater_equal(items.column("retired_at"), items.column("published_at")), True)
    return items.append_column("described", described(items)).append_column("retires_late", order)


def build_suite() -> list[Any]:
    """The expectations, worst first; no parameters."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity as Severity

    suite: list[Any] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, severity=Severity.CRITICAL, meta={"reason": "no rows"}),
        gxe.ExpectColumnValuesToNotBeNull(
            column="item_id", severity=Severity.CRITICAL, meta={"reason": "item_id missing"}
        ),
        gxe.ExpectColumnValuesToBeUnique(
            column="item_id", severity=Severity.CRITICAL, meta={"reason": "item_id repeated"}
        ),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="item_id",
            min_value=1,
            max_value=512,
            severity=Severity.CRITICAL,
            meta={"reason": "item_id empty or longer than 512 characters"},
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="described", value_set=[True], severity=Severity.CRITICAL, meta={"reason": UNDESCRIBED}
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="retires_late", value_set=[True], severity=Severity.INFO, meta={"reason": "retired before published"}
        ),
    ]
    for name in ("price", "duration_s"):
        suite.append(
            gxe.ExpectColumnValuesToBeBetween(
                column=name, min_value=0, severity=Severity.INFO, meta={"reason": f"{name} below 0"}
            )
        )
    return suite
