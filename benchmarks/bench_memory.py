"""How long the stage `memory` takes and how much memory, beside `implicit` on the same events in the same run.

    python benchmarks/bench_memory.py [--items 1000000] [--events 20000000] [--quick] [--json FILE]

The items are those of `features/synthetic.py` (titles, channels, topics, publication, prices). The events are drawn
here as a world draws them, but for the shelves: a user takes what follows the last item in its chain, else a popular
item of a topic of theirs, else any. The stage runs in a process of its own, whose peak of resident memory is the
figure; so do the counting alone and the peers. All may use the cores of the machine. Beside the wall clock stand the
seconds of all cores, which neighbours on the machine disturb least.

The peer is CosineRecommender of `implicit` (`pip install implicit`): cosines of the users that two items have in
common, the K best of each. Its pairs are all of a user's; ours are those within three steps, aged and not, and all are
kept. Of the texts the peer is scikit-learn's NearestNeighbors (brute force, cosine): asked for a sample of the items
against all of them, and multiplied up.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.report import deliver  # noqa: E402
from features.catalog import Catalog  # noqa: E402
from features.histories import read_histories  # noqa: E402
from features.synthetic import make_world  # noqa: E402
from models.memory.events import read_events, recency  # noqa: E402
from models.memory.memory import Memory, MemoryParams, run  # noqa: E402
from models.memory.successions import successions  # noqa: E402
from models.memory.texts import texts_of, word_vectors  # noqa: E402
from plumline.artifact import write_json  # noqa: E402
from plumline.schema import USERS, conform  # noqa: E402
from plumline.stage import say  # noqa: E402
from plumline.tables import write_parquet  # noqa: E402

SEED = 17
AS_OF, NUM_DAYS = "2024-03-30", 90  # the world begins on 2024-01-01
START_MS, DAY_MS = 1_704_067_200_000, 86_400_000
EVENTS_A_USER = 50
SAMPLE = 2_000  # items that scikit-learn is asked for


def write_inputs(folder: Path, num_items: int, num_events: int) -> None:
    """catalog/ and histories/ as the stages before would have left them."""
    world = make_world(SEED, 10, num_items, NUM_DAYS, events_per_user=2)
    items, truth = world.items, world.truth
    retired = items.column("retired_at").is_valid().to_numpy()
    days = pa.array((np.maximum(truth.birth, 0) + START_MS // DAY_MS).astype(np.int32), pa.int32()).cast(pa.date32())
    items = items.append_column("first_seen_day", days).append_column("retired", pa.array(retired))
    write_parquet(folder / "catalog" / "items.parquet", items)
    write_parquet(folder / "catalog" / "users.parquet", conform(pa.table({"user_id": []}), USERS))
    rng = np.random.default_rng(SEED)
    lengths = np.minimum(1 + rng.poisson(rng.gamma(2.0, EVENTS_A_USER / 2, num_events // EVENTS_A_USER)), 200)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    taken = take(rng, lengths, starts, truth.topic, truth.successor)
    times = (
        START_MS + np.sort(rng.random(starts[-1]) + np.repeat(np.arange(len(lengths)), lengths)) % 1 * NUM_DAYS * DAY_MS
    )
    offsets = pa.array(starts.astype(np.int32))
    histories = pa.table(
        {
            "user_id": [f"u{number:07d}" for number in range(len(lengths))],
            "item_ids": pa.ListArray.from_arrays(
                offsets, items.column("item_id").combine_chunks().take(pa.array(taken))
            ),
            "timestamps": pa.ListArray.from_arrays(offsets, pa.array(times.astype(np.int64))),
        }
    )
    write_parquet(folder / "histories" / "histories.parquet", histories)
    write_json(folder / "histories" / "stats.json", {"as_of": AS_OF})


def take(
    rng: np.random.Generator, lengths: np.ndarray, starts: np.ndarray, topic: np.ndarray, successor: np.ndarray
) -> np.ndarray:
    """(E,) rows of items, user after user: step after step for all users together."""
    num_items, num_topics = len(topic), int(topic.max()) + 1
    shelf = np.lexsort((rng.random(num_items), topic))  # items by topic, the popular ones first
    first = np.searchsorted(topic[shelf], np.arange(num_topics + 1))
    tastes = topic[rng.integers(0, num_items, (len(lengths), 2))]
    taken, last = np.zeros(starts[-1], np.int64), np.zeros(len(lengths), np.int64)
    for step in range(int(lengths.max())):
        users = np.flatnonzero(lengths > step)
        mine = tastes[users, rng.integers(0, 2, len(users))]
        reach = first[mine + 1] - first[mine]
        popular = shelf[first[mine] + (rng.random(len(users)) ** 3 * reach).astype(np.int64)]
        any_one = rng.integers(0, num_items, len(users))
        way = rng.random(len(users))
        chosen = np.where(way < 0.1, any_one, popular)
        chosen = np.where((way > 0.6) & (step > 0), successor[last[users]], chosen)
        taken[starts[users] + step] = last[users] = chosen
    return taken


# --- what is measured, each in a process of its own ---


def run_stage(folder: Path) -> dict[str, Any]:
    out = folder / "memory"
    run(MemoryParams(), catalog=folder / "catalog", histories=folder / "histories", out=out)
    stored = sum(path.stat().st_size for path in out.iterdir())
    memory = Memory.load(out)
    rng = np.random.default_rng(SEED)
    asked = [rng.integers(0, len(memory.item_ids), EVENTS_A_USER) for _ in range(200)]
    began = time.perf_counter()
    for rows in asked:
        memory.tables["together"].scores(rows, np.ones(len(rows)))
    lookup = (time.perf_counter() - began) / len(asked)
    entries = {f"{name}_entries": len(table.items) for name, table in memory.tables.items()}
    return {"bytes_on_disk": stored, "scores_of_50_items_ms": lookup * 1e3, **entries}


def run_counts(folder: Path) -> dict[str, Any]:
    events, number = _events(folder)
    aged = recency(events, MemoryParams().succession_half_life_days)
    counted, _ = successions(events.items, events.users, number, window=3, decay=0.8, weights=(aged, None))
    return {"pairs": counted.nnz}


def run_implicit(folder: Path) -> dict[str, Any]:
    from implicit.nearest_neighbours import CosineRecommender
    from scipy.sparse import csr_matrix

    events, number = _events(folder)
    shape = (int(events.users.max()) + 1, number)
    taken = csr_matrix((np.ones(len(events.items), np.float32), (events.users, events.items)), shape=shape)
    model = CosineRecommender(K=MemoryParams().neighbours)
    began = time.perf_counter()
    model.fit(taken, show_progress=False)
    return {"fit_s": time.perf_counter() - began, "entries": model.similarity.nnz}


def run_sklearn_texts(folder: Path) -> dict[str, Any]:
    from sklearn.neighbors import NearestNeighbors

    vectors = word_vectors(texts_of(Catalog.load(folder / "catalog").items))
    model = NearestNeighbors(n_neighbors=MemoryParams().neighbours + 1, metric="cosine", algorithm="brute", n_jobs=-1)
    model.fit(vectors)
    asked = np.sort(np.random.default_rng(SEED).choice(vectors.shape[0], min(SAMPLE, vectors.shape[0]), replace=False))
    began = time.perf_counter()
    model.kneighbors(vectors[asked])
    seconds = time.perf_counter() - began
    return {"asked": len(asked), "asked_s": seconds, "all_estimated_s": seconds / len(asked) * vectors.shape[0]}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "stage": run_stage,
    "counts": run_counts,
    "implicit": run_implicit,
    "sklearn_texts": run_sklearn_texts,
}


def _events(folder: Path) -> Any:
    item_ids = Catalog.load(folder / "catalog").items.column("item_id").combine_chunks()
    return read_events(read_histories(folder / "histories", ["item_ids", "timestamps"]), item_ids), len(item_ids)


def measure_part(name: str, folder: Path) -> dict[str, Any]:
    """Run one part in a process of its own."""
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    figures: dict[str, Any] = json.loads(done.stdout)
    wall, cores, peak = (figures[key] for key in ("wall_s", "cores_s", "peak_rss_mb"))
    say(f"{name}: {wall:.1f} s, {cores:.1f} s of all cores, {peak:.0f} MiB")
    return figures


def answer_part(name: str, folder: Path) -> None:
    """The other side of `measure_part`."""
    began = time.perf_counter()
    figures = PARTS[name](folder)
    wall = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    cores = used.ru_utime + used.ru_stime
    print(json.dumps({"wall_s": wall, "cores_s": cores, "peak_rss_mb": used.ru_maxrss / 1024, **figures}))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--quick", action="store_true", help="10,000 items and 100,000 events")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        answer_part(arguments.part, arguments.folder)
        return
    num_items, num_events = (10_000, 100_000) if arguments.quick else (arguments.items, arguments.events)
    packages = ["numpy", "scipy", "duckdb", "sparse-dot-topn", "scikit-learn"]
    skipped = set() if importlib.util.find_spec("implicit") else {"implicit"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, num_items, num_events)
        drawn = read_histories(folder / "histories", ["item_ids"]).column("item_ids").combine_chunks()
        parts = {part: measure_part(part, folder) for part in PARTS if part not in skipped}
    report = {
        "benchmark": "memory",
        "units": {
            "*_s": "seconds of wall clock",
            "cores_s": "seconds of all cores",
            "peak_rss_mb": "MiB of that process",
            "*_ms": "milliseconds",
        },
        "seed": SEED,
        "num_items": num_items,
        "num_events": len(drawn.flatten()),
        "hardware": hardware(),
        "versions": versions(*packages, *(["implicit"] if not skipped else [])),
        **parts,
    }
    if not skipped:
        report["counts_over_implicit"] = parts["counts"]["cores_s"] / parts["implicit"]["cores_s"]
    deliver(report, arguments.json)


if __name__ == "__main__":
    main()
