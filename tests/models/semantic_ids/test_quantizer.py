"""Training the quantiser and reading codes from it: same bytes, every hole in the data, refusals with their numbers."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams, check_vectors
from models.semantic_ids.quantizer import fit, refuse_collapse, run
from models.semantic_ids.quantizer_training import neighbours_of, train
from models.semantic_ids.sids import extend_table
from models.semantic_ids.table import describe_levels
from models.semantic_ids.vectors import VectorFile, Vectors
from plumline import artifact, tables
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, RefusedError

SMALL = QuantizerParams(
    codebooks=(16, 8),
    latent_dimensions=8,
    hidden=16,
    steps=120,
    warmup_steps=40,
    batch_size=64,
    learning_rate=1e-2,
    contrastive_weight=0.3,  # the pairs of `chain` tie clusters together that their contents tell apart
)


def make_vectors(num_items: int, *, widths: dict[str, int] | None = None, seed: int = 0) -> Vectors:
    """Twelve clusters seen through every modality; each seventh item lacks the last one."""
    generator = np.random.default_rng(seed)
    cluster = generator.integers(12, size=num_items)
    modalities, masks = {}, {}
    for name, width in (widths or {"tags": 6, "text": 10}).items():
        centres = generator.normal(size=(12, width)) * 3
        modalities[name] = (centres[cluster] + generator.normal(size=(num_items, width))).astype(np.float32)
        masks[name] = np.ones(num_items, bool)
    masks[name][::7] = num_items < 7
    modalities[name][~masks[name]] = 0
    return Vectors([f"i{row:05d}" for row in range(num_items)], modalities, masks)


def pairs_of(rows: list[tuple[str, str, int]]) -> pa.Table:
    a, b, count = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "item_a": pa.array(a, pa.string()),
            "item_b": pa.array(b, pa.string()),
            "count": pa.array(count, pa.int64()),
        }
    )


def chain(vectors: Vectors, step: int = 12) -> pa.Table:
    return pairs_of([(a, b, 3) for a, b in zip(vectors.item_ids, vectors.item_ids[step:], strict=False)])


def run_stage(tmp_path: Path, vectors: Vectors, params: QuantizerParams = SMALL, *, name: str = "quantizer") -> Path:
    (tmp_path / "embeddings").mkdir(exist_ok=True)
    vectors.save(tmp_path / "embeddings")
    tables.write_parquet(tmp_path / "histories/pairs.parquet", chain(vectors))
    (tmp_path / name).mkdir()
    run(
        params,
        embeddings=tmp_path / "embeddings",
        histories=tmp_path / "histories",
        base=None,
        previous=None,
        seed=17,
        out=tmp_path / name,
    )
    return tmp_path / name


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    return Quantizer.load(run_stage(tmp_path_factory.mktemp("frozen"), make_vectors(400)))


def test_stage_leaves_these_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    vectors = make_vectors(300)
    first, second = (run_stage(tmp_path, vectors, name=name) for name in ("first", "second"))
    files = {path.name for path in first.iterdir()}
    assert files == {"model.safetensors", "config.json", "report.json"}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert Quantizer.load(first).digest == Quantizer.load(second).digest != ""
    report = artifact.read_json(first / "report.json")
    assert [level["size"] for level in report["levels"]] == [16, 8]
    assert all(level["usage"] > 0.8 for level in report["levels"])
    assert set(report["reconstruction"]) == {"tags", "text"}
    assert all(0 < share < 0.6 for share in report["reconstruction"].values())


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    vectors = make_vectors(64)
    graph = neighbours_of(chain(vectors), vectors.item_ids, 8)
    short = SMALL.model_copy(update={"steps": 10, "warmup_steps": 5})
    first, second = train(vectors, graph, short, 1), train(vectors, graph, short, 2)
    assert any(not np.array_equal(values, second.weights[name]) for name, values in first.weights.items())


def test_first_level_follows_the_clusters(frozen: Quantizer) -> None:
    codes = frozen.encode(make_vectors(400))[:, 0]
    generator = np.random.default_rng(0)
    cluster = generator.integers(12, size=400)
    purity = sum(np.bincount(cluster[codes == code]).max() for code in np.unique(codes)) / 400
    assert purity > 0.9


def test_codes_are_those_of_the_torch_module(frozen: Quantizer) -> None:
    import torch

    from models.semantic_ids.rqvae import Rqvae

    vectors = make_vectors(100, seed=4)
    model = Rqvae(list(frozen.modalities.values()), frozen.codebooks, hidden=16, latent=8, beta=0.25)
    model.load_state_dict({name: torch.from_numpy(frozen.weights[name]) for name in model.state_dict()})
    inputs = [
        torch.from_numpy((vectors.modalities[name] - frozen.weights[f"mean.{i}"]) * frozen.weights[f"scale.{i}"])
        for i, name in enumerate(frozen.modalities)
    ]
    with torch.no_grad():
        z = model.encode(inputs, [torch.from_numpy(vectors.masks[name]) for name in frozen.modalities])
        codes = model.quantise(z).codes.numpy()
    assert np.allclose(z.numpy(), frozen.latents(vectors), atol=1e-4)  # fixed point rounds no coarser than float32
    assert (codes == frozen.encode(vectors)).mean() > 0.99  # float32 may break a near tie otherwise


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(130)), st.sampled_from([1, 7, 64, 130]), st.sampled_from([1, 2]))
def test_codes_do_not_depend_on_batch_order_or_threads(order: list[int], size: int, threads: int) -> None:
    vectors, frozen = make_vectors(130, seed=9), _untrained()
    expected = frozen.encode(vectors)
    with threadpool_limits(threads):
        parts = [frozen.encode(vectors.take(np.array(order[i : i + size]))) for i in range(0, 130, size)]
        latents = [frozen.latents(vectors.take(np.array(order[i : i + size]))) for i in range(0, 130, size)]
    assert np.array_equal(np.concatenate(parts), expected[order])
    assert np.concatenate(latents).tobytes() == frozen.latents(vectors)[order].tobytes()
    shuffled = vectors.take(np.array(order))
    streamed = list(frozen.encode_blocks(shuffled.blocks(size), threads))
    assert np.array_equal(np.concatenate([codes for _, codes in streamed]), expected[order])
    assert [item for block, _ in streamed for item in block.item_ids] == shuffled.item_ids


@pytest.mark.parametrize("kind", ["rqvae", "rq_kmeans"])
def test_ten_thousand_items_in_batches_of_1_64_and_4096(kind: str) -> None:
    """Wide vectors and large codebooks, where a BLAS does choose its order of summation by the shapes it is given."""
    vectors = make_vectors(10_000, widths={"tags": 100, "text": 384}, seed=3)
    few = vectors.take(np.arange(2000))
    params = QuantizerParams(
        kind=kind, codebooks=(256, 128, 64), latent_dimensions=48, hidden=96, steps=5, warmup_steps=5
    )
    frozen = fit_directly(few, params)
    expected = frozen.encode(vectors)
    assert len(np.unique(expected, axis=0)) > 1000
    order = np.random.default_rng(4).permutation(10_000)
    for size in (64, 4096):
        for threads in (1, 2):
            blocks = vectors.take(order).blocks(size)
            codes = np.concatenate([codes for _, codes in frozen.encode_blocks(blocks, threads)])
            assert np.array_equal(codes, expected[order])
    assert all(np.array_equal(frozen.encode(vectors.take(row[None]))[0], expected[row]) for row in order[:300])


def fit_directly(vectors: Vectors, params: QuantizerParams, seed: int = 5) -> Quantizer:
    from models.semantic_ids.rq_kmeans import train as train_kmeans

    if params.kind == "rq_kmeans":
        return train_kmeans(vectors, params, seed)
    return train(vectors, neighbours_of(chain(vectors), vectors.item_ids, 4), params, seed)


@cache
def _untrained() -> Quantizer:
    vectors = make_vectors(130, seed=9)
    graph = neighbours_of(pairs_of([]), vectors.item_ids, 4)
    return train(vectors, graph, SMALL.model_copy(update={"steps": 0, "warmup_steps": 3}), 5)


@pytest.mark.parametrize(
    "switches",
    [
        {"contrastive_weight": 0.0},
        {"progressive_masking": False},
        {"beta": 0.0},
        {"gradient": "rotation"},
        {"codebook_update": "ema"},
        {"modalities": ("text",)},
        {"modalities": ("text",), "contrastive_weight": 0.0, "progressive_masking": False, "codebooks": (8, 8)},
        {"kind": "rq_kmeans"},
        {"max_items": 40},
    ],
)
def test_every_switch(switches: dict, tmp_path: Path) -> None:
    params = SMALL.model_copy(update={"steps": 20, "warmup_steps": 5, "usage_floor": 0.0, **switches})
    assert Quantizer.load(run_stage(tmp_path, make_vectors(100), params)).encode(make_vectors(100)).shape == (100, 2)


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_codebooks_larger_than_the_corpus(num_items: int, tmp_path: Path) -> None:
    vectors = make_vectors(num_items)
    codes = Quantizer.load(run_stage(tmp_path, vectors)).encode(vectors)
    assert len(np.unique(codes, axis=0)) == num_items


def test_constant_vectors_get_one_sid_and_are_refused_in_a_real_corpus(tmp_path: Path) -> None:
    def constant(num_items: int) -> Vectors:
        ids = [f"i{row}" for row in range(num_items)]
        return Vectors(ids, {"text": np.ones((num_items, 4), np.float32)}, {"text": np.ones(num_items, bool)})

    codes = Quantizer.load(run_stage(tmp_path, constant(10))).encode(constant(10))
    assert len(np.unique(codes, axis=0)) == 1
    with pytest.raises(
        RefusedError, match=r"level 1 uses 1 of 16 codes .*usage 0\.06, floor 0\.5.* for 64 items; .*try"
    ):
        run_stage(tmp_path, constant(64), name="larger")


def test_items_without_any_modality_are_encoded(frozen: Quantizer) -> None:
    vectors = Vectors(
        ["a", "b"],
        {"tags": np.zeros((2, 6), np.float32), "text": np.zeros((2, 10), np.float32)},
        {"tags": np.zeros(2, bool), "text": np.zeros(2, bool)},
    )
    codes = frozen.encode(vectors)
    assert np.array_equal(codes[0], codes[1])
    assert frozen.encode(vectors.take(np.arange(0))).shape == (0, 2)


def test_nan_names_the_item(frozen: Quantizer, tmp_path: Path) -> None:
    vectors = make_vectors(50)
    vectors.modalities["text"][33, 2] = np.nan
    with pytest.raises(InputError, match=r"item 'i00033': text is not finite \(1 such items\)"):
        run_stage(tmp_path, vectors)
    with pytest.raises(InputError, match="item 'i00033'"):
        frozen.encode(vectors)


def test_other_modalities_are_refused(frozen: Quantizer) -> None:
    with pytest.raises(InputError, match=r"\{'tags': 6\} where the quantizer knows \{'tags': 6, 'text': 10\}"):
        frozen.encode(make_vectors(3, widths={"tags": 6}))


def test_no_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no items"):
        run_stage(tmp_path, make_vectors(3).take(np.arange(0)))


def test_a_loss_that_leaves_the_numbers_is_refused(tmp_path: Path) -> None:
    vectors = make_vectors(64)
    params = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RefusedError, match=r"the loss is (nan|inf) at step \d+; lower quantizer\.learning_rate"):
        train(vectors, neighbours_of(pairs_of([]), vectors.item_ids, 4), params, 0)


def test_usage_floor_judges_every_level_but_not_tiny_corpora() -> None:
    levels = [
        {"size": 8, "used": 8, "usage": 1.0, "perplexity": 7.5},
        {"size": 8, "used": 2, "usage": 0.25, "perplexity": 1.9},
    ]
    params = SMALL.model_copy(update={"codebooks": (8, 8)})
    refuse_collapse({"num_items": 31, "levels": levels}, params)
    with pytest.raises(RefusedError, match="level 2 uses 2 of 8 codes"):
        refuse_collapse({"num_items": 32, "levels": levels}, params)
    refuse_collapse({"num_items": 32, "levels": levels}, params.model_copy(update={"usage_floor": 0.2}))
    uneven = [levels[0], {"size": 8, "used": 8, "usage": 1.0, "perplexity": 1.5}]
    with pytest.raises(RefusedError, match=r"level 2 uses 8 of 8 .* perplexity 1\.5, floor 1\.6\)"):
        refuse_collapse({"num_items": 32, "levels": uneven}, params)


def test_adopting_copies_and_imports_no_torch(tmp_path: Path, root: Path) -> None:
    source = run_stage(tmp_path, make_vectors(30), name=["base", "quantizer"][1])
    (tmp_path / "base").mkdir()
    source.rename(tmp_path / "base/quantizer")
    (tmp_path / "out").mkdir()
    code = (
        "import sys; from pathlib import Path; from models.semantic_ids.quantizer import *\n"
        f"here = Path({str(tmp_path)!r})\n"
        "run(QuantizerParams(), embeddings=here, histories=here, base=here / 'base', previous=None, seed=1, "
        "out=here / 'out')\n"
        "Quantizer.load(here / 'out')\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert Quantizer.load(tmp_path / "out").digest == Quantizer.load(tmp_path / "base/quantizer").digest


def test_readers_name_what_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"config\.json"):
        Quantizer.load(tmp_path)
    artifact.write_json(tmp_path / "config.json", {"modalities": [], "codebooks": [2]})
    with pytest.raises(MissingArtifactError, match=r"model\.safetensors"):
        Quantizer.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors"):
        Quantizer.load(tmp_path)


def test_contrastive_loss_brings_co_occurring_items_together() -> None:
    """Content says nothing, behaviour has ten groups: only the co-occurrence loss can put a group into one code."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(200, 16)).astype(np.float32)
    vectors = Vectors([f"i{row:03d}" for row in range(200)], {"text": values}, {"text": np.ones(200, bool)})
    group = np.arange(200) % 10
    pairs = pairs_of(
        [
            (vectors.item_ids[i], vectors.item_ids[j], 1)
            for i in range(200)
            for j in range(i + 1, 200)
            if group[i] == group[j]
        ]
    )
    graph = neighbours_of(pairs, vectors.item_ids, 32)
    together = {}
    for weight in (0.0, 1.0):
        params = SMALL.model_copy(update={"steps": 300, "hidden": 64, "contrastive_weight": weight})
        codes = train(vectors, graph, params, 3).encode(vectors)[:, 0]
        same = codes[:, None] == codes[None, :]
        together[weight] = same[group[:, None] == group[None, :]].mean()
    assert together[1.0] > together[0.0] + 0.2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=40))
