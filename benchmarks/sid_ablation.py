"""SID-v2 taken apart (PLUM, table 4): uniqueness, and item Recall@10 of one fixed retrieval model on every table.

run   python benchmarks/sid_ablation.py [--data DIR …] [--seeds 17 18 19] [--quick] [--json FILE] [--cache DIR]

Rows: v1 (TIGER: one text embedding, codebooks of one size, no co-occurrence, no masking), v2, v2 without each of its
four parts, and RQ-k-means beside them. A row and seed trains a quantiser on what was known before the held-out events,
then `measuring.retrieval` on its codes, and asks for the held-out items: item level, full ranking, seen items masked
and not. A folder whose events have `split_loo` is asked leave-one-out (its test items), another one for all user-days
of its last 70 days. ± is the standard error over seeds; Δ v2 is paired by query and its ± is over queries.

The default data are examples/online_retail. --json is written after every row and read again, so a run that was stopped
goes on where it was. --quick: one seed, v1 and v2, few steps (≤ 2 minutes on 2 cores): a look, not a measurement.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402

from benchmarks.measuring import retrieval  # noqa: E402
from benchmarks.measuring.datasets import DataSet, count_pairs, read_dataset  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from models.semantic_ids.embeddings import EmbeddingsParams, Encoders  # noqa: E402
from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams  # noqa: E402
from models.semantic_ids.quantizer import fit  # noqa: E402
from models.semantic_ids.sids import digit_of  # noqa: E402
from models.semantic_ids.table import bucket_sizes, describe_levels  # noqa: E402
from models.semantic_ids.vectors import VectorFile, VectorWriter  # noqa: E402
from plumline import artifact  # noqa: E402

SINGLE = ("text_minilm",)
FALLING, UNIFORM = (1024, 512, 256), (512, 512, 512)  # spaces of one size: 2^27 SIDs both
V2: dict[str, Any] = {"codebooks": FALLING}
VARIANTS: dict[str, dict[str, Any]] = {
    "v1": {"codebooks": UNIFORM, "modalities": SINGLE, "contrastive_weight": 0.0, "progressive_masking": False},
    "v2": V2,
    "v2 without multi-resolution": {**V2, "codebooks": UNIFORM},
    "v2 without multi-embedding": {**V2, "modalities": SINGLE},
    "v2 without co-occurrence": {**V2, "contrastive_weight": 0.0},
    "v2 without masking": {**V2, "progressive_masking": False},
    "RQ-k-means": {**V2, "kind": "rq_kmeans"},
}
BASE = QuantizerParams(steps=1000, warmup_steps=200, batch_size=256, contrastive_weight=2.0, usage_floor=0.0)
EPOCHS = {"leave-one-out": 5, "last 70 days": 3}
HORIZON = timedelta(days=70)
PROTOCOLS = ("seen_masked", "not_masked")


def embed(data: DataSet, cache: Path) -> Path:
    """The embeddings of a data set's items, made once: TF-IDF, MiniLM, tags where there are any."""
    folder = cache / f"{data.name}-embeddings"
    if not (folder / "done").exists():
        params = EmbeddingsParams(text_encoders=("tfidf_svd", "minilm"), text_tokens=64)
        encoders = Encoders.fit(data.items, params)
        with VectorWriter(folder, encoders.widths) as writer:
            for block in encoders.embed_blocks(data.items):
                writer.write(block)
        (folder / "done").touch()
    return folder


def make_task(data: DataSet, protocol: str) -> retrieval.Task:
    """What is trained on and asked. Items are rows of data.items."""
    place = {item_id: row for row, item_id in enumerate(data.items.column("item_id").to_pylist())}
    first_held_out = data.last_day - HORIZON + timedelta(days=1)
    histories, queries = [], []
    for number, (_, steps) in enumerate(data.steps.groupby("user_id", sort=True)):
        items, days = steps.item_id.map(place).to_numpy(np.int64), steps.day.to_numpy()
        if protocol == "leave-one-out":
            histories.append(items[:-2])
            queries.append((number, items[:-1], items[-1:]))
            continue
        before = days < first_held_out
        histories.append(items[before][-40:])
        for day in np.unique(days[~before]):
            if len(known := items[days < day]):
                queries.append((number, known, np.unique(items[days == day])))
    return retrieval.Task(histories, queries)


