"""Examples of continued pre-training (PLUM 2.2, Table 1), and those that it is examined on afterwards.

Behaviour, half of the examples: a window of a user's history,

    wh =<sid><gap><sid>…                                                 bare, or with features:
    wh =<sid>channel<watch_ratio_3><watch_time_s_5><gap><sid>channel…

Metadata, the other half: SID + title, topics, channel or description; any of these texts → SID (`naming`); first codes
+ title → the other codes (`codes`); SID + its numbers (price, age, duration); first codes → the topic or the channel
that clearly most of their items have. On request general text is mixed in. Every token is a target.

Held out are items (no example ties their texts to their SIDs, which still occur in histories), users (their histories
are in no example) and lines of the general text: `models/corpus/cpt_heldout.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.corpus.cpt_heldout import hold_out
from models.corpus.examples import Examples, ExamplesBuilder
from models.corpus.material import CorpusParams, Material
from models.corpus.prefix_names import name_prefixes
from models.language.facts import CHANNEL_TOKENS, Feature, add_features
from models.language.numbers import ITEM_NUMBERS
from models.language.phrases import PHRASES
from plumline.errors import InputError
from plumline.schema import NUMBERS


@dataclass(frozen=True)
class CptExamples:
    """What is learned, and what is asked afterwards. heldout: by kind, targets are what is asked for."""

    train: Examples
    heldout: Examples


def cpt_examples(params: CorpusParams, material: Material, rng: np.random.Generator) -> CptExamples:
    """As many behaviour as metadata examples (only one sort if there is nothing to make the other of), and text.

    Raises InputError if the general text cannot be read.
    """
    writer = _Writer(params, material)
    lines = _general_lines(params.general_text)
    told = np.array(sorted({row for column in writer.texts.values() for row in column}), dtype=np.int64)
    items = told[hold_out([material.sids.item_ids[row] for row in told], params.heldout_share, "item")]
    able = np.flatnonzero(np.diff(material.events.user_starts) > 1)  # one event alone is nothing to predict
    users = able[hold_out([material.events.user_ids[user] for user in able], params.heldout_share, "user")]
    unread = hold_out(lines, params.heldout_share, "line")
    writer.feature(without=set(items.tolist()))

    train, heldout = ExamplesBuilder(), ExamplesBuilder()
    # 1. Behaviour: consecutive windows of every history, the last one ending with the last event.
    num_behaviour = 0
    secret = set(users.tolist())
    for user in range(len(material.events.user_ids)):
        for tokens in writer.windows(user, rng) if user not in secret else ():
            train.add_sequence(tokens, "behaviour")
            num_behaviour += 1
    for user in users:
        tokens = next(writer.windows(int(user), rng))
        writer.ask(heldout, tokens, writer.is_sid_but_first(tokens), "behaviour")
    # 2. Metadata: every item with every schema that there is something to say in, shuffled, taken round and round.
    schemas = writer.schemas(without=set(items.tolist()))
    order = rng.permutation(len(schemas)) if schemas else np.zeros(0, dtype=np.int64)
    num_metadata = (num_behaviour or len(schemas)) if schemas else 0
    for place in np.resize(order, num_metadata):
        train.add_sequence(writer.metadata(*schemas[place], rng), "metadata")
    for kind in ("title", "topics", "channel"):
        for row in items.tolist():
            if row in writer.texts[kind]:
                writer.ask(heldout, *writer.text_of(kind, row), kind)
    for row in items.tolist():
        if row in writer.texts["title"]:
            tokens = writer.metadata("naming", "title", row, rng)
            writer.ask(heldout, tokens, tokens >= writer.words.sid_base, "naming")
    # 3. General text: its share of all examples.
    wanted = round(params.general_share / (1 - params.general_share) * (num_behaviour + num_metadata))
    known = np.delete(np.arange(len(lines)), unread)
    for line in np.resize(rng.permutation(known), wanted if len(known) else 0):
        train.add_sequence(writer.general(lines[line]), "general")
    for line in unread:
        tokens = writer.general(lines[line])
        writer.ask(heldout, tokens, np.arange(len(tokens)) > 0, "general")
    return CptExamples(train.build(), heldout.build())


class _Writer:
    """Writes events, items and lines as tokens."""

    def __init__(self, params: CorpusParams, material: Material) -> None:
        self.params, self.material, self.words = params, material, material.words
        words = self.words
        self.bos, self.eos = words.control["<bos>"], words.control["<eos>"]
        self.levels, self.longest = words.space.num_levels, words.shape.max_history
        self.phrase = {name: [words.encode_phrase(part) for part in parts] for name, parts in PHRASES.items()}
        self.texts = {name: self._encode(column) for name, column in material.texts.items()}
        self.sid_ids = words.sid_token_ids(material.sids.codes).tolist()
        self.opening = np.array([self.bos, *self.phrase["history"][0]], dtype=np.int32)
        self.numbers = _item_number_tokens(material)
        self.prefixes: dict[str, list[tuple[list[int], list[int]]]] = {}  # schema → (tokens of the codes, of the name)
        self.featured = material.stream
        self.has_features = False

    def _encode(self, texts: dict[int, str]) -> dict[int, list[int]]:
        encoded = self.words.encode_untrusted_batch(texts.values(), self.params.max_text_tokens)
        return {row: ids for row, ids in zip(texts, encoded, strict=True) if ids}

    def feature(self, without: set[int]) -> None:
        """Make the stream of events with features; items that are held out have no channel in it."""
        events = self.material.events
        channels = {r: ids[:CHANNEL_TOKENS] for r, ids in self.texts["channel"].items() if r not in without}
        channel = Feature.of([channels.get(row, []) for row in range(len(self.sid_ids))]).take(events.rows)
        numbers = [
            Feature.of_number(self.words, name, events.numbers[name]) for name in NUMBERS if name in events.numbers
        ]
        self.has_features = bool(channels) or any(len(number.tokens) for number in numbers)
        if self.has_features:
            self.featured = add_features(self.material.stream, [channel, *numbers])

    def windows(self, user: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Windows of a user's events, latest first, each with features or bare as chance has it."""
        begin, stop = self.material.events.user_starts[user : user + 2].tolist()
        while stop - begin > 1:  # a window of one event predicts nothing
            featured = self.has_features and rng.random() < self.params.feature_share
            stream = self.featured if featured else self.material.stream
            room = self.params.max_tokens - len(self.opening)
            start = int(np.searchsorted(stream.starts, stream.starts[stop] - room))  # the first that fits
            start = min(max(begin, stop - self.longest, start), stop - 2)
            first = int(stream.starts[start]) + self._gap(start)  # a first item has no gap before it
            tokens = stream.tokens[first : stream.starts[stop]]
            yield np.concatenate([self.opening, tokens])[: self.params.max_tokens]
            stop = start

    def _gap(self, event: int) -> int:
        """Tokens of the gap before an event, 0 or 1."""
        return int(self.material.stream.sids[event] - self.material.stream.starts[event])

    def is_sid_but_first(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens of a window are SIDs that something stands before, whole ones only. Returns (t,) bool."""
        places = np.flatnonzero(tokens >= self.words.sid_base)
        found = np.zeros(len(tokens), dtype=bool)
        found[places[self.levels : len(places) // self.levels * self.levels]] = True
        return found

    def schemas(self, without: set[int]) -> list[tuple[str, str, int]]:
        """(schema, column, row) of all that can be said of items that are not held out."""
        found = [
            (name, column, row)
            for column, texts in self.texts.items()
            for row in sorted(texts.keys() - without)
            for name in (column, "naming")
        ]
        if self.levels > 1:
            found += [("codes", "title", row) for row in sorted(self.texts["title"].keys() - without)]
        found += [("numbers", "", row) for row in sorted(self.numbers.keys() - without)]
        channel = {row: (text,) for row, text in self.material.texts["channel"].items()}
        for column, names in (("topics", self.material.topics), ("channel", channel)):
            told = {row: value for row, value in names.items() if row not in without}
            named = name_prefixes(self.material.sids.codes, told) if told else {}
            texts = self.words.encode_untrusted_batch(named.values(), self.params.max_text_tokens)
            codes = [self._prefix_ids(prefix) for prefix in named]
            self.prefixes[f"{column}_of_prefix"] = list(zip(codes, texts, strict=True))
            found += [(f"{column}_of_prefix", column, place) for place in range(len(named))]
        return found

    def _prefix_ids(self, codes: Sequence[int]) -> list[int]:
        whole = [*codes, *[0] * (self.levels - len(codes))]
        ids: list[int] = self.words.sid_token_ids(np.array(whole)).tolist()
        return ids[: len(codes)]

    def metadata(self, schema: str, column: str, row: int, rng: np.random.Generator) -> np.ndarray:
        """One sentence. row: of the SID table; of a prefix its place. Returns (t,) int32."""
        before, *between = self.phrase[schema]
        if schema.endswith("_of_prefix"):
            codes, name = self.prefixes[schema][row]
            return self._sentence(before, codes, between[0], name)
        sid = self.sid_ids[row]
        if schema == "naming":
            return self._sentence(before, self.texts[column][row], between[0], sid)
        if schema == "numbers":
            return self._sentence(before, sid, between[0], self.numbers[row])
        if schema == "codes":
            cut = int(rng.integers(1, self.levels))
            return self._sentence(before, sid[:cut], between[0], self.texts[column][row], between[1], sid[cut:])
        return self._sentence(before, sid, between[0], self.texts[column][row])

    def text_of(self, column: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The sentence SID + text, and which of its tokens are the text and its end, (t,) bool."""
        before, after = self.phrase[column]
        tokens = self._sentence(before, self.sid_ids[row], after, self.texts[column][row])
        return tokens, np.arange(len(tokens)) > len(before) + self.levels + len(after)

    def _sentence(self, *parts: Sequence[int]) -> np.ndarray:
        return np.array([self.bos, *(i for part in parts for i in part), self.eos], dtype=np.int32)

    def general(self, line: str) -> np.ndarray:
        """A line of general text, cut to what an example may hold."""
        return self._sentence(self.words.encode_untrusted(line, self.params.max_tokens - 2))

    def ask(self, builder: ExamplesBuilder, tokens: np.ndarray, targets: np.ndarray, kind: str) -> None:
        """A plain sequence of which only some tokens are targets, if any is. targets: (t,) bool."""
        if targets.any():
            span = np.arange(len(tokens), 0, -1, dtype=np.int32)
            builder.add_tree(tokens, span, targets.astype(np.int8), kind, 1.0)


def _item_number_tokens(material: Material) -> dict[int, list[int]]:
    """Row of the SID table → tokens of the numbers of its item, for items that have any."""
    words: Any = material.words
    known = material.item_numbers
    names = [name for name in ITEM_NUMBERS if name in known and name in words.numbers]
    if not names:
        return {}
    tokens = np.stack([words.number_tokens(name, known[name]) for name in names], axis=1)
    return {row: ids[ids >= 0].tolist() for row, ids in enumerate(tokens) if (ids >= 0).any()}


def _general_lines(path: Path | None) -> list[str]:
    """Different lines that say something, sorted."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"corpus.general_text {path}: not readable as UTF-8 ({error}); name a text file") from None
    lines = sorted({line.strip() for line in text.splitlines() if line.strip()})
    if not lines:
        raise InputError(f"corpus.general_text {path}: no line in it; name a text file with a paragraph a line")
    return lines
