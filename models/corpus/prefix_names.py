"""What the items behind the first codes of a SID have in common: the topic or channel that clearly most of them have.

Not a stage: `cpt_examples` asks it for the schemas that name a prefix.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

import numpy as np

FEWEST = 3
"""A prefix is named after at least so many items."""
CLEAR = 0.6
"""Share of the items of a prefix that have to have its name; a name that so many of all items have says nothing."""


def name_prefixes(codes: np.ndarray, names: Mapping[int, Collection[str]]) -> dict[tuple[int, ...], str]:
    """The clear majority's name of every proper prefix that has one.

    codes: (N, L). names: row → the names (topics, or the one channel) of the items that are to be counted. Returns the
    first 1 … L-1 codes → name, in ascending order; of equally frequent names the first in the alphabet.
    """
    everywhere = Counter(name for found in names.values() for name in set(found))
    said = {name for name, count in everywhere.items() if count >= CLEAR * len(names)}
    found: dict[tuple[int, ...], str] = {}
    for level in range(1, codes.shape[1]):
        members: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, prefix in zip(names, codes[list(names), :level].tolist(), strict=True):
            members[tuple(prefix)].append(row)
        for prefix, rows in members.items():
            if len(rows) < FEWEST:
                continue
            counts = Counter(name for row in rows for name in set(names[row]) - said)
            best = min(counts, key=lambda name: (-counts[name], name), default=None)
            if best is not None and counts[best] >= CLEAR * len(rows):
                found[prefix] = best
    return dict(sorted(found.items()))
