"""SIDs of the sample catalogue: our quantiser beside scikit-learn's residual k-means on the same vectors.

run   python benchmarks/bench_quantizer.py [--quick] [--json FILE] [--seeds 17 18 19] [--recipe recipes/cpu_tiny.yaml]

Both get the same vectors, scaled alike, and the same codebook sizes; one core. `--quick` takes one seed and leaves the
ablations out (≤ 2 minutes on 2 cores). stdout is the table, the JSON holds every figure with its unit.
"""

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
from scipy import sparse  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from models.embeddings import EmbeddingsParams, Encoders  # noqa: E402
from models.quantizer import QuantizerParams  # noqa: E402
from models.quantizer_training import neighbours_of, train  # noqa: E402
from models.sids import describe_table, extend_table  # noqa: E402
from models.vectors import Vectors  # noqa: E402
from plumline.schema import ITEMS, conform  # noqa: E402
from plumline.stage import load_params, num_cores  # noqa: E402
from plumline.tables import read_parquet  # noqa: E402

UNITS = {
    "uniqueness": "share of items with a SID of their own",
    "collisions": "items that share their SID with another",
    "largest_bucket": "items behind one SID",
    "usage": "share of codes in use, a level",
    "perplexity": "effective codes, a level",
    "unexplained": "share of the vectors' variance left after quantisation",
    "pair_agreement": "share of the training co-occurrences (weighted by count) with one first code",
    "pair_lift": "pair_agreement / that of random pairs of the same items",
    "train_seconds": "CPU seconds, one core",
    "encode_rate": "items / second, one core",
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, no co-occurrence loss": {"contrastive_weight": 0.0},
    "ours, no progressive masking": {"progressive_masking": False},
}


