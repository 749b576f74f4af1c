"""What is told of an event or an item beside its SID: channel, title and numbers as tokens.

Not a stage. Continued pre-training (`models/corpus/cpt_examples.py`) and prompts (`models/language/prompt.py`) put
these tokens behind the SIDs of a history with the same function, `add_features`, so that a prompt speaks as was taught.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.language.words import Vocabulary

CHANNEL_TOKENS = 8
"""Most tokens of a channel beside a SID: in a history every event repeats it."""

TEXTS = ("channel", "title")
"""Columns of items that may stand beside a SID."""


@dataclass(frozen=True)
class EventTokens:
    """Token ids of events one after the other.

    tokens: (T,) int32. starts: (n + 1,) int64, first token of each event (its gap token where it has one) and the end.
    sids: (n,) int64, first token of each event's SID; what stands behind the SID are its features.
    """

    tokens: np.ndarray
    starts: np.ndarray
    sids: np.ndarray


@dataclass(frozen=True)
class Feature:
    """Tokens of one feature of n events, any number of them an event. tokens: flat. counts: (n,) int64."""

    tokens: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> "Feature":
        """From token ids of each event."""
        counts = np.array([len(one) for one in lists], dtype=np.int64)
        return cls(np.array([token for one in lists for token in one], dtype=np.int32), counts)

    @classmethod
    def of_number(cls, vocabulary: Vocabulary, name: str, values: np.ndarray) -> "Feature":
        """One token an event, none where the number is not known or the vocabulary has no such number.

        values: (n,) float, NaN: not known.
        """
        tokens = vocabulary.number_tokens(name, values)
        return cls(tokens[tokens >= 0], (tokens >= 0).astype(np.int64))

    def take(self, rows: np.ndarray) -> "Feature":
        """Those of some rows, as often as they are named. rows: (m,) integers."""
        starts, counts = np.cumsum(self.counts) - self.counts, self.counts[rows]
        return Feature(self.tokens[ranges(starts[rows], counts)], counts)


def add_features(stream: EventTokens, features: Sequence[Feature]) -> EventTokens:
    """The stream of events, each with its features behind it, in order."""
    widths = [np.diff(stream.starts), *(feature.counts for feature in features)]
    starts = np.concatenate([[0], np.cumsum(np.sum(widths, axis=0))]).astype(np.int64)
    tokens = np.empty(starts[-1], dtype=np.int32)
    at = starts[:-1]
    for width, part in zip(widths, [stream.tokens, *(feature.tokens for feature in features)], strict=True):
        tokens[ranges(at, width)] = part
        at = at + width
    return EventTokens(tokens, starts, starts[:-1] + stream.sids - stream.starts[:-1])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0] … starts[0] + lengths[0] - 1, then those of the next, flat."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True)
class ItemFacts:
    """Channel and title of an item as token ids, as far as prompts ask for them; none if not known."""

    channel: tuple[int, ...] = ()
    title: tuple[int, ...] = ()

    @classmethod
    def render(
        cls, vocabulary: Vocabulary, channels: Sequence[str | None], titles: Sequence[str | None]
    ) -> "list[ItemFacts]":
        """Of many items, by the texts that the catalogue has; they are text from outside."""
        asked = asked_texts(vocabulary)
        none: list[list[int]] = [[]] * len(channels)
        channel = vocabulary.encode_untrusted_batch(channels, CHANNEL_TOKENS) if "channel" in asked else none
        most = vocabulary.shape.max_title_tokens
        title = vocabulary.encode_untrusted_batch(titles, most) if "title" in asked else none
        return [cls(tuple(a), tuple(b)) for a, b in zip(channel, title, strict=True)]


def asked_texts(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Which of TEXTS the prompts of a vocabulary hold."""
    shape = vocabulary.shape
    return tuple(name for name in TEXTS if name in shape.history_features or name in shape.context_features)


class ItemTexts:
    """Texts of a release's items, encoded when first asked for. Several threads may ask.

    texts: item → (channel, title).
    """

    def __init__(self, vocabulary: Vocabulary, texts: Mapping[str, tuple[str | None, str | None]]) -> None:
        self._vocabulary, self._texts = vocabulary, texts
        self._facts: dict[str, ItemFacts] = {}

    @classmethod
    def of(cls, vocabulary: Vocabulary, items: pa.Table) -> "ItemTexts":
        """Of a table of items; nothing is read that the prompts of the vocabulary do not hold."""
        return cls(vocabulary, {}).with_items(items)

    def with_items(self, items: pa.Table) -> "ItemTexts":
        """The same with further items, or other texts of known ones. A column that is missing changes nothing."""
        names = [name for name in asked_texts(self._vocabulary) if name in items.column_names]
        if not names:
            return self
        ids = items.column("item_id").to_pylist()
        columns = {name: items.column(name).to_pylist() for name in names}
        before = [self._texts.get(item, (None, None)) for item in ids]
        channels, titles = (columns.get(name, [one[k] for one in before]) for k, name in enumerate(TEXTS))
        new = dict(zip(ids, zip(channels, titles, strict=True), strict=True))
        if not isinstance(self._texts, ChainMap):
            return ItemTexts(self._vocabulary, ChainMap(new, self._texts) if self._texts else new)  # type: ignore[arg-type]
        *added, whole = self._texts.maps  # the big one is never copied
        return ItemTexts(self._vocabulary, ChainMap({**ChainMap(*added), **new}, whole))

    def facts(self, item_id: str) -> ItemFacts:
        """What prompts say of an item; nothing of one that is not known."""
        if item_id not in self._facts:
            channel, title = self._texts.get(item_id, (None, None))
            [self._facts[item_id]] = ItemFacts.render(self._vocabulary, [channel], [title])
        return self._facts[item_id]
