"""Beam-truth certificate: every allowed SID scored exactly, and what the beam search missed of the best.

Not a stage: the stage `scores` runs it on a sample, `plumline beam-check` on the champion. What a request allows is
found item by item in plain Python, from the table of SIDs and the items' columns: no trie, no bits, no cache of rules.
The prefixes of all allowed SIDs are one tree, run in chunks over the prompt's cache by the search's own decoder; each
SID's score is the sum along its path. That the decoder itself is right is checked on the best SID of every request, by
a plain forward pass of the model without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.language.item_model import ItemModel
from models.language.places import Places
from models.retrieval.decoder import Decoder, Prompt
from models.retrieval.item_decoder import ItemDecoder, open_decoder
from models.retrieval.rules import And, Compare, Fresh, Has, Named, Not, Or, Rule
from models.retrieval.tags import COMPARISONS
from plumline.errors import InputError

if TYPE_CHECKING:
    from models.retrieval.beam import Beams
    from models.retrieval.retriever import Request, Retriever
    from plumline.sid import SidSpace

_MAX_LOGITS = 1 << 25  # of one chunk, which bounds the memory
SCORE_TOLERANCE = 1e-3
"""Largest difference between a beam's score and the exact one that rounding explains."""


@torch.inference_mode()
def score_all(
    model: Any,
    prompt: Prompt,
    codes: np.ndarray,
    *,
    space: SidSpace,
    sid_base: int,
    device: torch.device | str,
    over_slice: bool = False,
    chunk: int = 1024,
) -> np.ndarray:
    """Log-probability of every SID after a prompt. codes: (n, L), distinct, in lexicographic order. Returns (n,).

    chunk: parents of SIDs (prefixes of L-1 codes) of one forward pass, less for a large vocabulary.
    """
    codes = np.asarray(codes, dtype=np.int64)
    parents, parent_of = _prefixes(codes, space.num_levels - 1)
    chunk = max(1, min(chunk, _MAX_LOGITS // model.config.get_text_config().vocab_size))
    decoder = open_decoder(model, [prompt], chunk * max(1, space.num_levels - 1), device)
    root = decoder.log_probabilities(sid_base, space.sizes[0], over_slice)[0, 0].double().cpu().numpy()
    scores = root[codes[:, 0]].copy()
    if space.num_levels == 1:
        return scores
    for start in range(0, len(parents), chunk):
        decoder.rewind()
        rows = np.flatnonzero((parent_of >= start) & (parent_of < start + chunk))
        scores[rows] += _score_subtree(decoder, codes[rows], space, sid_base, over_slice, device)
    return scores


def _prefixes(codes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct prefixes, in the order of the rows (which is theirs), and the one of each row."""
    new = np.ones(len(codes), dtype=bool)
    new[1:] = (codes[1:, :length] != codes[:-1, :length]).any(axis=1)
    return codes[new, :length], np.cumsum(new) - 1


def _score_subtree(
    decoder: Decoder | ItemDecoder, codes: np.ndarray, space: SidSpace, sid_base: int, over_slice: bool, device: Any
) -> np.ndarray:
    """Log-probabilities of the codes below the first, for SIDs that follow one another: one forward pass."""
    tokens, depths, parents, row_nodes = [], [], [], []
    num_nodes, above = 0, np.zeros(0, dtype=np.int64)
    for depth in range(1, space.num_levels):
        prefixes, node_of_row = _prefixes(codes, depth)
        first_rows = np.flatnonzero(np.diff(node_of_row, prepend=-1))
        parents.append(above[first_rows] if depth > 1 else np.full(len(prefixes), -1))
        tokens.append(space.offsets[depth - 1] + prefixes[:, -1] + sid_base)
        depths.append(np.full(len(prefixes), depth - 1))
        above = node_of_row + num_nodes
        row_nodes.append((node_of_row, num_nodes, num_nodes + len(prefixes)))
        num_nodes += len(prefixes)
    sees = np.eye(num_nodes, dtype=bool)
    for node, parent in enumerate(np.concatenate(parents).tolist()):
        if parent >= 0:
            sees[node] |= sees[parent]
    as_row = [torch.as_tensor(np.concatenate(part), device=device)[None] for part in (tokens, depths)]
    decoder.append_tree(as_row[0], torch.as_tensor(sees, device=device)[None], as_row[1])
    hidden, total = decoder.hidden, np.zeros(len(codes))
    for depth, (node_of_row, begin, end) in enumerate(row_nodes, start=1):
        decoder.hidden = hidden[:, begin:end]
        if isinstance(decoder, ItemDecoder):
            decoder.at_level(depth)
        logp = decoder.log_probabilities(sid_base + space.offsets[depth], space.sizes[depth], over_slice)
        total += logp[0].double().cpu().numpy()[node_of_row, codes[:, depth]]
    return total


@dataclass(frozen=True)
class Certificate:
    """What a beam search of `width` missed, over a sample of requests.

    missed_mass: share of the probability of the true k best SIDs that the search's k best lack, mean over the requests.
    missed_items: share of the items of the true list of k that the search's list lacks, mean. worst_missed_items: of
    the worst request. score_error: largest difference between a beam's score and the exact one. num_invalid: SIDs or
    items that were not allowed. num_duplicates: SIDs or items that came twice. num_sids: allowed SIDs, mean.
    """

    num_requests: int
    width: int
    k: int
    num_sids: float
    missed_mass: float
    missed_items: float
    worst_missed_items: float
    score_error: float
    num_invalid: int
    num_duplicates: int

    @property
    def holds(self) -> bool:
        """Whether all that the search says is true (that it misses something is its nature, and no lie)."""
        return self.num_invalid == self.num_duplicates == 0 and self.score_error <= SCORE_TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """As it stands in scores.json."""
        return {**asdict(self), "holds": self.holds}

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"requests            {self.num_requests}, {self.num_sids:,.0f} SIDs each, all scored exactly",
            f"beams / list        {self.width} / {self.k}",
            f"missed probability  {self.missed_mass:.3%} of the {self.k} best SIDs",
            f"missed items        {self.missed_items:.3%} of the {self.k} best, worst {self.worst_missed_items:.0%}",
            f"score error         {self.score_error:.1e} (at most {SCORE_TOLERANCE:.0e})",
            f"invalid/duplicates  {self.num_invalid}/{self.num_duplicates}",
            f"certificate         {'holds' if self.holds else 'BROKEN'}",
        ]


def check_beams(retriever: Retriever, requests: Sequence[Request], *, k: int, width: int) -> Certificate:
    """Search as the service does, score every SID that each request allows, and compare.

    Requests to which nothing is allowed are left out. Raises InputError if none is left.
    """
    for request in requests:
        retriever.allowed(request)  # a rule that asks what nobody knows is refused in its own words
    every = [(request, _plainly_allowed(retriever, request)) for request in requests]
    kept = [(request, behind) for request, behind in every if behind]
    if not kept:
        raise InputError(f"{len(requests)} requests, none of which allows an item: there is nothing to check")
    width, asked = max(width, k), [request for request, _ in kept]
    found = zip(kept, retriever.beams(asked, width), retriever.retrieve(asked, k, width), strict=True)
    rows = [_check(retriever, *one, beams, [hit.item_id for hit in hits], k) for one, beams, hits in found]
    num_sids, mass, items, error, invalid, duplicates = np.array(rows).T
    return Certificate(
        num_requests=len(asked),
        width=width,
        k=k,
        num_sids=float(num_sids.mean()),
        missed_mass=float(mass.mean()),
        missed_items=float(items.mean()),
        worst_missed_items=float(items.max()),
        score_error=float(error.max()),
        num_invalid=int(invalid.sum()),
        num_duplicates=int(duplicates.sum()),
    )


def plain_score(model: Any, prompt: Prompt, tokens: Sequence[int], device: torch.device | str) -> float:
    """Log-probability of tokens after a prompt, by the model's own forward pass and nothing of a decoder."""
    with torch.inference_mode():
        if isinstance(prompt, Places):
            return _plain_item_score(model, prompt, tokens, device)
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]], device=device), use_cache=False).logits[0]
    steps = torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)
    return float(steps.gather(1, torch.tensor(tokens, device=device)[:, None]).sum())


