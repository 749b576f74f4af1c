"""A world small enough to look at: 24 items, a random model, everything a retriever reads."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.histories import read_queries
from models.corpus.examples import Examples, ExamplesBuilder
from plumline import artifact
from plumline.artifact import write_json
from plumline.schema import HISTORIES, ITEMS, QUERIES, conform
from plumline.tables import write_parquet

DAY_MS = 86_400_000


@dataclass(frozen=True)
class World:
    """Folders of the artifacts, and what is in them. retired: ids that may never come back."""

    catalog: Path
    sids: Path
    vocabulary: Path
    sft: Path
    index: Path
    histories: Path
    quantizer: Path
    memory: Path
    item_ids: list[str]
    retired: frozenset[str]
    as_of: datetime.date

    @property
    def live(self) -> list[str]:
        """Items that may come back."""
        return [item for item in self.item_ids if item not in self.retired]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Random SIDs of 4 x 3 x 3 codes (some shared), three retired items, a random Llama, eight users."""
    from models.language.model import LanguageParams, build_language_model, save_language_model
    from models.language.vocabulary import VocabularyParams
    from models.language.vocabulary import run as run_vocabulary
    from models.language.words import Vocabulary
    from models.memory.memory import MemoryParams
    from models.memory.memory import run as run_memory
    from models.retrieval.index import IndexParams
    from models.retrieval.index import run as run_index
    from models.semantic_ids.frozen_quantizer import Quantizer
    from models.semantic_ids.table import SidTable
    from plumline.sid import SidSpace

    folder = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(5)
    as_of = datetime.date(2020, 2, 1)
    ids = [f"item{number:02d}" for number in range(24)]
    retired = frozenset({"item03", "item11", "item20"})
    days = [as_of - datetime.timedelta(days=number) for number in range(24)]
    items = conform(pa.table({"item_id": ids, "title": [f"thing {item}" for item in ids]}), ITEMS)
    items = items.append_column("first_seen_day", pa.array(days))
    items = items.append_column("retired", pa.array([item in retired for item in ids]))
    write_parquet(folder / "catalog" / "items.parquet", items)
    users = [f"user{number}" for number in range(8)]
    profiles = pa.table({"user_id": users[:6], "country": ["France", "Peru", "Mali"] * 2})
    write_parquet(folder / "catalog" / "users.parquet", profiles)

    space = SidSpace((4, 3, 3))
    names = ("catalog", "sids", "vocabulary", "sft", "index", "histories", "quantizer", "memory")
    for name in names[1:]:
        (folder / name).mkdir()
    codes = generator.integers(0, space.sizes, (len(ids), 3)).astype(np.int32)
    codes[[5, 6, 7]] = codes[4]  # items behind one leaf
    SidTable(space, False, ids, codes).save(folder / "sids")
    run_index(IndexParams(), catalog=folder / "catalog", sids=folder / "sids", out=folder / "index")
    codebooks = np.random.default_rng(6).standard_normal((10, 5)).astype(np.float32)
    weights = {f"codebooks.{level}": block for level, block in enumerate(np.split(codebooks, [4, 7]))}
    Quantizer("rq_kmeans", {"text": 5}, (4, 3, 3), {}, weights).save(folder / "quantizer")
    start = int(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).timestamp() * 1000)
    lists = [generator.choice(ids, length).tolist() for length in (9, 6, 2, 1, 14, 3, 8, 5)]
    times = [[start + DAY_MS * place for place in range(len(items))] for items in lists]
    write_parquet(
        folder / "histories" / "histories.parquet",
        conform(
            pa.table(
                {
                    "user_id": users,
                    "item_ids": pa.array(lists, pa.list_(pa.string())),
                    "timestamps": pa.array(times, pa.list_(pa.int64())),
                    "rewards": pa.array([[1.0] * len(items) for items in lists], pa.list_(pa.float32())),
                }
            ),
            HISTORIES,
        ),
    )
    run_vocabulary(
        VocabularyParams(text_tokens=300, max_history=10),
        catalog=folder / "catalog",
        histories=folder / "histories",
        sids=folder / "sids",
        base=None,
        out=folder / "vocabulary",
    )
    params = LanguageParams(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, max_positions=256, init_std=0.4)
    model = build_language_model(params, Vocabulary.load(folder / "vocabulary"), seed=3)
    save_language_model(model, folder / "sft" / "weights")

    live = [item for item in ids if item not in retired]
    asked = [(user, day) for user in range(8) for day in (1, 2, 3) if (user + day) % 2]
    asked.append((8, 2))  # a user nobody has seen
    relevant = [sorted(generator.choice(live, 3, replace=False).tolist()) for _ in asked]
    relevant[0] = sorted(set(lists[asked[0][0]]) & set(live))[:2]  # all of it seen before
    assert relevant[0]
    write_parquet(
        folder / "histories" / "queries.parquet",
        conform(
            pa.table(
                {
                    "user_id": [f"user{user}" for user, _ in asked],
                    "day": [as_of + datetime.timedelta(days=day) for _, day in asked],
                    "item_ids": pa.array([[*lists[u], "unknown"] if u < 8 else [] for u, _ in asked]),
                    "timestamps": pa.array([[*times[u], times[u][-1]] if u < 8 else [] for u, _ in asked]),
                    "relevant": pa.array(relevant),
                }
            ),
            QUERIES,
        ),
    )
    asked_queries = read_queries(folder / "histories").to_pylist()
    last = list({query["user_id"]: query for query in asked_queries}.values())
    for query in last:  # the rest of the day, at 13, 14, … o'clock, and then the last of its items
        *others, target = query["relevant"]
        one = datetime.datetime.combine(query["day"], datetime.time(13), datetime.UTC)
        query["item_ids"] += others
        query["timestamps"] += [int(one.timestamp() * 1000) + 3_600_000 * place for place in range(len(others))]
        query["relevant"] = [target]
    events = pa.Table.from_pylist(sorted(last, key=lambda query: query["user_id"]), QUERIES.schema)
    write_parquet(folder / "histories" / "last_events.parquet", events)
    write_parquet(folder / "histories" / "labels.parquet", QUERIES.schema.empty_table())
    write_json(folder / "histories" / "stats.json", {"as_of": as_of.isoformat(), "action": "play"})
    run_memory(MemoryParams(), catalog=folder / "catalog", histories=folder / "histories", out=folder / "memory")
    return World(
        **{name: folder / name for name in names},
        item_ids=ids,
        retired=retired,
        as_of=as_of,
    )


