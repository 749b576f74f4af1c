"""What continued pre-training does not learn from, so that it can be examined on it: items, users, lines of text.

Not a stage: `cpt_examples` asks it. Who is held out follows from a hash of the id alone: the same ones for every seed
and in every process.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

MOST = 500
"""Most items, users and lines that are held out, whatever the share."""
_FEW = 4


def hold_out(ids: Sequence[str], share: float, noun: str) -> np.ndarray:
    """Places of the held-out ids, in the order of their hashes. Returns (n,) int64.

    A share of them, but at least a few (if these are no more than a quarter) and at most MOST: those with the smallest
    hashes, so that the first n of them are a sample as good as any. noun: what the ids are of; equal ids of two nouns
    hash apart.
    """
    if share == 0.0 or not len(ids):
        return np.zeros(0, dtype=np.int64)
    wanted = min(max(round(share * len(ids)), min(_FEW, len(ids) // 4)), MOST)
    key = noun.encode()
    hashes = [hashlib.blake2b(text.encode(), digest_size=8, person=key).digest() for text in ids]
    return np.argsort(np.array([int.from_bytes(h, "big") for h in hashes], dtype=np.uint64), kind="stable")[:wanted]