def _plain_item_score(model: ItemModel, prompt: Places, tokens: Sequence[int], device: torch.device | str) -> float:
    table = model.get_input_embeddings().weight
    bags = [torch.tensor(bag, device=device) for bag in prompt.bags()]
    places = torch.stack([table[bag].sum(0) for bag in bags])
    if model.prefixes is not None:
        places = places + torch.stack([model.prefixes(bag[None, None])[0, 0] for bag in bags])
    state = model.base_model(inputs_embeds=places[None], use_cache=False).last_hidden_state[0, -1]
    state = state if prompt.asked is None else state + table[prompt.asked]
    total = 0.0
    for level, (token, offset) in enumerate(zip(tokens, model.offsets, strict=True)):
        code = token - model.sid_base - offset
        total += float(model.head.logits(level, state).double().log_softmax(-1)[code])
        if level + 1 < len(tokens):
            state = model.head.step(level, state, torch.tensor(code, device=device))
    return total


def plainly_allows(rule: Rule, item: Mapping[str, Any], *, at_ms: int, sets: Mapping[str, Collection[str]]) -> bool:
    """Whether a rule allows an item, as models/retrieval/rules.py defines it. item: a row of `Segment.items`."""
    match rule:
        case And(parts):
            return all(plainly_allows(part, item, at_ms=at_ms, sets=sets) for part in parts)
        case Or(parts):
            return any(plainly_allows(part, item, at_ms=at_ms, sets=sets) for part in parts)
        case Not(part):
            return not plainly_allows(part, item, at_ms=at_ms, sets=sets)
        case Named(name):
            return item["item_id"] in sets[name]
        case Fresh(ms):
            published = item["published_ms"]
            return published is not None and published >= at_ms // 60_000 * 60_000 - ms
        case Has(name, values):
            value = item.get(f"tag_{name}", item.get(name))
            return bool(set(value if isinstance(value, list) else [value]) & set(values))
        case Compare(name, op, number):
            value = item.get(f"tag_{name}", item.get(name))
            return value is not None and value == value and bool(COMPARISONS[op](value, number))
    raise AssertionError(repr(rule))