@dataclass(frozen=True)
class PlacesWorld(World):
    """The same world with `vocabulary.item_places`: a vocabulary, weights, and what they were trained from."""

    corpus: Path
    cpt: Path


@pytest.fixture(scope="session")
def places_world(world: World, tmp_path_factory: pytest.TempPathFactory) -> PlacesWorld:
    """A vocabulary, a corpus, an untrained CPT checkpoint and a few steps of fine-tuning, all sealed."""
    from models.corpus.corpus import run as run_corpus
    from models.corpus.material import CorpusParams
    from models.language.model import LanguageParams
    from models.language.places import HeadParams
    from models.language.vocabulary import VocabularyParams
    from models.language.vocabulary import run as run_vocabulary
    from models.training.cpt import CptParams
    from models.training.cpt import run as run_cpt
    from models.training.packing import LoopParams
    from models.training.sft import SftParams
    from models.training.sft import run as run_sft

    folder = tmp_path_factory.mktemp("places")
    found = PlacesWorld(
        **{
            **{field.name: getattr(world, field.name) for field in fields(World)},
            **{name: folder / name for name in ("vocabulary", "corpus", "cpt", "sft")},
        }
    )
    tables = {name: getattr(found, name) for name in ("catalog", "histories", "sids")}
    with artifact.writing(found.vocabulary, stage="vocabulary", key="k") as out:
        words = VocabularyParams(text_tokens=300, max_history=6, item_places=True)
        run_vocabulary(words, **tables, base=None, out=out)
    with artifact.writing(found.corpus, stage="corpus", key="k") as out:
        taken = CorpusParams(max_tokens=64, recent_days=24, replay_share=0.5)
        run_corpus(taken, **tables, vocabulary=found.vocabulary, as_of=found.as_of, seed=1, out=out)
    loop = LoopParams(row_tokens=64, rows=2, accumulation=1, warmup_steps=2, learning_rate=3e-2, log_every=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLUMLINE_THREADS", "1")
        trained = {"corpus": found.corpus, "vocabulary": found.vocabulary}
        with artifact.writing(found.cpt, stage="cpt", key="k") as out:
            model = LanguageParams(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, init_std=0.3)
            told = CptParams(steps=0, model=model, loop=loop)
            run_cpt(told, **trained, quantizer=found.quantizer, base=None, seed=1, out=out)
        parents = {"cpt": artifact.read_manifest(found.cpt).digest}
        with artifact.writing(found.sft, stage="sft", key="k", parents=parents) as out:
            tuned = SftParams(steps=20, loop=loop, head=HeadParams(intermediate=24, prefix_rows=40))
            run_sft(tuned, **trained, cpt=found.cpt, base=None, seed=1, out=out)
    return found


@pytest.fixture(scope="session")
def rank(world: World) -> Callable[..., Path]:
    """(out, seed, width, base, previous, changes) → the stage `ranker` run on the world, or on other folders of it.

    changes: other parameters than those of a ranker that learns from a handful of labels, and other inputs.
    """
    from models.ranking.candidates import CandidateParams
    from models.ranking.lambdarank import LambdarankParams
    from models.ranking.ranker import RankerParams, run

    def make(out: Path, *, base: Path | None = None, previous: Path | None = None, **changes: Any) -> Path:
        names = ("catalog", "histories", "sids", "vocabulary", "sft", "index", "memory")
        inputs = {name: changes.pop(name, getattr(world, name)) for name in names}
        seed, width = changes.pop("seed", 17), changes.pop("width", 10)
        trees = LambdarankParams(rounds=5, leaves=3, min_leaf=2)
        params = RankerParams(
            **{"candidates": CandidateParams(width=width), "trees": trees, "min_queries": 2, **changes}
        )
        out.mkdir(parents=True)
        run(params, **inputs, base=base, previous=previous, seed=seed, out=out)
        return out

    return make


SPECIAL: dict[str, dict[str, str]] = {
    "qwen3": {"eos_token": "</s>", "pad_token": "</s>"},
    "llama": {"bos_token": "<|begin|>", "eos_token": "<|end|>"},  # no padding of its own
    "gemma3_text": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},  # they bear our names
}
"""Special tokens of the tokenizers that published models of a family have."""


