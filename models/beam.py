"""Constrained beam search: the online half of STATIC. Returns only SIDs that the index holds, with their scores.

The prompt is run once per request. From then on all beams of a request are one row: the tokens of every beam of every
level are appended to the one cache, and a mask lets each beam see the prompt and its own ancestors (tree attention), so
that nothing of the cache is copied or reordered when beams die. Hugging Face's `generate` and its
`generation_config` are never used: a sampling default that came with a checkpoint cannot reach this search.

Order is exact. Beams stand in the lexicographic order of their codes between the levels, so the candidates of a level
do too, and of equal scores the lexicographically smaller code tuple survives and comes first. Equal means equal as
computed: the same prompt in another batch may differ in the last bits of its scores, as any matrix product does.

Shapes: B requests, K beams, P prompt tokens, T tokens in the cache, V vocabulary, C candidates of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.index import Index
from plumline.errors import InputError, PlumlineError

if TYPE_CHECKING:
    from plumline.sid import SidSpace

_DEAD = float("-inf")


@dataclass(frozen=True)
class Beams:
    """What one request got, best first: codes (K', L) int64 and scores (K',) float32, K' ≤ width.

    A score is the log-probability of the whole SID given the prompt.
    """

    codes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Trie:
    """The arrays of an Index on a device (shared with the Index on a CPU, copied once elsewhere)."""

    sizes: tuple[int, ...]
    codes: tuple[torch.Tensor, ...]
    children: tuple[torch.Tensor, ...]

    @staticmethod
    def of(index: Index, device: torch.device | str) -> Trie:
        """Bring an index to a device."""
        return Trie(
            sizes=index.sizes,
            codes=tuple(torch.from_numpy(array).to(device) for array in index.codes),
            children=tuple(torch.from_numpy(array).to(device) for array in index.children),
        )


@dataclass(frozen=True)
class _Candidates:
    """Continuations of all beams, in lexicographic order, padded: each (B, C).

    beam: int64, which beam is continued. code: int64, with what. node: int64, node of the trie, 0 without one.
    alive: bool, False for padding and behind dead beams.
    """

    beam: torch.Tensor
    code: torch.Tensor
    node: torch.Tensor
    alive: torch.Tensor


@torch.inference_mode()
def beam_search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    space: SidSpace,
    sid_base: int,
    index: Index | Trie | None,
    width: int,
    device: torch.device | str,
    over_slice: bool = False,
) -> list[Beams]:
    """The `width` best SIDs after each prompt, or fewer where the index holds fewer.

    model: a Hugging Face causal LM in eval mode on `device`, sdpa attention, full attention in every layer.
    prompts: token ids, at least one a prompt, of any lengths. sid_base: id of the first SID token.
    index: SIDs that may come out (a Trie saves the way to the device on every call); None: any code of each level.
    over_slice: normalise the log-probabilities over the codes of the level only, not over the whole vocabulary.
    Raises InputError if the model or the index does not fit, PlumlineError if the model yields no finite numbers.
    """
    _check(model, prompts, space, index, width)
    if not prompts:
        return []
    trie = Trie.of(index, device) if isinstance(index, Index) else index
    decoder = _Decoder(model, prompts, device)
    num_rows = len(prompts)
    score_BK = torch.zeros(num_rows, 1, dtype=decoder.score_type, device=device)
    node_BK = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
    codes_BKL = torch.zeros(num_rows, 1, 0, dtype=torch.int64, device=device)
    for level, (size, offset) in enumerate(zip(space.sizes, space.offsets, strict=True)):
        # 1. Log-probabilities of this level's codes, after every beam.
        logp_BKS = decoder.log_probabilities(sid_base + offset, size, over_slice)
        # 2. Children of every beam that lives, and their scores.
        alive_BK = score_BK > _DEAD
        candidates = _all_codes(alive_BK, size) if trie is None else _children(trie, level, node_BK, alive_BK)
        gather_BC = candidates.beam * size + candidates.code
        score_BC = logp_BKS.flatten(1).gather(1, gather_BC) + score_BK.gather(1, candidates.beam)
        score_BC = score_BC.masked_fill(~candidates.alive, _DEAD)
        # 3. The best of them, still in lexicographic order.
        keep_BK = _best(score_BC, width)
        score_BK = score_BC.gather(1, keep_BK.clamp(min=0)).masked_fill(keep_BK < 0, _DEAD)
        keep_BK = keep_BK.clamp(min=0)  # a row with fewer beams than another repeats a candidate, dead by its score
        parent_BK = candidates.beam.gather(1, keep_BK)
        code_BK = candidates.code.gather(1, keep_BK)
        node_BK = candidates.node.gather(1, keep_BK)
        codes_BKL = torch.cat(
            [codes_BKL.gather(1, parent_BK[..., None].expand(-1, -1, level)), code_BK[..., None]], dim=-1
        )
        # 4. Run the model on the new tokens.
        if level + 1 < space.num_levels:
            decoder.append(parent_BK, sid_base + offset + code_BK)
    return [_sorted(codes_KL, score_K) for codes_KL, score_K in zip(codes_BKL, score_BK, strict=True)]


def _check(
    model: Any, prompts: Sequence[Sequence[int]], space: SidSpace, index: Index | Trie | None, width: int
) -> None:
    if width < 1:
        raise InputError(f"beam width {width}: at least 1")
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt without tokens: every prompt has at least one (its beginning-of-text token)")
    if index is not None and tuple(index.sizes) != tuple(space.sizes):
        raise InputError(
            f"index of levels {index.sizes} beside a vocabulary of levels {space.sizes}: two releases mixed"
        )
    config = model.config
    if config._attn_implementation != "sdpa":  # "eager" reads a boolean mask as numbers to add and is silently wrong
        raise InputError(f"attention {config._attn_implementation!r}: load the model with attn_implementation='sdpa'")
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise InputError(f"layers {sorted(set(config.layer_types))}: only full attention is decoded here yet")


class _Decoder:
    """The model, its one cache, and who sees whom in it."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device | str) -> None:
        from transformers import DynamicCache

        self.backbone, self.head = model.base_model, model.get_output_embeddings()
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.cache = DynamicCache(config=model.config)
        length = max(len(prompt) for prompt in prompts)
        ids_BP = torch.zeros(len(prompts), length, dtype=torch.int64)
        seen_BP = torch.zeros(len(prompts), length, dtype=torch.int64)
        for row, prompt in enumerate(prompts):  # padding stands left: the last column is every prompt's last token
            ids_BP[row, length - len(prompt) :] = torch.as_tensor(prompt)
            seen_BP[row, length - len(prompt) :] = 1
        ids_BP, seen_BP = ids_BP.to(device), seen_BP.to(device)
        self.position_B = seen_BP.sum(1)  # of the next token
        hidden = self.backbone(
            input_ids=ids_BP,
            attention_mask=seen_BP,
            position_ids=(seen_BP.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden_BKD = hidden.last_hidden_state[:, -1:]
        self.prompt_B1P = seen_BP.bool()[:, None]
        self.ancestors_BKT = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=device)
        self.score_type = torch.promote_types(self.hidden_BKD.dtype, torch.float32)

    def log_probabilities(self, first: int, size: int, over_slice: bool) -> torch.Tensor:
        """Of the tokens first … first+size-1 after each beam. Returns (B, K, size) in at least float32."""
        logits_BKV = self.head(self.hidden_BKD).to(self.score_type)
        if self.softcap is not None:
            logits_BKV = torch.tanh(logits_BKV / self.softcap) * self.softcap
        slice_BKS = logits_BKV[..., first : first + size]
        total_BK1 = torch.logsumexp(slice_BKS if over_slice else logits_BKV, dim=-1, keepdim=True)
        if not torch.isfinite(total_BK1).all():
            raise PlumlineError("the model yields numbers that are not finite; its weights cannot be used, train again")
        return slice_BKS - total_BK1

    def append(self, parent_BK: torch.Tensor, token_BK: torch.Tensor) -> None:
        """Run one token a beam; every one sees the prompt, what its parent saw, the parent's token and itself."""
        num_rows, num_beams = token_BK.shape
        own_BKK = torch.eye(num_beams, dtype=torch.bool, device=token_BK.device).expand(num_rows, -1, -1)
        inherited = parent_BK[..., None].expand(-1, -1, self.ancestors_BKT.shape[-1])
        self.ancestors_BKT = torch.cat([self.ancestors_BKT.gather(1, inherited), own_BKK], dim=-1)
        mask_BKT = torch.cat([self.prompt_B1P.expand(-1, num_beams, -1), self.ancestors_BKT], dim=-1)
        hidden = self.backbone(
            input_ids=token_BK,
            attention_mask=mask_BKT[:, None],
            position_ids=self.position_B[:, None].expand(-1, num_beams),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden_BKD = hidden.last_hidden_state
        self.position_B = self.position_B + 1


def _all_codes(alive_BK: torch.Tensor, size: int) -> _Candidates:
    """Every code of the level after every beam."""
    num_rows, num_beams = alive_BK.shape
    flat_BC = torch.arange(num_beams * size, device=alive_BK.device).expand(num_rows, -1)
    beam_BC = flat_BC // size
    return _Candidates(beam_BC, flat_BC % size, torch.zeros_like(flat_BC), alive_BK.gather(1, beam_BC))


def _children(trie: Trie, level: int, node_BK: torch.Tensor, alive_BK: torch.Tensor) -> _Candidates:
    """The children of every living beam's node: one flat gather over the CSR rows, no loop."""
    num_rows, num_beams = node_BK.shape
    pointers, level_codes = trie.children[level], trie.codes[level]
    first = pointers[node_BK].long().flatten()
    count = (pointers[node_BK + 1].long().flatten() - first) * alive_BK.flatten()
    before = count.cumsum(0) - count  # candidates of all earlier beams, of all requests
    source = torch.repeat_interleave(count)  # beam (of B*K) of each candidate
    flat = torch.arange(len(source), device=source.device)
    node = first[source] + flat - before[source]
    row = source // num_beams
    slot = flat - before[row * num_beams]
    shape = (num_rows, int(count.view(num_rows, num_beams).sum(1).max()))

    def padded(values: torch.Tensor, fill: Any) -> torch.Tensor:
        out = torch.full(shape, fill, dtype=values.dtype, device=values.device)
        out[row, slot] = values
        return out

    return _Candidates(
        beam=padded(source % num_beams, 0),
        code=padded(level_codes[node].long(), 0),
        node=padded(node, 0),
        alive=padded(torch.ones_like(node, dtype=torch.bool), False),
    )


def _best(score_BC: torch.Tensor, width: int) -> torch.Tensor:
    """Positions of the `width` highest scores of each row, ascending; of equal scores the first positions win.

    Returns (B, K) int64, K the most that any row has; -1 fills rows with fewer candidates that live. `topk` alone would
    choose among equal scores as it likes, so it only gives the threshold.
    """
    num_kept = min(width, score_BC.shape[1])
    threshold_B1 = score_BC.topk(num_kept, dim=1, sorted=True).values[:, -1:]
    above_BC = score_BC > threshold_B1
    equal_BC = (score_BC == threshold_B1) & (score_BC > _DEAD)
    room_B1 = num_kept - above_BC.sum(1, keepdim=True)
    kept_BC = above_BC | (equal_BC & (equal_BC.cumsum(1) <= room_B1))
    row, position = kept_BC.nonzero(as_tuple=True)  # row-major: ascending positions within each row
    count_B = kept_BC.sum(1)
    slot = torch.arange(len(row), device=row.device) - (count_B.cumsum(0) - count_B)[row]
    keep_BK = torch.full((len(score_BC), int(count_B.max())), -1, dtype=torch.int64, device=score_BC.device)
    keep_BK[row, slot] = position
    return keep_BK


def _sorted(codes_KL: torch.Tensor, score_K: torch.Tensor) -> Beams:
    """Living beams of one request, best first; they come in lexicographic order, so a stable sort settles ties."""
    alive_K = score_K > _DEAD
    codes_KL, score_K = codes_KL[alive_K], score_K[alive_K]
    score_K, order_K = score_K.sort(descending=True, stable=True)
    return Beams(codes_KL[order_K].cpu().numpy(), score_K.float().cpu().numpy())