def test_level_statistics_stay_in_their_bounds(rows: list[tuple[int, int]]) -> None:
    codes = np.array(rows, np.int64).reshape(-1, 2)
    for level, about in enumerate(describe_levels(codes, (6, 3))):
        assert about["used"] == len(set(codes[:, level]))
        assert about["usage"] == about["used"] / about["size"]
        assert 1 - 1e-9 <= about["perplexity"] <= max(about["used"], 1) + 1e-9
        assert -1e-9 <= about["gini"] < 1


def test_level_statistics_by_hand() -> None:
    even, skewed = describe_levels(np.array([[0, 0], [1, 0], [2, 0], [3, 0]]), (4, 4))
    assert (even["perplexity"], even["gini"], even["usage"]) == (pytest.approx(4), pytest.approx(0), 1)
    assert (skewed["perplexity"], skewed["gini"], skewed["usage"]) == (pytest.approx(1), pytest.approx(0.75), 0.25)


def test_a_collapse_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    values = np.ones((64, 4), np.float32)
    vectors = Vectors([f"i{row:02d}" for row in range(64)], {"text": values}, {"text": np.ones(64, bool)})
    vectors.save(tmp_path / "embeddings")
    tables.write_parquet(tmp_path / "histories/pairs.parquet", pairs_of([]))
    with (
        pytest.raises(RefusedError, match="level 1 uses 1 of 16"),
        artifact.writing(tmp_path / "out", stage="quantizer", key="k") as scratch,
    ):
        run(
            SMALL,
            embeddings=tmp_path / "embeddings",
            histories=tmp_path / "histories",
            base=None,
            previous=None,
            seed=0,
            out=scratch,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["rqvae", "rq_kmeans"])
