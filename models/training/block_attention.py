"""Attention of packed rows without most of what nobody sees: blocks of queries, each with the keys of its examples.

Packed examples do not see each other, yet attention over a whole row scores every pair of its tokens. Here it is cut
into blocks, where an example starts if that suits, and a block's queries meet the keys from the start of its first
example to the block's end. What is left out is masked for every row of the batch, so the outputs are the same but for
rounding. torch from the first line: import it late.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

BLOCK_ATTENTION = "plumline_blocks"
"""Name of this attention among those of transformers."""

_SIZE = 128  # tokens of a block, about: of 64, 96, 128 and 192 the fastest on one core; small products are slow ones
_LEAST = 64  # shorter examples share a block


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of the tokens of a batch's rows, n of them.

    sizes: n numbers of tokens. first: n numbers of blocks; block i sees nothing before block first[i] ≤ i.
    """

    sizes: tuple[int, ...]
    first: tuple[int, ...]


def cut_blocks(positions_BT: np.ndarray) -> Blocks:
    """Blocks that serve all rows of a batch. positions_BT: as in Batch, 0 where an example starts."""
    places = np.arange(positions_BT.shape[1])
    # The earliest token that a token of any row may see: nothing sees across the start of an example.
    earliest = np.maximum.accumulate(np.where(positions_BT == 0, places, 0), axis=1).min(axis=0)
    ends = [0]
    for start in [*np.flatnonzero(earliest == places)[1:].tolist(), len(places)]:
        length = start - ends[-1]
        if start == len(places) or length >= _LEAST:
            parts = max(1, round(length / _SIZE))
            ends += [start - length + length * (i + 1) // parts for i in range(parts)]
    first = np.searchsorted(ends, earliest[ends[:-1]], side="right") - 1
    return Blocks(sizes=tuple(np.diff(ends).tolist()), first=tuple(first.tolist()))


@contextmanager
def block_attention(model: Any) -> Iterator[None]:
    """Let a causal LM attend by blocks while inside, where `block_keywords` go with its inputs.

    Does nothing for a model that attends otherwise than by `sdpa`, or that takes no further keywords.
    """
    taken = inspect.signature(model.base_model.forward).parameters.values()
    if model.config._attn_implementation != "sdpa" or all(p.kind is not p.VAR_KEYWORD for p in taken):
        yield
        return
    AttentionInterface.register(BLOCK_ATTENTION, _attend)
    model.set_attn_implementation(BLOCK_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def block_keywords(model: Any, positions_BT: Tensor) -> dict[str, Blocks]:
    """What the base model is to hand down to its attention: nothing, unless `block_attention` is on."""
    if model.config._attn_implementation != BLOCK_ATTENTION:
        return {}
    return {"attention_blocks": cut_blocks(positions_BT.numpy(force=True))}


def _attend(
    module: Any,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    attention_blocks: Blocks | None = None,
    **told: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, (B, T, H, D). A layer that the blocks do not reach attends to whole rows."""
    whole = AttentionInterface()["sdpa"]
    if attention_blocks is None or attention_mask is None or told.get("position_bias") is not None:
        attended: tuple[Tensor, None] = whole(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **told)
        return attended
    sizes, first = attention_blocks.sizes, attention_blocks.first
    begins = [0, *accumulate(sizes)]
    # Split and joined, not sliced: the gradient of a slice is as wide as the row.
    queries, keys, values = (x.split(sizes, dim=2) for x in (query_BHTD, key_BHTD, value_BHTD))
    outputs = []
    for i, query in enumerate(queries):
        seen = slice(first[i], i + 1)
        mask = attention_mask[:, :, begins[i] : begins[i + 1], begins[first[i]] : begins[i + 1]]
        outputs.append(whole(module, query, _join(keys[seen]), _join(values[seen]), mask, **told)[0])
    return torch.cat(outputs, dim=1), None


def _join(parts_BHTD: tuple[Tensor, ...]) -> Tensor:
    """One tensor along T, in memory as the projections leave them: (B, T, H, D)."""
    if len(parts_BHTD) == 1:
        return parts_BHTD[0]
    return torch.cat([part.transpose(1, 2) for part in parts_BHTD], dim=1).transpose(1, 2)
