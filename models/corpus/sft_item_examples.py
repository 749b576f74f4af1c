"""Examples of fine-tuning with one place an item: windows of histories, and what is asked at which place.

Not a stage. The other form of `sft_examples.py`, for vocabularies with `item_places` (models/language/places.py). A
window is a plain sequence of places: the head, then events. Every event but a window's first is asked for at the place
before it, with the gap before it as the question; the first of a user at <history>. What a place is asked for is that
event, or where a new day begins the items of that day (`targets.py`). So what stands before a target is place by place
what `render_places` gives for a request at that moment, as far as the window goes back.

The windows of a user lie one behind the other, the last of them ends with the history: a first training takes these,
of kind `older` or `replay`. The daily increment takes windows of their own, `recent`, whose histories go back beyond
the recent events and where those alone are asked for, and replays windows that ask for none of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from models.corpus.examples import KINDS
from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.corpus.material import CorpusParams, Material
from models.corpus.sft_examples import item_facts, prompt_stream
from models.corpus.targets import Targets
from models.language.places import event_sizes, most_places
from models.language.prompt import Profile, render_places_head
from plumline.errors import InputError


@dataclass(frozen=True)
class Window:
    """One example. Its places hold the events [start, stop). asked: events that are asked for, ascending, in
    (start, stop], or `start` itself where it is its user's first. recent: whether it is one of the daily increment."""

    start: int
    stop: int
    asked: np.ndarray
    recent: bool


def sft_item_examples(
    params: CorpusParams, material: Material, last_day: int, rng: np.random.Generator
) -> ItemExamples:
    """Windows of all users. last_day: as_of, in days since 1970.

    Raises InputError if no event has a reward, or max_tokens holds no request.
    """
    words, events = material.words, material.events
    writer = _WindowWriter(params, material, last_day, rng)
    kinds, weights = [], []
    for user, user_id in enumerate(tqdm(events.user_ids, desc="corpus: windows", unit=" users", mininterval=1.0)):
        profile = Profile.render(words, material.profiles.get(user_id, {}))
        head = np.array(render_places_head(words, profile), dtype=np.int32)
        for window in writer.windows(int(events.user_starts[user]), int(events.user_starts[user + 1])):
            writer.write(window, head)
            age = last_day - int(writer.targets.days[window.asked[-1]])
            kind = "recent" if window.recent else "older"
            if not window.recent and writer.targets.is_old(window.asked[-1]) and rng.random() < params.replay_share:
                kind = "replay"
            kinds.append(KINDS.index(kind))
            weights.append(0.5 ** (age / params.half_life_days))
    return writer.build(np.array(kinds, dtype=np.int8), np.array(weights, dtype=np.float32))


class _WindowWriter:
    """Cuts histories into windows and collects what stands in them."""

    def __init__(self, params: CorpusParams, material: Material, last_day: int, rng: np.random.Generator) -> None:
        self.params, self.events, self.words = params, material.events, material.words
        self.longest = self.words.shape.max_history
        if params.max_tokens < (needed := most_places(self.words)):
            raise InputError(
                f"corpus.max_tokens {params.max_tokens} cannot hold a request of {self.longest} items, a place each; "
                f"give {needed}, or lower vocabulary.max_history"
            )
        self.stream = prompt_stream(material, item_facts(material))
        self.targets = Targets(params, material, last_day, rng)
        self.codes = material.sids.codes
        self.sizes = event_sizes(self.stream)
        self.gaps = self.stream.sids - self.stream.starts[:-1]
        # Events with anything to predict.
        self.asks = self.targets.drawn & (params.trunk_loss or self.targets.begins_day)
        days = np.flatnonzero(self.targets.begins_day)
        self.asks[days] = [self.targets.most(event) > 0 for event in days.tolist()]
        self._tokens: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._source: list[np.ndarray] = []
        self._question: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._counts: list[tuple[int, int]] = []

    def windows(self, begin: int, end: int) -> Iterator[Window]:
        """Windows of one user's events [begin, end), latest first; none where nothing is asked for."""
        recent = begin + int(np.searchsorted(self.events.timestamps[begin:end], self.targets.first_recent))
        for first, stop, is_recent in ((recent, end, True), (begin, end, False)):
            while stop > first:
                start = max(begin, stop - 1 - self.longest)
                low = max(first, start + (start > begin))
                asked = low + np.flatnonzero(self.asks[low:stop])
                if len(asked):
                    yield Window(start, int(asked[-1]), asked, is_recent)
                stop = low

    def write(self, window: Window, head: np.ndarray) -> None:
        """Add an example. head: tokens of the places before the first event."""
        stream, start, stop = self.stream, window.start, window.stop
        sizes = self.sizes[start:stop].copy()
        sizes[:1] -= self.gaps[start]  # a first item has no gap before it
        self._tokens += [head, stream.tokens[stream.sids[start] : stream.starts[stop]] if stop > start else head[:0]]
        self._sizes += [np.ones(len(head), dtype=np.int64), sizes]
        rows = [self._rows_of(event) for event in window.asked.tolist()]
        counts = [len(some) for some in rows]
        # Nothing is asked of no history: the first event of a user has no gap before it.
        gap = np.where(self.gaps[window.asked] > 0, stream.tokens[stream.starts[window.asked]], NO_QUESTION)
        self._source.append(np.repeat(len(head) - 1 + window.asked - start, counts))
        self._question.append(np.repeat(gap, counts))
        self._rows += rows
        self._counts.append((len(head) + stop - start, sum(counts)))

    def _rows_of(self, event: int) -> np.ndarray:
        if self.targets.begins_day[event]:
            return self.targets.rows(event)
        return self.events.rows[event : event + 1]

    def build(self, kind: np.ndarray, weight: np.ndarray) -> ItemExamples:
        """All examples so far."""

        def joined(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, dtype=np.int32)

        places, targets = np.array(self._counts, dtype=np.int64).reshape(-1, 2).T
        return ItemExamples(
            tokens=joined(self._tokens),
            sizes=joined(self._sizes),
            offsets=np.concatenate([[0], np.cumsum(places)]),
            source=joined(self._source),
            question=joined(self._question),
            codes=self.codes[joined(self._rows)].astype(np.int32),
            target_offsets=np.concatenate([[0], np.cumsum(targets)]),
            kind=kind,
            weight=weight,
        )
