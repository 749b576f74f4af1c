"""A release that answers: plain Python, used alike by `plumline recommend`, the service, and tests.

    recommender = Recommender.load(Path("releases/sealed/…"), tombstones=read_tombstones(Path("releases")))
    recommender.recommend(history=["22423", "85123A"], k=10)

What is served are the beams of the model and counted candidates in the order of the release's ranker, each with its
reasons; the beams as they are on request (`retrieval_only`), and from releases that were sealed without a ranker.
Whatever is proposed, only items that stand in the release's catalogue, are not retired, not tombstoned, not
repeated, and carry the very SID that was generated leave this module; anything else is counted in `num_invalid`.
Items the user has seen may come back (`exclude_seen` is off): in retail four in ten purchases are repeats.
"""

import math
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plumline.errors import InputError
from plumline.schema import NUMBERS
from plumline.settings import get_settings
from plumline.tables import column
from serving.release import Release

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from features.online import OnlineFeatures, OnlineUser
    from models.ranking.ranked import RankedHit, RankedRetriever
    from models.ranking.why import Reason, Teller
    from models.retrieval.beam import Choice
    from models.retrieval.retriever import Hit, Retriever

MAX_K = 100
BEAM_WIDTH = 50
"""Beams of a request for up to so many items; a request for more is searched with as many beams as items."""
MAX_FEATURE_AGE = timedelta(days=2)
"""How much older than the release online features may be before an answer made with them counts as degraded."""

HistoryItem = str | tuple[str, int | None]
EventNumbers = Mapping[str, Sequence[float | None]]
"""Numeric column of events (plumline.schema.NUMBERS) → value of each event of a history, None where it is not known."""


@dataclass(frozen=True)
class RecommendedItem:
    """One answer. sid: its text. score: the ranker's, higher is better and comparable within one answer only; of a beam
    the sum of the log probabilities of its tokens, ≤ 0. why: what spoke for it, with shares that sum to 1; of a beam
    nothing."""

    item_id: str
    title: str | None
    sid: str
    score: float
    why: "tuple[Reason, ...]" = ()


@dataclass(frozen=True)
class Recommendation:
    """What is recommended, best first (a sample: as it was drawn).

    degraded: whether something that should have been known was not. reason: "" or why the answer is less than it could
    be: "cold" (no known item in the history), "timeout", "stale", "error", "unavailable" (online features; the four
    that degrade), "short" (fewer than k items). detail: one line to it, "" if there is none.
    num_allowed: items that might have been recommended, known before anything was generated.
    history_length: items of the history that the release knows. num_unknown_history: those it does not. prompt: what
    the language model read, token by token, as it is spelt.
    num_invalid: proposals that were not fit to serve. ranked: whether a ranker made the order.
    """

    release_id: str
    items: tuple[RecommendedItem, ...]
    degraded: bool
    reason: str
    history_length: int
    num_unknown_history: int
    num_invalid: int
    num_allowed: int
    detail: str = ""
    ranked: bool = False
    prompt: tuple[str, ...] = ()


