"""Requests → items: the one search that the scores stage and the service share.

Not a stage. A Retriever holds everything of one release that answers depend on: weights, vocabulary, SIDs and one epoch
of the index. It never changes after loading: new items and items that go make another one, in milliseconds. What is
asked differs: the stage `scores` says when (noon of the day) and knows no tombstones, the service does not say when.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from models.retrieval.rules import Fresh, Named, Not, Rule, all_of
from plumline.errors import InputError, MixedReleaseError
from plumline.settings import get_settings

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from models.language.facts import ItemTexts
    from models.language.places import Places
    from models.language.words import Vocabulary
    from models.retrieval.beam import Beams, Choice
    from models.retrieval.live_index import Epoch
    from models.retrieval.trie import Allowed

_MAX_BATCH = 16  # requests of one forward pass; more gains nothing on a CPU
_MAX_MASK = 1 << 24  # entries of the attention mask of one forward pass (B x K x T), which bounds the memory


@dataclass(frozen=True)
class Request:
    """Who asks, and what may come back.

    history: (item_id, epoch milliseconds), oldest first; may be empty (a cold user). profile: feature → value.
    numbers: numeric column of events (plumline.schema.NUMBERS) → its value of each event of the history, None or NaN
    where it is not known; only what the prompts of the release hold is read.
    context_item: the item being looked at; None: the last one of the history. at_ms: when, epoch milliseconds; None: a
    day after the last event. exclude: items that must not come back (seen, blocked). rule: what all of them must
    fulfil (see `models/retrieval/rules.py`); `seen` in it are the items of the history. now_ms: from when the rule
    counts ages; None: at_ms.
    """

    history: Sequence[tuple[str, int]] = ()
    profile: Mapping[str, str | None] = field(default_factory=dict)
    context_item: str | None = None
    at_ms: int | None = None
    exclude: frozenset[str] = frozenset()
    rule: Rule | None = None
    now_ms: int | None = None
    numbers: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @property
    def whole_rule(self) -> Rule | None:
        """The rule, and not to be excluded."""
        return all_of(self.rule, Not(Named("excluded")) if self.exclude else None)

    @property
    def sets(self) -> dict[str, Collection[str]]:
        """Item ids by the names that a rule may use."""
        return {"seen": {item for item, _ in self.history}, "excluded": self.exclude}

    @property
    def rule_ms(self) -> int:
        """From when ages are counted. Raises InputError if the rule wants to know and nobody says."""
        at_ms = self.now_ms if self.now_ms is not None else self.at_ms
        if at_ms is None and self.rule is not None and _asks_age(self.rule):
            raise InputError(f"rule {self.rule}: say when the request is made (now_ms), else nothing has an age")
        return at_ms or 0


def _asks_age(rule: Rule) -> bool:
    return isinstance(rule, Fresh) or any(_asks_age(part) for part in rule.operands)


@dataclass(frozen=True)
class Hit:
    """One recommended item: its SID's log-probability (items behind one SID share it) and codes, length L."""

    item_id: str
    score: float
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A request as token ids. num_unknown: items of its history (and its context item) that have no SID: dropped.
    places: the same tokens place by place, for a model that reads one place an item; else None."""

    token_ids: list[int]
    num_unknown: int
    places: Places | None = None

    @property
    def read(self) -> list[int] | Places:
        """What the model reads."""
        return self.token_ids if self.places is None else self.places


@dataclass(frozen=True)
class Ask:
    """One of several searches after the same prompts. allowed: of each request, as `Retriever.allowed` says. width:
    beams. choice: see `models/retrieval/beam.py`; None: the best."""

    allowed: Sequence[Allowed | None]
    width: int
    choice: Choice | None = None


@dataclass(frozen=True, eq=False)
class Retriever:
    """See the module's docstring. epoch: the index, as it was when the retriever was made.

    codes_of: SID of every item that has one, retired ones included (they still tell something about a user). texts: of
    the same items, as far as prompts hold any.
    """

    model: Any
    vocabulary: Vocabulary
    epoch: Epoch
    codes_of: Mapping[str, tuple[int, ...]]
    device: torch.device | str
    texts: ItemTexts

    @staticmethod
    def load(
        *,
        vocabulary: Path,
        sids: Path,
        weights: Path,
        index: Path,
        catalog: Path,
        device: torch.device | str,
        precision: Literal["float32", "bfloat16"] = "float32",
        plain: bool = False,
    ) -> Retriever:
        """Read the parts of one release. weights: folder of Hugging Face weights (`<sft>/weights`).

        catalog: may be newer than the index; what it says is retired is not returned. plain: without the seconds that
        importing transformers takes, where the model is one that `models/language/plain.py` knows.
        Raises MixedReleaseError if the parts cannot belong together, ArtifactError if one cannot be read.
        """
        from features.catalog import Catalog
        from models.language.facts import ItemTexts
        from models.language.model import check_vocabulary, load_language_model
        from models.language.plain import load_plain
        from models.language.words import Vocabulary
        from models.retrieval.live_index import Epoch
        from models.retrieval.segment import Segment
        from models.semantic_ids.table import SidTable

        words, table, segment = Vocabulary.load(vocabulary), SidTable.load(sids), Segment.load(index)
        if not tuple(words.space.sizes) == tuple(table.space.sizes) == tuple(segment.index.sizes):
            raise MixedReleaseError(
                f"SID levels {words.space.sizes} in {vocabulary}, {table.space.sizes} in {sids}, "
                f"{segment.index.sizes} in {index}: take all parts from one release"
            )
        model: Any
        if words.shape.item_places:
            from models.language.item_model import load_item_model

            model = load_item_model(weights, words, device, precision, plain)
        else:
            model = load_plain(weights, device, precision) if plain else None
            if model is None:
                model = load_language_model(weights, device, precision)
        check_vocabulary(model, words)
        if not segment.position_of.keys() <= table.codes_of.keys():
            raise MixedReleaseError(f"{index} holds items that {sids} does not; take all parts from one release")
        items = Catalog.load(catalog).items
        retired = items.filter(items.column("retired")).column("item_id").to_pylist()
        texts = ItemTexts.of(words, items)
        return Retriever(model, words, Epoch(segment), table.codes_of, device, texts).without(retired)

    def without(self, item_ids: Collection[str]) -> Retriever:
        """The same without these items, for good."""
        return replace(self, epoch=self.epoch.remove(item_ids)) if item_ids else self

    def with_items(self, items: pa.Table, codes: np.ndarray) -> Retriever:
        """The same with further items, or other SIDs of known ones. codes: (n, L).

        items: what `Epoch.add` takes, and title and channel, if they are known, for prompts that hold them.
        """
        from models.language.facts import TEXTS

        index = self.epoch.base.items.column_names
        texts = self.texts.with_items(items)
        epoch = self.epoch.add(
            items.drop_columns([t for t in TEXTS if t in items.column_names and t not in index]), codes
        )
        new = dict(zip(items.column("item_id").to_pylist(), map(tuple, codes.tolist()), strict=True))
        if not isinstance(self.codes_of, ChainMap):
            return replace(self, epoch=epoch, texts=texts, codes_of=ChainMap(new, self.codes_of))  # type: ignore[arg-type]
        *added, whole = self.codes_of.maps  # the big one is never copied
        return replace(self, epoch=epoch, texts=texts, codes_of=ChainMap({**ChainMap(*added), **new}, whole))

    @cached_property
    def live_items(self) -> frozenset[str]:
        """Every item that can come back."""
        return frozenset(self.epoch.item_ids())

    def prompt(self, request: Request) -> Prompt:
        """Token ids of a request, in the template of the training."""
        from models.language.facts import asked_texts
        from models.language.places import render_places
        from models.language.prompt import render_prompt

        known = [place for place, (item, _) in enumerate(request.history) if item in self.codes_of]
        context = self.codes_of.get(request.context_item) if request.context_item is not None else None
        num_unknown = len(request.history) - len(known) + (request.context_item is not None and context is None)
        shape = self.vocabulary.shape
        told = [request.history[place] for place in known[-shape.max_history :]]
        numbers = {name: request.numbers[name] for name in shape.history_features if name in request.numbers}
        for name, values in numbers.items():
            if len(values) != len(request.history):
                raise InputError(
                    f"numbers: {len(values)} of {name} for {len(request.history)} events; give one an event"
                )
        facts = self.texts.facts
        about: dict[str, Any] = {
            "history": [(self.codes_of[item], time) for item, time in told],
            "profile": request.profile,
            "context": context,
            "at_ms": request.at_ms,
            "facts": [facts(item) for item, _ in told] if asked_texts(self.vocabulary) else (),
            "numbers": {name: [values[place] for place in known[-len(told) :]] for name, values in numbers.items()},
            "context_facts": None if request.context_item is None else facts(request.context_item),
        }
        if not shape.item_places:
            return Prompt(render_prompt(self.vocabulary, **about), num_unknown)
        places = render_places(self.vocabulary, **about)
        return Prompt(places.token_ids, num_unknown, places)

    def allowed(self, request: Request) -> Allowed | None:
        """What a request may get; None: everything."""
        return self.epoch.select(request.whole_rule, at_ms=request.rule_ms, sets=request.sets)

    def count(self, allowed: Allowed | None) -> int:
        """How many items an answer of `allowed` lets come back, before anything is decoded."""
        return self.epoch.num_items if allowed is None else len(allowed)

    def explain(self, request: Request) -> str:
        """One line: how many items each part of a request's rule leaves."""
        rule = request.whole_rule
        if rule is None:
            return f"no rule; the index holds {self.epoch.num_items:,} items"
        return self.epoch.explain(rule, at_ms=request.rule_ms, sets=request.sets)

    def retrieve(
        self,
        requests: Sequence[Request],
        k: int,
        width: int,
        choice: Choice | None = None,
        allowed: Sequence[Allowed | None] | None = None,
    ) -> list[list[Hit]]:
        """The k best items of each request, best first (a sample: as drawn), no repeats, all of them allowed.

        width: beams, at least k are taken. Every beam ends at a SID with an allowed item, so that k items come back
        whenever k are allowed, and all of those otherwise (but for a choice with a cap). choice: see
        `models/retrieval/beam.py`. allowed: what `allowed` says of each request, for a caller who has asked already.
        """
        if k < 1:
            raise InputError(f"k {k}: at least 1")
        if allowed is None:
            allowed = [self.allowed(request) for request in requests]
        [hits] = self.retrieve_each(requests, [Ask(allowed, max(width, k), choice)], k)
        return hits

    def retrieve_each(self, requests: Sequence[Request], asks: Sequence[Ask], k: int) -> list[list[list[Hit]]]:
        """The k best items of each request (as `retrieve`), once for every ask; a prompt is run once for all of them.

        A request to which an ask allows nothing gets nothing from it.
        """
        return self.retrieve_with_states(requests, asks, k)[0]

    def retrieve_with_states(
        self, requests: Sequence[Request], asks: Sequence[Ask], k: int
    ) -> tuple[list[list[list[Hit]]], list[torch.Tensor | None]]:
        """`retrieve_each`, and of each request the state that `log_probabilities` goes on from; None where nothing was
        searched, and of a model that names a SID token by token."""
        found = self._search(requests, asks)
        hits = [
            [self._hits(one, may, k) for one, may in zip(beams, ask.allowed, strict=True)]
            for ask, beams in zip(asks, found, strict=True)
        ]
        states = [next((one.state for one in of if one.state is not None), None) for of in zip(*found, strict=True)]
        return hits, states

    def log_probabilities(self, state: torch.Tensor, codes: np.ndarray) -> np.ndarray:
        """(n,) float32, of whole SIDs in a state of `retrieve_with_states`. codes: (n, L)."""
        return np.asarray(self.model.log_probabilities(state, codes), dtype=np.float32)

    def beams(self, requests: Sequence[Request], width: int) -> list[Beams]:
        """The `width` best SIDs of each request."""
        return self._search(requests, [Ask([self.allowed(request) for request in requests], width)])[0]

    def _hits(self, beams: Beams, allowed: Allowed | None, k: int) -> list[Hit]:
        """Items behind the beams, in their order, at most k; behind one SID the newest first."""
        hits: list[Hit] = []
        behind = self.epoch.items_behind(beams.codes, allowed, k, beams.leaves, beams.twins)
        for items, codes, score in zip(behind, beams.codes.tolist(), beams.scores.tolist(), strict=True):
            assert items, "the search returned a SID without an allowed item"
            hits += [Hit(item, score, tuple(codes)) for item in items[: k - len(hits)]]
            if len(hits) == k:
                break
        return hits

    def _search(self, requests: Sequence[Request], asks: Sequence[Ask]) -> list[list[Beams]]:
        """Beam search in batches of about equally long prompts, so that little padding is computed."""
        from tqdm import tqdm

        from models.retrieval.beam import Beams

        levels = self.vocabulary.space.num_levels
        if (least := min((ask.width for ask in asks), default=1)) < 1:
            raise InputError(f"beam width {least}: at least 1")
        width = sum(ask.width for ask in asks)
        nothing = Beams(np.zeros((0, levels), dtype=np.int64), np.zeros(0, dtype=np.float32))
        found = [dict.fromkeys(range(len(requests)), nothing) for _ in asks]
        prompts = [self.prompt(request).read for request in requests]
        asked = [number for number in range(len(requests)) if any(_has_any(ask, number) for ask in asks)]
        order = sorted(asked, key=lambda number: (len(prompts[number]), number), reverse=True)
        progress = tqdm(total=len(order), desc=f"beam {width}", unit="request", disable=len(order) < 100 or None)
        batches = []
        while order:
            length = len(prompts[order[0]]) + width * (levels - 1)
            size = max(1, min(_MAX_BATCH, _MAX_MASK // (width * length)))
            batches.append(order[:size])
            order = order[size:]

        def search(batch: list[int]) -> list[dict[int, Beams]]:
            results = self._search_batch([prompts[number] for number in batch], batch, asks)
            progress.update(len(batch))
            return results

        for results in _each(search, batches):
            for one, some in zip(found, results, strict=True):
                one |= some
        progress.close()
        return [[one[number] for number in range(len(prompts))] for one in found]

    def _search_batch(
        self, prompts: list[list[int] | Places], batch: list[int], asks: Sequence[Ask]
    ) -> list[dict[int, Beams]]:
        """What each ask finds after these prompts, by the number of the request. batch: their numbers."""
        from models.retrieval.beam import BEST, Search, beam_searches
        from models.retrieval.trie import Allowed

        searches, askers = [], []
        for ask in asks:
            asked = {number for number in batch if _has_any(ask, number)}
            askers.append(asked)
            if not asked:
                continue
            # A request that may get nothing from this ask rides along, and what it finds is thrown away.
            rules = [(ask.allowed[n] if n in asked else None) or Allowed() for n in batch]
            limited = any(one.base is not None or one.delta is not None for one in rules)
            base, delta = self.epoch.base, self.epoch.delta
            searches.append(
                Search(
                    base.trie(self.device),
                    ask.width,
                    delta=None if delta is None else delta.trie(self.device),
                    allowed=rules if limited else None,
                    choice=ask.choice or BEST,
                )
            )
        found = iter(
            beam_searches(
                self.model,
                prompts,
                searches,
                space=self.vocabulary.space,
                sid_base=self.vocabulary.sid_base,
                device=self.device,
            )
        )
        return [
            {n: one for n, one in zip(batch, next(found), strict=True) if n in asked} if asked else {}
            for asked in askers
        ]


def _each(search: Callable[[list[int]], list[dict[int, Beams]]], batches: list[list[int]]) -> Iterator[Any]:
    """The results of all batches. Many are searched side by side, a thread a core: a batch is too small for two."""
    import torch

    workers = len(batches) // 2
    if workers > 1 and torch.get_num_threads() == 1:  # asked first: a request does not wait for settings to be read
        workers = min(get_settings().threads or len(os.sched_getaffinity(0)), workers)
    if workers < 2 or torch.get_num_threads() > 1:
        yield from map(search, batches)
        return
    # a new thread begins with the threads of the environment, not with those of this one
    with ThreadPoolExecutor(workers, "beams", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(search, batches)


def _has_any(ask: Ask, number: int) -> bool:
    """Whether an ask lets a request get anything."""
    allowed = ask.allowed[number]
    return allowed is None or len(allowed) > 0
