"""How often one item comes soon after another: the one count that the memory, item-kNN, teacher and quantizer share.

Not a stage. An ibis expression, so that it runs where the steps are. Weights are fixed-point integers, since a sum of
integers is the same whatever the engine, its threads, or the order in which rows come.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ibis.expr.types as ir

UNIT = 2**30
"""What a weight of 1 is as an integer: 2^33 of them can be summed, and after 30 half-lives an event still counts."""
_DECAY_UNIT = 2**22  # a weight times a decay stays below 2^53, so that its division is exact also where it is a float's


def count_successions(
    steps: "ir.Table",
    *,
    order_by: Sequence[str],
    window: int,
    decay: float = 1.0,
    weights: Sequence[str] = (),
    both_ways: bool = False,
) -> "ir.Table":
    """Count the pairs of different items within `window` steps of one user.

    steps: user_id, item_id, the columns of order_by, and those of `weights` (int64, 0 … UNIT), one row a step.
    weights: what to sum; a pair weighs what its later step does, times decay^(d-1) if they lie d steps apart.
    both_ways: of two items the smaller one is item_a; otherwise item_a is the one that came first.
    Returns item_a, item_b, and one int64 column a weight, under its name; without weights `count`, the number of pairs.
    """
    import ibis

    own = ibis.window(group_by=steps.user_id, order_by=[steps[name] for name in order_by])
    gaps = range(1, window + 1)
    earlier = ibis.array(
        [
            ibis.struct(
                {
                    "item": steps.item_id.lag(gap).over(own),
                    "factor": ibis.literal(round(decay ** (gap - 1) * _DECAY_UNIT), type="int64"),
                }
            )
            for gap in gaps
        ]
    )
    # One pass over the steps: each is unfolded into its pairs, instead of being joined with itself once a gap.
    unfolded = steps.select("item_id", *weights, earlier=earlier)
    unfolded = unfolded.mutate(earlier=unfolded.earlier.unnest())
    pairs = unfolded.select(
        before=unfolded.earlier["item"],
        after=unfolded.item_id,
        **{name: unfolded[name] * unfolded.earlier["factor"] // _DECAY_UNIT for name in weights},
    )
    pairs = pairs.filter(pairs.before.notnull() & (pairs.before != pairs.after))
    if both_ways:
        pairs = pairs.mutate(
            before=ibis.least(pairs.before, pairs.after), after=ibis.greatest(pairs.before, pairs.after)
        )
    # DuckDB sums int64 to 128 bits, of which ibis does not know; the detour makes it write the cast.
    sums = {name: pairs[name].sum().cast("decimal(38, 0)").cast("int64") for name in weights}
    sums = sums or {"count": pairs.count()}
    return pairs.group_by(item_a=pairs.before, item_b=pairs.after).agg(**sums)