@dataclass(frozen=True)
class _User:
    """What is known about who asks. reason: why it is less than it should be, "" if it is not. numbers: of history."""

    history: tuple[tuple[str, int], ...]
    profile: Mapping[str, str]
    numbers: EventNumbers = field(default_factory=dict)
    degraded: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Recommender:
    """One release in memory; immutable, so that a worker swaps releases by swapping this object.

    release: what it is. retriever: the model. titles: item → title of the items that may be served: in the catalogue,
    not retired, in the index. tombstones: items that must never be served. ranked: what puts the beams and counted
    candidates into order, None for the beams alone.
    """

    release: Release
    retriever: "Retriever"
    titles: Mapping[str, str | None]
    tombstones: frozenset[str] = frozenset()
    ranked: "RankedRetriever | None" = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        tombstones: frozenset[str] = frozenset(),
        device: str | None = None,
        precision: Literal["float32", "bfloat16"] | None = None,
        plain: bool = False,
    ) -> "Recommender":
        """Verify a sealed release and load it. Raises the errors of `Release.load`.

        device: "cpu", "cuda" …; None takes PLUMLINE_DEVICE. precision: of the weights; None takes PLUMLINE_PRECISION.
        plain: for a process that answers once and ends; see `Retriever.load`.
        """
        from features.catalog import Catalog
        from models.language.model import pick_device
        from models.retrieval.retriever import Retriever

        release = Release.load(folder)
        items = Catalog.load(release.path("catalog")).items
        facts = zip(column(items, "item_id"), column(items, "title"), column(items, "retired"), strict=True)
        live = {item: title for item, title, retired in facts if not retired}
        retriever = Retriever.load(
            vocabulary=release.path("vocabulary"),
            sids=release.path("sids"),
            weights=release.path("sft") / "weights",
            index=release.path("index"),
            catalog=release.path("catalog"),
            device=device or pick_device(),
            precision=precision or get_settings().precision,
            plain=plain,
        )
        retriever.epoch.base.tags.encode()  # now, and not while the first user with a rule waits
        ranked = None
        if release.has("ranker"):
            from models.memory.memory import Memory
            from models.ranking.frozen_ranker import Ranker
            from models.ranking.ranked import RankedRetriever

            ranker, memory = Ranker.load(release.path("ranker")), Memory.load(release.path("memory"))
            ranked = RankedRetriever.of(retriever, memory, ranker)
        return cls(
            release=release,
            retriever=retriever,
            ranked=ranked,
            titles={item: live[item] for item in retriever.epoch.item_ids() if item in live},
            tombstones=tombstones,
        )

    def with_tombstones(self, tombstones: frozenset[str]) -> "Recommender":
        """The same release with other tombstones."""
        return replace(self, tombstones=tombstones)

    def with_items(self, items: "pa.Table", codes: "np.ndarray") -> "Recommender":
        """The same release with further items, or other SIDs of known ones. A ranker knows of them what the index does.

        items: item_id, title and channel (may be missing), and what `Epoch.add` takes. codes: (n, L).
        """
        ids = column(items, "item_id")
        titles = column(items, "title") if "title" in items.column_names else [None] * len(ids)
        return replace(
            self,
            retriever=self.retriever.with_items(items, codes),
            titles={**self.titles, **dict(zip(ids, titles, strict=True))},
        )

    @cached_property
    def _living(self) -> "Retriever":
        """The retriever, closed to what is deleted."""
        return self.retriever.without(self.tombstones)

    @cached_property
    def _lists(self) -> "RankedRetriever | None":
        """What makes ranked lists, closed to what is deleted."""
        return None if self.ranked is None else self.ranked.with_retriever(self._living)

    @cached_property
    def _teller(self) -> "Teller":
        from models.ranking.why import Teller

        assert self.ranked is not None
        # What is deleted is told by its id alone. The big mapping is not copied.
        titles = ChainMap(dict.fromkeys(self.tombstones), self.titles)  # type: ignore[arg-type]
        return Teller(titles, self.ranked.ranker.prefix_words, self.ranked.ranker.verb)

    def recommend(
        self,
        user_id: str | None = None,
        history: Sequence[HistoryItem] | None = None,
        profile: Mapping[str, str] | None = None,
        context_item: str | None = None,
        k: int = 10,
        *,
        at_ms: int | None = None,
        exclude_seen: bool = False,
        features: "OnlineFeatures | None" = None,
        rule: str | None = None,
        now_ms: int | None = None,
        choice: "Choice | None" = None,
        retrieval_only: bool = False,
        show_prompt: bool = False,
        numbers: EventNumbers | None = None,
    ) -> Recommendation:
        """The k best items for a user or a history.

        history: item ids, or (item id, epoch ms), oldest first; given, it is what counts, else the online features of
        user_id do. profile: column → value, given instead of the online one. context_item: the item looked at; unknown
        ones are ignored. now_ms: when the user asks, epoch milliseconds: from then a rule counts ages, and how long
        after its last event the user is back is told to the model (without it, or times in the history: a day). at_ms:
        told to the model instead of it. exclude_seen: leave out what is in the history. features: the online store;
        None if it is not at hand. rule: what every item must fulfil, as in `models/retrieval/rules.py` (`seen` is the
        history). choice: the best items (None), at most so many a branch, or a sample; see `models/retrieval/beam.py`.
        retrieval_only: the beams as they are, for who has a ranker of their own. show_prompt: say what the model read.
        numbers: of the events of `history`, in its order, for a release whose prompts tell them; without a history
        those of the online features count.
        Raises InputError for k outside 1 … 100, for a history in which only some items have a time, for numbers that
        are none or not of this history, and for a rule that cannot be read or allows nothing.
        """
        from models.retrieval.retriever import Request
        from models.retrieval.rules import parse

        if not 1 <= k <= MAX_K:
            raise InputError(f"k = {k}: ask for 1 to {MAX_K} items")
        user = self._user(user_id, history, profile, features, numbers)
        places = [place for place, (item, _) in enumerate(user.history) if self.knows(item)]
        known = tuple(user.history[place] for place in places)
        seen = frozenset(item for item, _ in known) if exclude_seen else frozenset()
        request = Request(
            history=list(known),
            profile=dict(user.profile),
            context_item=context_item if context_item is not None and self.knows(context_item) else None,
            at_ms=at_ms if at_ms is not None else self._visit_ms(known, now_ms),
            exclude=seen,
            rule=None if rule is None else parse(rule),
            now_ms=now_ms,
            numbers={name: [values[place] for place in places] for name, values in user.numbers.items()},
        )
        retriever = self._living
        allowed = retriever.allowed(request)
        num_allowed = retriever.count(allowed)
        if num_allowed == 0 and rule is not None:
            raise InputError(f"rule allows no item: {retriever.explain(request)}; ask for less")
        hits: Sequence[Hit | RankedHit]
        lists = None if retrieval_only else self._lists
        if lists is None:
            [hits] = retriever.retrieve([request], k=k, width=max(k, BEAM_WIDTH), choice=choice, allowed=[allowed])
        else:
            [[found]] = lists.find([[request]], size=k, choice=choice, allowed=[[allowed]], to_tell=True)
            hits = lists.rank(found, k, choice, self._teller)
        items, num_invalid = self._servable(hits, seen)
        short = len(items) < k
        why = retriever.explain(request) if short else ""
        if len(items) < min(k, num_allowed) and choice is not None and choice.cap is not None:
            why = f"{num_allowed:,} are allowed, but at most {choice.cap} SIDs of one branch (level {choice.cap_level})"
        elif num_invalid:
            why = f"{num_invalid} proposals were not fit to serve"
        return Recommendation(
            release_id=self.release.release_id,
            items=tuple(items[:k]),
            degraded=user.degraded,
            reason=user.reason or ("cold" if not known else "short" if short else ""),
            history_length=len(known),
            num_unknown_history=len(user.history) - len(known),
            num_invalid=num_invalid,
            num_allowed=num_allowed,
            detail=f"{len(items)} of {k} items: {why}" if short else "",
            ranked=lists is not None,
            prompt=retriever.vocabulary.spell(retriever.prompt(request).token_ids) if show_prompt else (),
        )

    def _visit_ms(self, history: Sequence[tuple[str, int]], now_ms: int | None) -> int | None:
        """When the model is told that the user asks: what the ranker counts from. None: that is not known."""
        if self.ranked is None or now_ms is None or not history or not history[-1][1]:
            return None
        return self.ranked.rank_time(now_ms)

    def _user(
        self,
        user_id: str | None,
        history: Sequence[HistoryItem] | None,
        profile: Mapping[str, str] | None,
        features: "OnlineFeatures | None",
        numbers: EventNumbers | None,
    ) -> _User:
        """Who asks: what the request says comes first, the online store fills in what it leaves out."""
        told = _check_numbers(numbers or {}, 0 if history is None else len(history))
        given, told = (None, {}) if history is None else _timed(history, told)
        if given is not None or user_id is None:
            if profile is None and user_id is not None and features is not None and self._asks_profiles:
                profile = features.read(user_id, not_before=self.release.as_of - MAX_FEATURE_AGE).profile
            return _User(given or (), profile or {}, told)
        if features is None:
            return _User((), profile or {}, degraded=True, reason="unavailable")
        online: OnlineUser = features.read(user_id, not_before=self.release.as_of - MAX_FEATURE_AGE)
        if online.degraded:
            return _User((), profile or {}, degraded=True, reason=online.reason)
        return _User(online.history, profile if profile is not None else online.profile or {}, online.numbers)

    @property
    def _asks_profiles(self) -> bool:
        return bool(self.retriever.vocabulary.shape.profile_columns)

    def knows(self, item_id: str) -> bool:
        """Whether the release has the item, served or not."""
        return item_id in self.retriever.codes_of

    def _servable(self, hits: "Iterable[Hit | RankedHit]", seen: frozenset[str]) -> tuple[list[RecommendedItem], int]:
        """What of the model's proposals may be served, and how many may not. The last check before an answer."""
        items: dict[str, RecommendedItem] = {}
        num_invalid = 0
        for hit in hits:
            fit = (
                hit.item_id in self.titles
                and hit.item_id not in self.tombstones
                and hit.item_id not in seen
                and hit.item_id not in items
                and self.retriever.codes_of[hit.item_id] == tuple(hit.codes)
            )
            if not fit:
                num_invalid += 1
                continue
            items[hit.item_id] = RecommendedItem(
                item_id=hit.item_id,
                title=self.titles[hit.item_id],
                sid=self.retriever.vocabulary.space.format(tuple(hit.codes)),
                score=float(hit.score),
                why=getattr(hit, "why", ()),
            )
        return list(items.values()), num_invalid