def prepare(folder: Path, cache: Path, quick: bool) -> dict[str, Any]:
    """Everything that the rows of a data set share, told small enough to send to a process."""
    names = pq.read_schema(folder / "events.parquet").names
    protocol = "leave-one-out" if "split_loo" in names else "last 70 days"
    data = read_dataset(folder)
    return {"data": data, "protocol": protocol, "embeddings": embed(data, cache), "quick": quick}


def run_row(job: tuple[dict[str, Any], str, int, QuantizerParams, retrieval.RetrieverParams]) -> dict[str, Any]:
    """One variant and seed: quantiser, retrieval model, recall of every query."""
    shared, variant, seed, params, retriever = job
    torch.set_num_threads(1)
    data, file = shared["data"], VectorFile(shared["embeddings"])
    task = make_task(data, shared["protocol"])
    item_ids = file.item_ids()
    pairs = count_pairs(item_ids, task.histories, window=5, min_count=1)
    began = time.process_time()
    quantizer = fit(file, pairs, params, seed)
    trained = time.process_time()
    codes = np.concatenate([part for _, part in quantizer.encode_blocks(file.blocks(), 1)])
    # Items of one SID come in the order of a hash of their ids, which says nothing about them.
    order = np.argsort([digit_of(item_id, 2**62) for item_id in item_ids], kind="stable")
    trie = retrieval.Trie(codes, quantizer.codebooks, order)
    model = retrieval.train(codes, quantizer.codebooks, task, retriever, seed)
    leaves = retrieval.search(model, codes, trie, [before for _, before, _ in task.queries], retriever.num_beams)
    recalls = {p: retrieval.recalls(leaves, trie, task, masked=p == "seen_masked") for p in PROTOCOLS}
    return {
        "data": data.name,
        "variant": variant,
        "seed": seed,
        "key": _key(params, retriever, shared),
        "uniqueness": float((bucket_sizes(codes) == 1).mean()),
        "largest_bucket": int(bucket_sizes(codes).max()),
        "usage": [round(level["usage"], 4) for level in describe_levels(codes, quantizer.codebooks)],
        "perplexity": [round(level["perplexity"], 1) for level in describe_levels(codes, quantizer.codebooks)],
        "pair_agreement": _pair_agreement(codes, pairs, item_ids),
        "unexplained": _unexplained(quantizer, file, codes),
        "recall@10": {p: float(np.nanmean(values)) for p, values in recalls.items()},
        "num_queries": {p: int(np.isfinite(values).sum()) for p, values in recalls.items()},
        "hits": {p: [None if np.isnan(v) else round(float(v), 6) for v in values] for p, values in recalls.items()},
        "quantizer_seconds": trained - began,
        "retrieval_seconds": time.process_time() - trained,
    }


def _pair_agreement(codes: np.ndarray, pairs: Any, item_ids: list[str]) -> float:
    place = {item_id: row for row, item_id in enumerate(item_ids)}
    a, b = (np.array([place[i] for i in pairs.column(n).to_pylist()]) for n in ("item_a", "item_b"))
    return float(np.average(codes[a, 0] == codes[b, 0], weights=pairs.column("count").to_numpy()))


def _unexplained(quantizer: Quantizer, file: VectorFile, codes: np.ndarray) -> dict[str, float]:
    vectors = next(file.blocks(file.num_items))
    errors = quantizer.squared_errors(vectors, codes)
    return {name: value / max(int(vectors.masks[name].sum()), 1) for name, value in errors.items()}


def _key(params: QuantizerParams, retriever: retrieval.RetrieverParams, shared: dict[str, Any]) -> str:
    return artifact.sha256_json([params.model_dump(mode="json"), vars(retriever), shared["protocol"]])[:16]


