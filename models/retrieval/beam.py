"""Constrained beam search: the online half of STATIC. Returns only SIDs that the index holds, with their scores.

The prompt is run once per request; all beams of a request then decode over its one cache
(`models/retrieval/decoder.py`), and a rule of each request closes every subtree without an allowed item
(`models/retrieval/trie.py`). Hugging Face's `generate` and its `generation_config` are never used: a sampling default
that came with a checkpoint cannot reach this search.

Order is exact. Beams stand in the lexicographic order of their codes between the levels, so the candidates of a level
do too, and of equal scores the lexicographically smaller code tuple survives and comes first. Equal means equal as
computed: the same prompt in another batch may differ in the last bits of its scores, as any matrix product does.

Beside the best, two other choices: at most so many beams a branch (`Choice.cap`), and a sample without replacement
(`Choice.temperature`; Kool, van Hoof, Welling 2019, "Stochastic Beams and Where to Find Them").

Shapes: B requests, K beams, S codes of a level, C candidates of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.retrieval.csr import Index
from models.retrieval.decoder import Prompt, check_model
from models.retrieval.item_decoder import ItemDecoder, open_decoder
from models.retrieval.trie import DEAD, Allowed, Candidates, State, Trie, expand
from plumline.errors import InputError

if TYPE_CHECKING:
    from plumline.sid import SidSpace


@dataclass(frozen=True)
class Beams:
    """What one request got: codes (K', L) int64 and scores (K',) float32, K' ≤ width, best first (or as drawn).

    A score is the log-probability of the whole SID given the prompt. leaves, twins: (K',) int64, the leaf of each in
    the index and in its delta, -1 for none; None: there is no such trie. state: (D,) from which the SID head names
    every SID, of a model that reads one place an item; None of others.
    """

    codes: np.ndarray
    scores: np.ndarray
    leaves: np.ndarray | None = None
    twins: np.ndarray | None = None
    state: torch.Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """Which SIDs are chosen among the possible ones.

    cap, cap_level: at most `cap` beams share their first `cap_level` codes; None: no cap. The best of a branch stay.
    temperature: None: the best ones. Else the beams are a sample without replacement from the model's distribution over
    the allowed SIDs, each step's log-probabilities divided by the temperature and normalised over the allowed
    continuations; they come in the order in which they were drawn. Scores stay the model's own log-probabilities.
    seed: of the sample, for every request of a batch alike, so that none depends on its place in it.
    """

    cap: int | None = None
    cap_level: int = 1
    temperature: float | None = None
    seed: int = 0

    def check(self, num_levels: int) -> None:
        """Raise InputError naming the value that cannot be."""
        if self.cap is not None and self.cap < 1:
            raise InputError(f"cap {self.cap}: at least 1 beam a branch, or none for no cap")
        if not 1 <= self.cap_level <= num_levels:
            raise InputError(f"cap_level {self.cap_level}: a SID has levels 1 … {num_levels}")
        if self.cap is None and self.cap_level != 1:
            raise InputError(f"cap_level {self.cap_level} without a cap has no effect; give both or neither")
        if self.temperature is None and self.seed != 0:
            raise InputError(f"seed {self.seed} without a temperature has no effect; give both or neither")
        if self.temperature is not None and not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            low, high = TEMPERATURES
            raise InputError(f"temperature {self.temperature}: {low} to {high}, or none for the best, not a sample")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed}: 0 to 2**63 - 1")


BEST = Choice()
TEMPERATURES = 0.001, 100.0
"""Between these a sample is one; below, a step's log-probabilities would not fit into float32."""


@dataclass(frozen=True)
class Search:
    """One of several searches after the same prompts; see `beam_search`."""

    index: Trie | None
    width: int
    delta: Trie | None = None
    allowed: Sequence[Allowed] | None = None
    choice: Choice = BEST


def beam_search(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    space: SidSpace,
    sid_base: int,
    index: Index | Trie | None,
    width: int,
    device: torch.device | str,
    delta: Trie | None = None,
    allowed: Sequence[Allowed] | None = None,
    over_slice: bool = False,
    choice: Choice = BEST,
) -> list[Beams]:
    """The `width` best SIDs after each prompt, or fewer where fewer exist and are allowed.

    model: a Hugging Face causal LM in eval mode on `device` (see `models/retrieval/decoder.py` for the kinds).
    prompts: token ids (or places), at least one a prompt, of any lengths. sid_base: id of the first SID token.
    index: SIDs that may come out (a Trie saves the way to the device on every call); None: any code of each level.
    delta: further SIDs, some of them perhaps in the index too. allowed: what each request may get.
    over_slice: normalise the log-probabilities of each step over the codes of the level (and compute no other logits);
    else over the whole vocabulary, so that a score is the model's own log-probability.
    Raises InputError if the model or the index does not fit or nothing is allowed to a request, PlumlineError if the
    model yields no finite numbers.
    """
    check_model(model)
    trie = Trie.of(index, device) if isinstance(index, Index) else index
    search = Search(trie, width, delta, allowed, choice)
    about = {"space": space, "sid_base": sid_base, "device": device, "over_slice": over_slice}
    return beam_searches(model, prompts, [search], **about)[0]  # type: ignore[arg-type]


@torch.inference_mode()
def beam_searches(
    model: Any,
    prompts: Sequence[Prompt],
    searches: Sequence[Search],
    *,
    space: SidSpace,
    sid_base: int,
    device: torch.device | str,
    over_slice: bool = False,
) -> list[list[Beams]]:
    """What `beam_search` finds, for each of several searches: their beams go through the model side by side.

    A prompt is run once, and the model is run as often as for one search: a pass over few tokens costs hardly more than
    a pass over one.
    """
    check_model(model)
    for search in searches:
        _check(prompts, space, search)
    if not prompts or not searches:
        return [[] for _ in searches]
    room = sum(search.width for search in searches) * (space.num_levels - 1)
    decoder = open_decoder(model, prompts, room, device)
    states = decoder.hidden[:, 0] if isinstance(decoder, ItemDecoder) else [None] * len(prompts)
    walks = [_Walk(search, len(prompts), decoder.score_type, device) for search in searches]
    for level, (size, offset) in enumerate(zip(space.sizes, space.offsets, strict=True)):
        # 1. Log-probabilities of this level's codes after every beam, those of the searches side by side.
        logp_BKS = decoder.log_probabilities(sid_base + offset, size, over_slice)
        parents, tokens, start = [], [], 0
        for walk in walks:
            # 2. Each search takes its best (or draws) of what it allows.
            num_beams = walk.num_beams
            parent_BK, code_BK = walk.step(level, logp_BKS[:, start : start + num_beams])
            parents.append(parent_BK + start)
            tokens.append(sid_base + offset + code_BK)
            start += num_beams if level else 0  # all of them begin at the prompt's last token
        # 3. Run the model on the new tokens.
        if level + 1 < space.num_levels:
            decoder.append(torch.cat(parents, dim=1), torch.cat(tokens, dim=1))
    return [[replace(one, state=state) for one, state in zip(walk.beams(), states, strict=True)] for walk in walks]


class _Walk:
    """One search on its way down the levels. Its beams stand in the lexicographic order of their codes."""

    def __init__(self, search: Search, num_rows: int, score_type: torch.dtype, device: torch.device | str) -> None:
        self._search, choice = search, search.choice
        self._state = State.roots(num_rows, search.index, search.delta, device)
        self._score_BK = torch.zeros(num_rows, 1, dtype=score_type, device=device)
        self._codes_BKL = torch.zeros(num_rows, 1, 0, dtype=torch.int64, device=device)
        self._lottery = _Lottery(choice, num_rows, score_type) if choice.temperature is not None else None

    @property
    def num_beams(self) -> int:
        """Beams a request, dead ones too."""
        return self._score_BK.shape[1]

    def step(self, level: int, logp_BKS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Go on by one level. Returns of each new beam the beam that it continues, and its code, (B, K) each."""
        search, choice, lottery = self._search, self._search.choice, self._lottery
        candidates = expand(search.index, search.delta, level, self._state, logp_BKS, self._score_BK, search.allowed)
        key_BC = candidates.score
        if lottery is not None:
            key_BC = lottery.draw(candidates.score.unflatten(1, (-1, candidates.branch)), self._score_BK).flatten(1)
        if choice.cap is not None and level + 1 >= choice.cap_level:
            branches = _branches(self._codes_BKL, candidates, choice.cap_level)
            key_BC = _capped(key_BC, branches, min(choice.cap, search.width))
        keep_BK = _best(key_BC, search.width)
        dead_BK = keep_BK < 0
        keep_BK = keep_BK.clamp(min=0)  # a row with fewer beams than another repeats a candidate, dead by its score
        self._score_BK = candidates.score.gather(1, keep_BK).masked_fill(dead_BK, DEAD)
        if lottery is not None:
            lottery.keep(key_BC, keep_BK, dead_BK)
        parent_BK, code_BK, self._state = candidates.chosen(keep_BK)
        before_BKL = self._codes_BKL.gather(1, parent_BK[..., None].expand(-1, -1, level))
        self._codes_BKL = torch.cat([before_BKL, code_BK[..., None]], dim=-1)
        return parent_BK, code_BK

    def beams(self) -> list[Beams]:
        """Of each request, best first (or as drawn)."""
        order_BK = self._score_BK if self._lottery is None else self._lottery.key_BK
        nowhere = [None] * len(order_BK)
        leaves, twins = (nowhere if part is None else part for part in (self._state.nodes, self._state.twins))
        rows = zip(self._codes_BKL, self._score_BK, leaves, twins, order_BK, strict=True)
        return [_sorted(*row) for row in rows]


def _check(prompts: Sequence[Prompt], space: SidSpace, search: Search) -> None:
    if search.width < 1:
        raise InputError(f"beam width {search.width}: at least 1")
    for trie in (search.index, search.delta):
        if trie is not None and tuple(trie.sizes) != tuple(space.sizes):
            raise InputError(
                f"index of levels {trie.sizes} beside a vocabulary of levels {space.sizes}: two releases mixed"
            )
    search.choice.check(space.num_levels)
    if (allowed := search.allowed) is None:
        return
    if search.index is None:
        raise InputError("rules without an index: a rule is about items, which only an index has")
    if len(allowed) != len(prompts):
        raise InputError(f"{len(allowed)} rules for {len(prompts)} prompts: one each")
    for number, one in enumerate(allowed):
        if len(one) == 0:
            raise InputError(f"request {number}: {one.said} allows no item; ask for less")


def _best(score_BC: torch.Tensor, width: int) -> torch.Tensor:
    """Positions of the `width` highest scores of each row, ascending; of equal scores the first positions win.

    Returns (B, K) int64, K the most that any row has; -1 fills rows with fewer candidates that live.
    """
    num_kept = min(width, score_BC.shape[1])
    top = score_BC.topk(min(width + 1, score_BC.shape[1]), dim=1, sorted=True)
    threshold_B1 = top.values[:, num_kept - 1 : num_kept]
    # `topk` chooses among equal scores as it likes, which matters only where they lie on both sides of the cut.
    next_B1 = top.values[:, -1:] if num_kept < top.values.shape[1] else torch.full_like(threshold_B1, DEAD)
    if not bool(((next_B1 == threshold_B1) | (threshold_B1 == DEAD)).any()):
        return top.indices[:, :num_kept].sort(dim=1).values
    above_BC = score_BC > threshold_B1
    equal_BC = (score_BC == threshold_B1) & (score_BC > DEAD)
    room_B1 = num_kept - above_BC.sum(1, keepdim=True)
    kept_BC = above_BC | (equal_BC & (equal_BC.cumsum(1) <= room_B1))
    row, position = kept_BC.nonzero(as_tuple=True)  # row-major: ascending positions within each row
    count_B = kept_BC.sum(1)
    slot = torch.arange(len(row), device=row.device) - (count_B.cumsum(0) - count_B)[row]
    keep_BK = torch.full((len(score_BC), int(count_B.max())), -1, dtype=torch.int64, device=score_BC.device)
    keep_BK[row, slot] = position
    return keep_BK


def _branches(codes_BKL: torch.Tensor, candidates: Candidates, cap_level: int) -> torch.Tensor:
    """Number of the branch (the first `cap_level` codes) of each candidate, ascending along a row: (B, C) int64."""
    num_rows, num_beams, depth = codes_BKL.shape
    num_candidates = candidates.score.shape[1]
    if depth < cap_level:  # every candidate is a branch of its own, since this level is the last that names it
        return torch.arange(num_candidates, device=codes_BKL.device).expand(num_rows, -1)
    prefix_BKL = codes_BKL[..., :cap_level]  # beams stand in lexicographic order: a branch is a run of them
    new_BK = torch.ones(num_rows, num_beams, dtype=torch.int64, device=codes_BKL.device)
    new_BK[:, 1:] = (prefix_BKL[:, 1:] != prefix_BKL[:, :-1]).any(-1).long()
    return (new_BK.cumsum(1) - 1).repeat_interleave(candidates.branch, dim=1)


def _capped(key_BC: torch.Tensor, branch_BC: torch.Tensor, cap: int) -> torch.Tensor:
    """The keys, DEAD but for the `cap` highest of every branch (of equal ones the first)."""
    order_BC = key_BC.sort(dim=1, descending=True, stable=True).indices
    order_BC = order_BC.gather(1, branch_BC.gather(1, order_BC).sort(dim=1, stable=True).indices)
    sorted_BC = branch_BC.gather(1, order_BC)
    first_BC = torch.searchsorted(sorted_BC, sorted_BC)  # where the branch begins among the sorted candidates
    rank_BC = torch.arange(key_BC.shape[1], device=key_BC.device) - first_BC
    return key_BC.masked_fill(torch.empty_like(rank_BC).scatter_(1, order_BC, rank_BC) >= cap, DEAD)


class _Lottery:
    """Gumbel-top-k: perturbed log-probabilities whose highest are a sample without replacement, level by level.

    key_BK: of each beam, its perturbed log-probability; logp_BK: its own at the temperature, over what is allowed.
    """

    def __init__(self, choice: Choice, num_rows: int, score_type: torch.dtype) -> None:
        assert choice.temperature is not None
        self._temperature = choice.temperature
        # Drawn on the CPU, in the order of the codes: a sample depends neither on the batch nor on the device.
        self._generators = [torch.Generator().manual_seed(choice.seed) for _ in range(num_rows)]
        self._type = score_type
        self.key_BK = torch.zeros(num_rows, 1, dtype=score_type)
        self.logp_BK = torch.zeros(num_rows, 1, dtype=score_type)

    def draw(self, score_BKM: torch.Tensor, score_BK: torch.Tensor) -> torch.Tensor:
        """Keys of the candidates of each beam. score_BKM: log-probabilities of the whole prefixes; DEAD: none."""
        device = score_BKM.device
        self.key_BK, self.logp_BK = self.key_BK.to(device), self.logp_BK.to(device)
        alive_BKM = score_BKM > DEAD
        step_BKM = ((score_BKM - score_BK[..., None]) / self._temperature).masked_fill(~alive_BKM, DEAD)
        total_BK1 = torch.logsumexp(step_BKM, dim=-1, keepdim=True).nan_to_num(neginf=0.0)
        self._logp_BKM = self.logp_BK[..., None] + step_BKM - total_BK1
        noise = torch.zeros(score_BKM.shape, dtype=self._type)
        for row, generator in enumerate(self._generators):
            mask = alive_BKM[row].cpu()
            noise[row][mask] = torch.empty(int(mask.sum()), dtype=self._type).exponential_(generator=generator)
        gumbel_BKM = (self._logp_BKM - noise.to(device).log()).masked_fill(~alive_BKM, DEAD)
        # Conditioned on the largest of a beam's candidates being the beam's own key (Kool et al., appendix B.3).
        largest_BK1 = gumbel_BKM.amax(dim=-1, keepdim=True)
        key_BK1 = self.key_BK[..., None]
        v_BKM = key_BK1 - gumbel_BKM + torch.log1p(-torch.exp((gumbel_BKM - largest_BK1).clamp(max=0)))
        key_BKM = key_BK1 - v_BKM.clamp(min=0) - torch.log1p(torch.exp(-v_BKM.abs()))
        return torch.where(gumbel_BKM == largest_BK1, key_BK1, key_BKM).masked_fill(~alive_BKM, DEAD)

    def keep(self, key_BC: torch.Tensor, keep_BK: torch.Tensor, dead_BK: torch.Tensor) -> None:
        """Go on with the chosen candidates."""
        self.key_BK = key_BC.gather(1, keep_BK).masked_fill(dead_BK, DEAD)
        self.logp_BK = self._logp_BKM.flatten(1).gather(1, keep_BK).masked_fill(dead_BK, DEAD)


def _sorted(
    codes_KL: torch.Tensor,
    score_K: torch.Tensor,
    leaf_K: torch.Tensor | None,
    twin_K: torch.Tensor | None,
    key_K: torch.Tensor,
) -> Beams:
    """Living beams of one request, highest key first; they come in lexicographic order: a stable sort settles ties."""
    alive_K = (score_K > DEAD).nonzero().flatten()
    kept_K = alive_K[key_K[alive_K].sort(descending=True, stable=True).indices]
    leaves, twins = (None if part is None else part[kept_K].cpu().numpy() for part in (leaf_K, twin_K))
    return Beams(codes_KL[kept_K].cpu().numpy(), score_K[kept_K].float().cpu().numpy(), leaves, twins)
