"""What a day's events must be. `frame` adds what an expectation cannot see by itself; `build_suite` is the suite.

Which values are absurd was settled on real logs (retail, reviews, short video): a negative quantity is a cancellation
and lands (stage `histories` takes no interest from it), a quantity of zero is nothing; a watch ratio above 1 is a
rewatch; a price of 0 is a gift.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.batches import utc_day

LONGEST_ID = 512
"""Characters an id may have."""

UNKNOWN_ITEM = "item_id unknown: no landed items file has it"
OTHER_DAY = "timestamp outside its partition's UTC day"
REPEATED = "event_id repeated: an earlier row has it"


def frame(events: pa.Table, *, known_items: pa.Array, landed_ids: pa.Array) -> pa.Table:
    """Events plus `item_known`, `in_day`, `first_of_id`, `quantity_counts` (all bool).

    events: EVENTS and `day` (date32, the partition a row was delivered in), in order of delivery.
    landed_ids: event ids that are in the lake already. A row that is bad otherwise does not use its id up.
    """
    item_known = pc.is_in(events.column("item_id"), value_set=known_items)
    in_day = pc.fill_null(pc.equal(utc_day(events.column("timestamp")), events.column("day")), False)
    usable = np.asarray(pc.and_(item_known, in_day))
    ids = pd.Series(events.column("event_id").to_pandas(), dtype=object)
    first = np.ones(len(ids), bool)
    first[usable] = ~(ids[usable].duplicated() & ids[usable].notna()).to_numpy()
    landed = pc.is_in(events.column("event_id"), value_set=landed_ids)
    return (
        events.append_column("item_known", item_known)
        .append_column("in_day", in_day)
        .append_column("first_of_id", pc.and_(pa.array(first), pc.invert(landed)))
        .append_column("quantity_counts", pc.fill_null(pc.not_equal(events.column("quantity"), 0.0), True))
    )


def build_suite() -> list[Any]:
    """The expectations, worst first. Parameters: rows_low, rows_high (None: no bound), of a table of one day."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity as Severity

    suite: list[Any] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, severity=Severity.CRITICAL, meta={"reason": "no rows"}),
        gxe.ExpectTableRowCountToBeBetween(
            min_value={"$PARAMETER": "rows_low"},
            max_value={"$PARAMETER": "rows_high"},
            severity=Severity.WARNING,
            meta={"reason": "row count far from the trailing week's"},
        ),
    ]
    for name in ("user_id", "item_id", "event_id", "timestamp"):
        missing = {"reason": f"{name} missing"}
        suite.append(gxe.ExpectColumnValuesToNotBeNull(column=name, severity=Severity.CRITICAL, meta=missing))
    for name in ("user_id", "item_id", "event_id"):
        suite.append(
            gxe.ExpectColumnValueLengthsToBeBetween(
                column=name,
                min_value=1,
                max_value=LONGEST_ID,
                severity=Severity.CRITICAL,
                meta={"reason": f"{name} empty or longer than {LONGEST_ID} characters"},
            )
        )
    for name, reason, severity in (
        ("item_known", UNKNOWN_ITEM, Severity.CRITICAL),
        ("in_day", OTHER_DAY, Severity.CRITICAL),
        ("quantity_counts", "quantity is 0", Severity.CRITICAL),
        ("first_of_id", REPEATED, Severity.WARNING),
    ):
        suite.append(
            gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[True], severity=severity, meta={"reason": reason})
        )
    for name in ("watch_ratio", "watch_time_s", "price"):
        suite.append(
            gxe.ExpectColumnValuesToBeBetween(
                column=name, min_value=0, severity=Severity.CRITICAL, meta={"reason": f"{name} below 0"}
            )
        )
    return suite
