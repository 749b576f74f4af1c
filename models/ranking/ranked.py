"""Requests → the list that is served: beams and counted candidates under the request's rule, in the ranker's order.

Not a stage. The stage `ranker` asks it for labels and for the lists that are scored, the service for answers: one code.
A RankedRetriever never changes; items that come and go make another, as they do of its Retriever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.ranking.candidates import Candidates, Counted, Named, Visit, gather
from models.ranking.features import features
from models.ranking.shelf import DAY_MS, Shelf
from models.retrieval.retriever import Ask, Hit, Request, Retriever
from models.retrieval.rules import Fresh
from models.retrieval.trie import Allowed

if TYPE_CHECKING:
    import torch

    from models.memory.memory import Memory
    from models.ranking.frozen_ranker import Ranker
    from models.ranking.why import Reason, Teller
    from models.retrieval.beam import Choice


_HOUR_MS = 3_600_000
_DIGITS = 3


@dataclass(frozen=True)
class Found:
    """The candidates of one request. beams: what the model itself would show, best first. unseen_only: whether nothing
    of the history may come back. counted: what reasons are told from, if it was kept."""

    visit: Visit
    candidates: Candidates
    beams: list[Hit]
    unseen_only: bool
    counted: Counted | None = None


@dataclass(frozen=True)
class RankedHit:
    """One item of a list. score: the ranker's, higher is better, comparable within one list. codes: its SID."""

    item_id: str
    score: float
    codes: tuple[int, ...]
    why: tuple[Reason, ...] = ()