@pytest.mark.parametrize("num_items", [1, 2, 3])
def test_items_that_are_all_alike_share_one_sid(kind: str, num_items: int) -> None:
    vectors = Vectors(
        [f"i{row}" for row in range(num_items)],
        {"text": np.full((num_items, 4), 0.5, np.float32)},
        {"text": np.ones(num_items, bool)},
    )
    codes = fit_directly(vectors, SMALL.model_copy(update={"kind": kind, "latent_dimensions": 2})).encode(vectors)
    assert len(np.unique(codes, axis=0)) == 1


@pytest.mark.parametrize("kind", ["rqvae", "rq_kmeans"])
def test_what_an_item_lacks_has_no_say_in_its_codes_nor_in_the_loss(kind: str) -> None:
    vectors = make_vectors(300)
    frozen = fit_directly(vectors, SMALL.model_copy(update={"kind": kind}))
    other = Vectors(
        vectors.item_ids,
        {**vectors.modalities, "text": np.where(vectors.masks["text"][:, None], vectors.modalities["text"], 7.0)},
        vectors.masks,
    )
    codes = frozen.encode(vectors)
    assert np.array_equal(frozen.encode(other), codes)
    assert frozen.squared_errors(other, codes) == frozen.squared_errors(vectors, codes)


def test_reconstruction_falls_with_every_level() -> None:
    vectors = make_vectors(400)
    for kind in ("rqvae", "rq_kmeans"):
        frozen = fit_directly(vectors, SMALL.model_copy(update={"kind": kind}))
        codes = frozen.encode(vectors)
        first, both = (sum(frozen.squared_errors(vectors, codes, levels).values()) for levels in (1, 2))
        assert both < first < 2 * 400