def table(rows: list[dict[str, Any]], name: str) -> Iterator[str]:
    """Lines of one data set's table."""
    found = {v: [r for r in rows if r["data"] == name and r["variant"] == v] for v in VARIANTS}
    found = {variant: those for variant, those in found.items() if those}
    seeds = len(next(iter(found.values())))
    queries = next(iter(found.values()))[0]["num_queries"]
    yield f"{name}: {seeds} seeds, {queries['seen_masked']:,} / {queries['not_masked']:,} queries"
    columns = (f"R@10 {'not masked' if p == 'not_masked' else 'seen masked'}" for p in PROTOCOLS)
    yield f"{'':30s} {'uniqueness':>15s}" + "".join(f"  {column:>18s}  {'Δ v2':>17s}" for column in columns)
    for variant, those in found.items():
        cells = [f"{variant:30s} {_mean_se([r['uniqueness'] for r in those]):>15s}"]
        for protocol in PROTOCOLS:
            cells.append(f"{_mean_se([r['recall@10'][protocol] for r in those]):>18s}")
            cells.append(f"{_difference(those, found.get('v2', []), protocol):>17s}")
        yield "  ".join(cells)
    if {"v1", "v2"} <= found.keys():
        for protocol in PROTOCOLS:
            old, new = (np.mean([r["recall@10"][protocol] for r in found[v]]) for v in ("v1", "v2"))
            yield f"v2 over v1, {protocol}: {new / old - 1:+.1%} relative"


def _mean_se(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.4f} ± {error:.4f}"


def _difference(those: list[dict[str, Any]], full: list[dict[str, Any]], protocol: str) -> str:
    """Mean over seeds and queries of recall against v2's at the same seed, ± over queries."""
    seeds = {r["seed"]: r for r in full}
    pairs = [(r["hits"][protocol], seeds[r["seed"]]["hits"][protocol]) for r in those if r["seed"] in seeds]
    if not pairs or those is full:
        return "–"
    values = np.mean([np.array(a, float) - np.array(b, float) for a, b in pairs], axis=0)
    values = values[np.isfinite(values)]
    return f"{values.mean():+.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def main() -> None:
    """Run what is missing, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[ROOT / "examples/online_retail"], help="folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="one seed, v1 and v2, few steps")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not run again")
    parser.add_argument("--cache", type=Path, help="folder for embeddings; default: a temporary one")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    variants = ["v1", "v2"] if arguments.quick else arguments.variants
    base = BASE.model_copy(update={"steps": 200, "warmup_steps": 50} if arguments.quick else {})
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    with tempfile.TemporaryDirectory() as scratch:
        cache = arguments.cache or Path(scratch)
        jobs = []
        for folder in arguments.data:
            shared = prepare(folder.resolve(), cache, arguments.quick)
            retriever = retrieval.RetrieverParams(epochs=1 if arguments.quick else EPOCHS[shared["protocol"]])
            for seed in seeds:
                for variant in variants:
                    params = base.model_copy(update=VARIANTS[variant])
                    known = {(r["data"], r["variant"], r["seed"], r["key"]) for r in rows}
                    if (shared["data"].name, variant, seed, _key(params, retriever, shared)) not in known:
                        jobs.append((shared, variant, seed, params, retriever))
        with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
            for row in pool.imap_unordered(run_row, jobs):
                rows = [
                    r
                    for r in rows
                    if (r["data"], r["variant"], r["seed"]) != (row["data"], row["variant"], row["seed"])
                ]
                rows.append(row)
                print(
                    f"{row['data']}, {row['variant']}, seed {row['seed']}: uniqueness {row['uniqueness']:.4f}, "
                    f"recall@10 {row['recall@10']}, {row['quantizer_seconds']:.0f} + {row['retrieval_seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                _write(arguments.json, rows, base)
    for name in dict.fromkeys(r["data"] for r in rows):
        print("\n".join(table(rows, name)) + "\n")


def _write(path: Path | None, rows: list[dict[str, Any]], base: QuantizerParams) -> None:
    if path is None:
        return
    report = {
        "benchmark": "sid_ablation",
        "params": base.model_dump(mode="json"),
        "variants": VARIANTS,
        "rows": sorted(rows, key=lambda r: (r["data"], r["seed"], list(VARIANTS).index(r["variant"]))),
        "hardware": hardware(),
        "versions": versions("numpy", "scikit-learn", "scipy", "torch", "transformers"),
    }
    artifact.replace_file(path, json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