@pytest.fixture(scope="session")
def make_foreign() -> Callable[..., Any]:
    """(folder, family, tied, layers) → a folder with model and tokenizer as others publish them; returns the model.

    300 rows for fewer tokens, padded, as many are.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from models.language.model import save_language_model

    def make(folder: Path, family: str = "qwen3", tied: bool = True, layers: int = 3) -> Any:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(["a thing of things", "another thing, other than that"] * 3, trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL[family])
        tokenizer.save_pretrained(folder)
        window = {"sliding_window": 16, "layer_types": ["sliding_attention", *["full_attention"] * (layers - 1)]}
        config = AutoConfig.for_model(
            family,
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=24,
            tie_word_embeddings=tied,
            **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL[family].items()},
            **(window if family == "gemma3_text" else {}),
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_input_embeddings().weight += 0.5  # as of trained ones, their mean is not zero
        save_language_model(model, folder)
        return model

    return make


@pytest.fixture
def tree() -> tuple[Examples, list[list[int]]]:
    """A sequence 20 21 22; trunk 1 2 3 [branch 4 5, then leaf 6 7 | leaf 8 9] 10 11; and the paths to the targets."""
    builder = ExamplesBuilder()
    tokens = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], dtype=np.int32)
    span = np.array([11, 10, 9, 6, 5, 2, 1, 2, 1, 2, 1], dtype=np.int32)
    loss = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=np.int8)
    builder.add_sequence(np.array([20, 21, 22], dtype=np.int32), "behaviour")
    builder.add_tree(tokens, span, loss, "recent", 1.0)
    paths = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 8], [1, 2, 3, 4, 5, 8, 9]]
    return builder.build(), [*paths, [1, 2, 3, 10], [1, 2, 3, 10, 11], [20, 21], [20, 21, 22]]