@dataclass(frozen=True, eq=False)
class RankedRetriever:
    """See the module's docstring. shelf: the items, as the epoch of the index has them; stock: those of its base."""

    retriever: Retriever
    ranker: Ranker
    stock: Shelf
    shelf: Shelf

    @staticmethod
    def load(parts: Mapping[str, Path], memory: Path, ranker: Ranker, **options: Any) -> RankedRetriever:
        """Read the parts of one release. parts, options: arguments of `Retriever.load`."""
        from models.language.model import pick_device
        from models.memory.memory import Memory

        retriever = Retriever.load(**{"device": pick_device(), **parts, **options})  # type: ignore[arg-type]
        return RankedRetriever.of(retriever, Memory.load(memory), ranker)

    @staticmethod
    def of(retriever: Retriever, memory: Memory, ranker: Ranker) -> RankedRetriever:
        """Put the parts of one release together."""
        stock = Shelf.of(memory, retriever.epoch.base, retriever.codes_of)
        return RankedRetriever(retriever, ranker, stock, stock.with_delta(retriever.epoch.delta, retriever.codes_of))

    def with_retriever(self, retriever: Retriever) -> RankedRetriever:
        """The same with another epoch of the index."""
        before, after = self.retriever.epoch, retriever.epoch
        if after.base is not before.base:
            return RankedRetriever.of(retriever, self.memory, self.ranker)
        if after.delta is before.delta:
            return replace(self, retriever=retriever)
        return replace(self, retriever=retriever, shelf=self.stock.with_delta(after.delta, retriever.codes_of))

    @property
    def memory(self) -> Memory:
        """What was counted."""
        return self.stock.memory

    def find(
        self,
        variants: Sequence[Sequence[Request]],
        *,
        size: int = 0,
        choice: Choice | None = None,
        allowed: Sequence[Sequence[Allowed | None]] | None = None,
        to_tell: bool = False,
    ) -> list[list[Found]]:
        """Candidates of every request of every variant: variants[v][q] is who q asks under rule v.

        All variants of one request have its history and profile, so that one prompt is run for all of them. size: at
        least so many items of each source. choice: of the beams. allowed: what `Retriever.allowed` says, if known.
        to_tell: keep what reasons are told from, hundreds of kilobytes a request.
        """
        params = self.ranker.candidates
        if allowed is None:
            allowed = [[self.retriever.allowed(request) for request in requests] for requests in variants]
        nows = [self.rank_time(self._moment(request)) for request in variants[0]]
        asks = [Ask(may, max(params.width, size), choice) for may in allowed]
        if params.fresh_width:
            fresh = [self._fresh(now) for now in nows]
            asks += [
                Ask([_both(one, young) for one, young in zip(may, fresh, strict=True)], params.fresh_width)
                for may in allowed
            ]
        hits, states = self.retriever.retrieve_with_states(variants[0], asks, max(size, params.size))
        found = []
        for number, (requests, may) in enumerate(zip(variants, allowed, strict=True)):
            beams = hits[number]
            young = hits[len(variants) + number] if params.fresh_width else [[]] * len(requests)
            rows = zip(requests, may, nows, beams, young, strict=True)
            found.append([self._gather(*row, state, size, to_tell) for row, state in zip(rows, states, strict=True)])
        return found

    def rank(self, found: Found, k: int, choice: Choice | None = None, teller: Teller | None = None) -> list[RankedHit]:
        """The best k candidates (a sample: as drawn), with reasons if somebody tells them. choice: its cap holds here
        too, and its temperature is that of the ranker's scores."""
        candidates, shelf, codes_of = found.candidates, self.shelf, self.retriever.codes_of
        table = features(shelf, found.visit, candidates, found.unseen_only)
        judged = self.ranker.judge(candidates, table)
        codes = None
        if choice is not None and choice.cap is not None:
            codes = [codes_of[shelf.item_id(number)] for number in candidates.items.tolist()]
        rows = _choose(judged.scores, codes, k, choice)
        ids = [shelf.item_id(number) for number in candidates.items[rows].tolist()]
        sids = [codes_of[item] for item in ids]
        told: list[tuple[Reason, ...]] = [()] * len(ids)
        if teller is not None:
            shares = judged.shares(rows)
            counted = found.counted or Counted.of(shelf, found.visit, self.ranker.candidates)
            told = teller.reasons(shelf, found.visit, counted, candidates.items[rows], shares, sids)
        return [RankedHit(*hit) for hit in zip(ids, judged.scores[rows].tolist(), sids, told, strict=True)]

    def rank_time(self, now: int) -> int:
        """From when ages are counted for ranking, and the user's absence for the model: a request's own time, if it
        lies between the memory's end and `horizon_days` after it; later ones are taken for the day after the end,
        earlier ones for the end. In whole hours, so that the same question soon after has the same answer."""
        end = self.memory.end_ms
        if now > end + self.ranker.candidates.horizon_days * DAY_MS:
            now = end + DAY_MS // 2
        return max(now // _HOUR_MS * _HOUR_MS, end)

    def _moment(self, request: Request) -> int:
        last = request.history[-1][1] if request.history else 0
        told = (at for at in (request.now_ms, request.at_ms) if at is not None)
        return next(told, max(last, self.memory.end_ms) + DAY_MS)

    def _fresh(self, now: int) -> Allowed | None:
        ms = int(self.ranker.candidates.fresh_days * DAY_MS)
        return self.retriever.epoch.select(Fresh(ms), at_ms=now, sets={})

    def _gather(
        self,
        request: Request,
        allowed: Allowed | None,
        now: int,
        beams: list[Hit],
        fresh: list[Hit],
        state: torch.Tensor | None,
        size: int,
        to_tell: bool,
    ) -> Found:
        visit = Visit.of(self.shelf, request.history, now, request.context_item)
        allows = self.shelf.mask(allowed)
        named = {"beam": self._named(beams), "fresh_beam": self._named(fresh)}
        counted = Counted.of(self.shelf, visit, self.ranker.candidates)
        candidates = gather(self.shelf, visit, counted, allows, named, self.ranker.candidates, size)
        if state is not None:
            candidates = replace(candidates, model=self._asked_of_all(state, candidates.items))
        unseen_only = bool(len(visit.items)) and not bool(allows(visit.items).any())
        return Found(visit, candidates, beams, unseen_only, counted if to_tell else None)

    def _asked_of_all(self, state: torch.Tensor, items: np.ndarray) -> np.ndarray:
        """(n,) float32: what the model says of items, whoever named them; rounded as in `_named`."""
        codes = self.shelf.codes[items]
        known = codes[:, 0] >= 0
        found = np.full(len(items), np.nan, dtype=np.float32)
        if known.any():
            found[known] = np.round(self.retriever.log_probabilities(state, codes[known].astype(np.int64)), _DIGITS)
        return found

    def _named(self, hits: list[Hit]) -> Named:
        """Best first, also of a sample; every item of the index is on the shelf.

        To three digits, equals in the order of their codes: another batch, or the same model in plain torch, rounds the
        last bits of a score otherwise, and a tree would make another list of that.
        """
        scores = [round(hit.score, _DIGITS) for hit in hits]
        order = sorted(range(len(hits)), key=lambda place: (-scores[place], hits[place].codes))
        numbers = np.asarray([self.shelf.number_of(hits[place].item_id) for place in order], dtype=np.int64)
        return numbers, np.asarray([scores[place] for place in order])


def _both(one: Allowed | None, other: Allowed | None) -> Allowed | None:
    """What two answers of `Epoch.select` both allow."""
    if one is None or other is None:
        return other if one is None else one
    base = one.base if other.base is None else other.base if one.base is None else one.base & other.base
    delta = one.delta if other.delta is None else other.delta if one.delta is None else one.delta & other.delta
    return Allowed(base, delta, f"{one.said} among fresh items")


def _choose(scores: np.ndarray, codes: Sequence[tuple[int, ...]] | None, k: int, choice: Choice | None) -> np.ndarray:
    """Rows of the k best, best first: of equal scores the first row. See `RankedRetriever.rank` for the choice.

    codes: SID of each row, for a choice with a cap.
    """
    keys = scores.astype(np.float64)
    if choice is not None and choice.temperature is not None:
        # Gumbel-top-k: without replacement, proportional to exp(score / temperature).
        keys = keys / choice.temperature + np.random.default_rng(choice.seed).gumbel(size=len(keys))
    order = np.argsort(-keys, kind="stable")
    if choice is None or choice.cap is None or codes is None:
        return order[:k]
    taken: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    chosen = []
    for row in order.tolist():
        branch = taken.setdefault(codes[row][: choice.cap_level], set())
        if codes[row] in branch or len(branch) < choice.cap:
            branch.add(codes[row])
            chosen.append(row)
            if len(chosen) == k:
                break
    return np.asarray(chosen, dtype=np.int64)
