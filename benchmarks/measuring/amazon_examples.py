"""What Plumline's model is trained on in a leave-one-out task: passes over all histories, each in another order.

A user's history is a plain sequence of SIDs, every item a target, each time with the days' items in another order, and
behind every item are items drawn from a training-free teacher (models/corpus/teacher.py), fitted on the training events
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.measuring.leave_one_out import LeaveOneOut
from models.corpus.examples import KINDS, Examples, ExamplesBuilder
from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.corpus.teacher import Teacher, TeacherParams, draw
from models.language.facts import ranges
from models.language.places import HeadParams
from models.language.words import Vocabulary
from models.semantic_ids.table import SidTable
from plumline.stage import hash_seed


@dataclass(frozen=True)
class AmazonParams:
    """What was chosen on the validation items of amazon2014_beauty (docs/experiments.md).

    num_taught: items drawn from the teacher behind every item of a history, a pass. max_passes: over all histories.
    minilm: embed titles with MiniLM beside TF-IDF, where its package is there. item_places: an item of a history takes
    one place, not one a code. head: the SID head then.
    """

    codebooks: tuple[int, ...] = (4096, 64)
    contrastive_weight: float = 2.0
    quantizer_steps: int = 1500
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.3
    learning_rate: float = 2.5e-3
    embedding_rate: float = 3.0
    average_decay: float = 0.999
    num_taught: int = 1
    max_history: int = 50
    max_passes: int = 120
    minilm: bool = True
    item_places: bool = True
    head: HeadParams = field(default_factory=HeadParams)
    teacher: TeacherParams = field(default_factory=lambda: TeacherParams(sharpness=2.0))


def opening_of(words: Vocabulary) -> list[int]:
    return [words.control["<bos>"], words.control["<history>"]]


def fit_teacher(
    task: LeaveOneOut, item_ids: Sequence[str], params: TeacherParams, seed: int
) -> tuple[Teacher, np.ndarray]:
    """The teacher of the training events, their days in a random order; and rows of item_ids of those events."""
    place = {item: row for row, item in enumerate(item_ids)}
    columns = task.items.select(["item_id", "title", "channel", "topics"]).to_pylist()
    text_of = {
        row["item_id"]: " ".join(filter(None, [row["title"], row["channel"], *(row["topics"] or [])]))
        for row in columns
    }
    rows = _rows(task, place, seed)
    return Teacher.fit(rows, _starts(task), [text_of[item] for item in item_ids], params), rows


def _starts(task: LeaveOneOut) -> np.ndarray:
    lengths = [len(items) for items in task.histories.column("item_ids").to_pylist()]
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _rows(task: LeaveOneOut, place: dict[str, int], seed: int) -> np.ndarray:
    histories = task.shuffled_days(seed).column("item_ids").to_pylist()
    return np.array([place[item] for history in histories for item in history], np.int64)


class _Passes:
    """What passes over all histories are made of; what the teacher says is worked out once."""

    def __init__(self, task: LeaveOneOut, words: Vocabulary, table: SidTable, params: AmazonParams, seed: int) -> None:
        place = {item: row for row, item in enumerate(table.item_ids)}
        self.tokens, self.codes = words.sid_token_ids(table.codes).astype(np.int32), table.codes
        self.opening = np.array(opening_of(words), np.int32)
        self.params, self.task, self.place = params, task, place
        # Within a day the order of a pass is random, the teacher's history is that of one such order.
        self.starts = _starts(task)
        self.taught = None
        if params.num_taught:
            teacher, rows = fit_teacher(task, table.item_ids, params.teacher, hash_seed(seed, "teacher"))
            self.taught = teacher.candidates(rows, self.starts, np.arange(len(rows)))

    def _shuffled(self, seed: int) -> np.ndarray:
        return _rows(self.task, self.place, seed)

    def _windows(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """First event and end of each history's window of this pass; those without an event are left out.

        A long history is cut at another place each time, so that no item is always at the beginning.
        """
        begin, end, longest = self.starts[:-1], self.starts[1:], self.params.max_history
        first = begin.copy()
        long = np.flatnonzero(end - begin > longest)
        first[long] = rng.integers(begin[long], end[long] - longest + 1)
        stop = np.minimum(end, first + longest)
        return first[stop > first], stop[stop > first]


class ExamplesOf(_Passes):
    """Examples in which every item is spelled as its SID."""

    def __call__(self, passes: int, seed: int) -> Examples:
        builder = ExamplesBuilder()
        rng = np.random.default_rng(seed)
        for number in range(passes):
            rows = self._shuffled(hash_seed(seed, number))
            drawn = None
            if self.taught is not None:
                drawn = draw(*self.taught, self.params.num_taught, rng)
            for first, stop in zip(*self._windows(rng), strict=True):
                builder.add_tree(*self._tree(rows, drawn, first, stop), "behaviour", 1.0)
        return builder.build()

    def _tree(
        self, rows: np.ndarray, drawn: np.ndarray | None, first: int, stop: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, spans and targets of the events [first, stop): a trunk of SIDs, branches of what the teacher says."""
        levels = self.tokens.shape[1]
        tokens, span, loss = [self.opening], [np.zeros(2, np.int32)], [np.zeros(2, np.int8)]
        branch = np.arange(levels, 0, -1, dtype=np.int32)
        for event in range(first, stop):
            tokens.append(self.tokens[rows[event]])
            span.append(np.zeros(levels, np.int32))
            loss.append(np.ones(levels, np.int8))
            for item in drawn[event] if drawn is not None else ():
                if item >= 0:
                    tokens.append(self.tokens[item])
                    span.append(branch)
                    loss.append(np.ones(levels, np.int8))
        joined = np.concatenate(span)
        trunk = joined == 0
        joined[trunk] = len(joined) - np.flatnonzero(trunk)
        return np.concatenate(tokens), joined, np.concatenate(loss)