def _plainly_allowed(retriever: Retriever, request: Request) -> dict[tuple[int, ...], set[str]]:
    """SID → items that a request allows."""
    epoch, rule, found = retriever.epoch, request.rule, dict[tuple[int, ...], set[str]]()
    dead = set() if epoch.dead is None else set(np.flatnonzero(epoch.dead.mask()).tolist())
    rows = [row for place, row in enumerate(epoch.base.items.to_pylist()) if place not in dead]
    for item in rows + (epoch.delta.items.to_pylist() if epoch.delta else []):
        if item["item_id"] in request.exclude:
            continue
        if rule is None or plainly_allows(rule, item, at_ms=request.rule_ms, sets=request.sets):
            found.setdefault(retriever.codes_of[item["item_id"]], set()).add(item["item_id"])
    return found


def _check(
    retriever: Retriever,
    request: Request,
    behind: Mapping[tuple[int, ...], set[str]],
    beams: Beams,
    items: list[str],
    k: int,
) -> tuple[float, ...]:
    """One row of the certificate. behind: SID → items that the request allows."""
    sids = np.array(sorted(behind), dtype=np.int64)
    prompt = retriever.prompt(request).read
    space, sid_base = retriever.vocabulary.space, retriever.vocabulary.sid_base
    exact = score_all(retriever.model, prompt, sids, space=space, sid_base=sid_base, device=retriever.device)
    place = {sid: number for number, sid in enumerate(map(tuple, sids.tolist()))}
    found = [place.get(sid, -1) for sid in map(tuple, beams.codes.tolist())]
    valid = [number for number in found if number >= 0]
    best = np.argsort(-exact, kind="stable")[:k]
    probabilities = np.exp(exact - exact[best[0]])  # relative to the best one, so that nothing underflows
    mass = 1 - float(probabilities[sorted(set(valid[:k]))].sum() / probabilities[best].sum())
    ranked = retriever.epoch.items_behind(sids[best], retriever.allowed(request))  # which of a SID's items comes first
    truth = [item for items_of_sid in ranked for item in items_of_sid][:k]
    known = set[str]().union(*behind.values())
    errors = [abs(exact[n] - score) for n, score in zip(found, beams.scores.tolist(), strict=True) if n >= 0]
    tokens = space.token_ids(sids[best[0]], sid_base).tolist()
    errors.append(abs(exact[best[0]] - plain_score(retriever.model, prompt, tokens, retriever.device)))
    return (
        len(sids),
        mass if mass > 1e-12 else 0.0,  # sums in another order
        len(set(truth) - set(items)) / max(1, len(truth)),
        max(errors),
        found.count(-1) + len(set(items) - known),
        len(found) - len(set(found)) + len(items) - len(set(items)),
    )