def sample_pairs(window: int = 5, min_count: int = 2) -> pa.Table:
    """Co-occurrence of the sample's items within `window` steps of one buyer (as the stage histories counts)."""
    events = read_parquet(ROOT / "examples/online_retail/events.parquet", ["user_id", "item_id", "timestamp"])
    frame = events.to_pandas().drop_duplicates().sort_values(["user_id", "timestamp", "item_id"])
    users, items = frame.user_id.to_numpy(), frame.item_id.astype("category")
    codes, names = items.cat.codes.to_numpy().astype(np.int64), items.cat.categories.astype(str).to_numpy()
    keys = []
    for distance in range(1, window + 1):
        together = (users[distance:] == users[:-distance]) & (codes[distance:] != codes[:-distance])
        a, b = codes[:-distance][together], codes[distance:][together]
        keys.append(np.minimum(a, b) * len(names) + np.maximum(a, b))
    key, counts = np.unique(np.concatenate(keys), return_counts=True)
    key, counts = key[counts >= min_count], counts[counts >= min_count]
    return pa.table({"item_a": names[key // len(names)], "item_b": names[key % len(names)], "count": counts})


def scaled(vectors: Vectors) -> np.ndarray:
    """What the quantiser sees, modalities side by side: centred, each with mean squared length 1. (N, sum of D)."""
    parts = []
    for name, values in vectors.modalities.items():
        mask = vectors.masks[name]
        centred = (values - values[mask].mean(axis=0)) * mask[:, None]
        parts.append(centred / np.sqrt((centred[mask] ** 2).sum(axis=1).mean()))
    return np.concatenate(parts, axis=1)


def describe(codes: np.ndarray, sizes: tuple[int, ...], graph: sparse.csr_array, seed: int) -> dict[str, Any]:
    """Figures that both methods share. codes: (N, L) integers."""
    ids = [f"{row:09d}" for row in range(len(codes))]
    report = describe_table(extend_table(None, ids, codes, sizes, 0))
    edges = graph.tocoo()
    shuffled = np.random.default_rng(seed).permutation(edges.col)
    first = codes[:, 0]
    agreement = float(np.average(first[edges.row] == first[edges.col], weights=edges.data))
    chance = float(np.average(first[edges.row] == first[shuffled], weights=edges.data))
    figures = {name: report[name] for name in ("uniqueness", "collisions", "largest_bucket")}
    figures |= {name: [round(level[name], 4) for level in report["levels"]] for name in ("usage", "perplexity")}
    return figures | {"pair_agreement": agreement, "pair_lift": agreement / chance if chance else None}


def bench_ours(vectors: Vectors, graph: sparse.csr_array, params: QuantizerParams, seed: int) -> dict[str, Any]:
    """Train and encode with our quantiser."""
    began = time.process_time()
    quantizer = train(vectors, graph, params, seed)
    trained_at = time.process_time()
    codes = quantizer.encode(vectors)
    encoded_at = time.process_time()
    errors = quantizer.squared_errors(vectors, codes)
    unexplained = float(np.mean([value / vectors.masks[name].sum() for name, value in errors.items()]))
    return describe(codes, params.codebooks, graph, seed) | {
        "unexplained": unexplained,
        "train_seconds": trained_at - began,
        "encode_rate": len(codes) / (encoded_at - trained_at),
    }


def bench_kmeans(vectors: Vectors, graph: sparse.csr_array, params: QuantizerParams, seed: int) -> dict[str, Any]:
    """The peer: scikit-learn's k-means of the vectors, then of the residuals, level after level."""
    values = scaled(vectors)
    codes = np.zeros((len(values), len(params.codebooks)), np.int64)
    residual, models = values, []
    began = time.process_time()
    with threadpool_limits(limits=1):
        for level, size in enumerate(params.codebooks):
            models.append(KMeans(size, n_init=1, random_state=seed).fit(residual))
            codes[:, level] = models[-1].labels_
            residual = residual - models[-1].cluster_centers_[codes[:, level]]
        trained_at = time.process_time()
        rest = values
        for model in models:
            rest = rest - model.cluster_centers_[model.predict(rest)]
        encoded_at = time.process_time()
    return describe(codes, params.codebooks, graph, seed) | {
        "unexplained": float((residual**2).sum() / (values**2).sum()),
        "train_seconds": trained_at - began,
        "encode_rate": len(codes) / (encoded_at - trained_at),
    }


def hardware() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": num_cores(), "accelerator": None}


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, no ablations")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/cpu_tiny.yaml")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = load_params(arguments.recipe, "quantizer", QuantizerParams)
    items = conform(read_parquet(ROOT / "examples/online_retail/items.parquet").sort_by("item_id"), ITEMS)
    began = time.process_time()
    vectors = Encoders.fit(items, load_params(arguments.recipe, "embeddings", EmbeddingsParams)).embed(items)
    embed_seconds = time.process_time() - began
    graph = neighbours_of(sample_pairs(), vectors.item_ids, params.neighbours)
    results = []
    for seed in arguments.seeds[:1] if arguments.quick else arguments.seeds:
        for name, changes in list(ABLATIONS.items())[: 1 if arguments.quick else None]:
            figures = bench_ours(vectors, graph, params.model_copy(update=changes), seed)
            results.append({"method": name, "seed": seed, **figures})
        figures = bench_kmeans(vectors, graph, params, seed)
        results.append({"method": "scikit-learn residual k-means", "seed": seed, **figures})
    print(f"{len(vectors.item_ids)} items, codebooks {params.codebooks}")
    for row in results:
        perplexity = "/".join(f"{value:.0f}" for value in row["perplexity"])
        print(
            f"{row['method']:30s} seed {row['seed']}  uniqueness {row['uniqueness']:.4f}  "
            f"collisions {row['collisions']:5d}  perplexity {perplexity:12s}  unexplained {row['unexplained']:.3f}  "
            f"pair agreement {row['pair_agreement']:.3f}  train {row['train_seconds']:.1f} s  "
            f"encode {row['encode_rate']:.0f} items/s"
        )
    if arguments.json:
        report = {
            "benchmark": "quantizer",
            "quick": arguments.quick,
            "data": {"name": "online_retail", "num_items": len(vectors.item_ids), "num_pairs": int(graph.nnz // 2)},
            "params": params.model_dump(mode="json"),
            "embed_seconds": {"value": embed_seconds, "unit": "CPU seconds to fit and embed, one core"},
            "units": UNITS,
            "results": results,
            "hardware": hardware(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "scikit-learn", "scipy", "torch")},
            },
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