class ItemExamplesOf(_Passes):
    """The same with one place an item: each event is asked for at the place before it, and at its own what the teacher
    says of what follows it."""

    def __call__(self, passes: int, seed: int) -> ItemExamples:
        rng = np.random.default_rng(seed)
        levels, opening = self.tokens.shape[1], len(self.opening)
        parts: list[tuple[np.ndarray, ...]] = []
        for number in range(passes):
            rows = self._shuffled(hash_seed(seed, number))
            drawn = np.zeros((len(rows), 0), np.int64)
            if self.taught is not None:
                drawn = draw(*self.taught, self.params.num_taught, rng)
            first, stop = self._windows(rng)
            lengths = stop - first
            event = ranges(first, lengths)
            place = event - np.repeat(first, lengths)  # within its window
            window = np.repeat(np.arange(len(first)), lengths)
            said = drawn[event] >= 0
            # Targets: the events themselves, then what the teacher says, by window.
            target = np.concatenate([rows[event], drawn[event][said]])
            source = np.concatenate([opening - 1 + place, np.repeat(opening + place, said.sum(axis=1))])
            of = np.concatenate([window, np.repeat(window, said.sum(axis=1))])
            order = np.argsort(of, kind="stable")
            sizes = np.full(len(event) + opening * len(first), levels)
            begins = np.cumsum(lengths + opening) - lengths - opening
            sizes[begins[:, None] + np.arange(opening)] = 1
            tokens = np.empty(int(sizes.sum()), np.int32)
            at = np.cumsum(sizes) - sizes
            tokens[at[begins[:, None] + np.arange(opening)]] = self.opening
            tokens[at[opening + begins[window] + place][:, None] + np.arange(levels)] = self.tokens[rows[event]]
            counts = np.bincount(of, minlength=len(first))
            parts.append((tokens, sizes, lengths + opening, source[order], target[order], counts))
        tokens, sizes, lengths, source, target, counts = (np.concatenate(some) for some in zip(*parts, strict=True))
        return ItemExamples(
            tokens=tokens,
            sizes=sizes.astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            source=source.astype(np.int32),
            question=np.full(len(source), NO_QUESTION, np.int32),
            codes=self.codes[target].astype(np.int32),
            target_offsets=np.concatenate([[0], np.cumsum(counts)]),
            kind=np.full(len(lengths), KINDS.index("behaviour"), np.int8),
            weight=np.ones(len(lengths), np.float32),
        )