def test_renamed_codes_are_the_same_codes() -> None:
    vectors, frozen = make_vectors(130, seed=9), _untrained()
    names = [np.random.default_rng(1).permutation(size) for size in frozen.codebooks]
    codes, renamed = frozen.encode(vectors), frozen.renamed(names).encode(vectors)
    assert np.array_equal(renamed, np.stack([names[0][codes[:, 0]], names[1][codes[:, 1]]], axis=1))


@pytest.mark.parametrize("kind", ["rqvae", "rq_kmeans"])
def test_a_retraining_may_inherit_its_codes(kind: str, tmp_path: Path) -> None:
    """Started from the means of each code's items, another seed moves fewer of them; new items get codes too."""
    vectors, more = make_vectors(300), make_vectors(330)
    params = SMALL.model_copy(update={"kind": kind, "steps": 60})
    old_codes = fit_directly(vectors, params, seed=1).encode(vectors)
    old = extend_table(None, vectors.item_ids, old_codes, params.codebooks, 4)
    more.save(tmp_path)
    moved = {}
    for start in ("kmeans", "previous"):
        told = params.model_copy(update={"retraining_start": start})
        new = fit(VectorFile(tmp_path), chain(more), told, 2, old).encode(more)
        moved[start] = (new[:300, 0] != old_codes[:, 0]).mean()
    assert moved["previous"] < 0.5 < moved["kmeans"]


def test_check_names_one_bad_number_among_many() -> None:
    vectors = make_vectors(50)
    check_vectors(vectors, vectors.widths)
    vectors.modalities["tags"][7, 0] = -np.inf
    with pytest.raises(InputError, match=r"item 'i00007': tags is not finite \(1 such items\)"):
        check_vectors(vectors, vectors.widths)