def _check_numbers(numbers: EventNumbers, num_events: int) -> EventNumbers:
    """The same. Raises InputError for a number of another name, not one an event, or not finite."""
    for name, values in numbers.items():
        if name not in NUMBERS:
            raise InputError(f"numbers: {name!r} is no number of an event; there are {', '.join(NUMBERS)}")
        if len(values) != num_events:
            raise InputError(
                f"numbers: {len(values)} of {name} for {num_events} items of the history; give one an item"
            )
        for value in values:
            if value is not None and not math.isfinite(value):
                raise InputError(f"numbers: {name} {value} is not finite; give a number, or None where it is not known")
    return numbers


def _timed(
    history: Sequence[HistoryItem], numbers: EventNumbers
) -> tuple[tuple[tuple[str, int], ...], dict[str, list[float | None]]]:
    """(item, epoch ms) oldest first, and their numbers. Ids without times are one visit, in the order they came."""
    pairs = [(item, None) if isinstance(item, str) else item for item in history]
    num_timed = sum(at is not None for _, at in pairs)
    if num_timed not in (0, len(pairs)):
        raise InputError(
            f"history: {num_timed} of {len(pairs)} items have a timestamp; give one for every item or for none"
        )
    timed = [(item, at or 0) for item, at in pairs]
    order = sorted(range(len(timed)), key=lambda place: timed[place][1])
    sorted_numbers = {name: [values[place] for place in order] for name, values in numbers.items()}
    return tuple(timed[place] for place in order), sorted_numbers
