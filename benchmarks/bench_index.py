"""How long the index takes to build, save and map, how many bytes an item it needs, and what changes and rules cost.

    python benchmarks/bench_index.py [--quick] [--json FILE]

Random SIDs of 256 x 128 x 64 x 16 codes, the worst case for a trie (hardly a shared prefix below the second level),
with a hundredth of duplicates. The lookup's peer is a Python set of tuples, what one writes first. The rule has six
conditions, `seen` being 200 items: cold (nothing of it cached), warm (asked again), and, its peer, as a plain NumPy
expression over the columns, pushed up the trie level by level. An addition is 1,000 items to a delta of 10,000.
"""

import argparse
import resource
import statistics
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
from models.retrieval.csr import Index  # noqa: E402
from models.retrieval.live_index import Epoch, LiveIndex  # noqa: E402
from models.retrieval.rules import parse  # noqa: E402
from models.retrieval.segment import Segment  # noqa: E402
from plumline.stage import say  # noqa: E402

SIZES = (256, 128, 64, 16)
SEED = 17


def seconds(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median and spread of process time (neighbours disturb it least), after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


RULE = 'fresh(7d) & ~seen & (category("a") | category("b")) & region("DE") & price < 20'
DAY_MS = 86_400_000


def make_items(num_items: int, first: int, generator: np.random.Generator) -> pa.Table:
    """Items as a Segment wants them, with the tags of RULE."""
    days = generator.integers(0, 30, num_items).astype(np.int32)
    pick = {"tag_category": list("abcdefgh"), "tag_region": ["DE", "FR", "US", "BR"]}
    tags = {name: pa.array(np.array(v)[generator.integers(0, len(v), num_items)]) for name, v in pick.items()}
    return pa.table(
        {
            "item_id": pa.array(np.char.add("item ", np.arange(first, first + num_items).astype(str))),
            "first_seen_day": pa.array(days).cast(pa.date32()),
            "published_ms": pa.array(days.astype(np.int64) * DAY_MS),
            **tags,
            "price": pa.array(generator.integers(1, 100, num_items).astype(np.float64)),
        }
    )


def measure_changes(codes: np.ndarray) -> dict[str, Any]:
    """An index of a million items that serves: adding, removing, and a rule, each in process seconds."""
    generator = np.random.default_rng(SEED)
    num_items = len(codes)
    segment = Segment.build(make_items(num_items, 0, generator), codes, SIZES)
    live = LiveIndex(segment, compact_at=None)
    seen = [f"item {number}" for number in generator.integers(0, num_items, 200)]
    assert seen[0] in live.epoch  # the lookup by id is made once, on loading
    live.add(make_items(10_000, num_items, generator), codes[:10_000])
    more, first = make_items(1_000, num_items + 10_000, generator), codes[:1_000]
    before = live.epoch
    added = seconds(lambda: before.add(more, first).delta.trie("cpu"), 5)  # type: ignore[union-attr]
    removed = seconds(lambda: before.remove(seen).select(None, at_ms=0, sets={}), 5)
    epoch, rule, at_ms = Epoch(segment), parse(RULE), 30 * DAY_MS

    def ask(minute: int) -> int:
        return len(epoch.select(rule, at_ms=at_ms + 60_000 * minute, sets={"seen": seen}) or ())

    ask(0)  # encodes the columns
    minutes = iter(range(1, 1000))

    def cold() -> None:
        segment.tags._remembered.clear()
        ask(next(minutes))

    cold_s = seconds(cold, 9)
    table, rows = segment.items, segment.positions(seen).mask()
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names[2:]}
    columns["category"], columns["region"] = columns["tag_category"].astype("U1"), columns["tag_region"].astype("U2")

    def by_hand() -> list[np.ndarray]:
        some = np.isin(columns["category"], ["a", "b"])
        fit = (columns["published_ms"] >= at_ms - 7 * DAY_MS) & ~rows & some & (columns["region"] == "DE")
        fit &= columns["price"] < 20
        pushed = [np.add.reduceat(fit, segment.index.items[-1][:-1]) > 0]
        for children in segment.index.children[:0:-1]:
            pushed.append(np.logical_or.reduceat(pushed[-1], children[:-1]))
        return pushed

    assert int(by_hand()[0].sum()) <= ask(0)
    return {
        "num_items": num_items,
        "add_1000_to_a_delta_of_10000_s": added,
        "remove_200_s": removed,
        "rule": RULE,
        "rule_allows": ask(0),
        "rule_cold_s": cold_s,
        "rule_warm_s": seconds(lambda: ask(0), 9),
        "rule_by_hand_and_pushed_up_s": seconds(by_hand, 5),
        "compaction_s": seconds(before.compacted, 1),
    }


def measure(num_items: int, repeats: int) -> dict[str, Any]:
    """Every figure for one number of items. Times are process seconds."""
    generator = np.random.default_rng(SEED)
    codes = np.stack([generator.integers(0, size, num_items, dtype=np.int32) for size in SIZES], axis=1)
    copies = num_items // 100
    codes[generator.integers(0, num_items, copies)] = codes[generator.integers(0, num_items, copies)]
    index = Index.build(codes, SIZES)
    probes = np.concatenate([codes[:50_000], generator.integers(0, SIZES, (50_000, len(SIZES)))])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved = seconds(lambda: index.save(folder), repeats)
        on_disk = sum(path.stat().st_size for path in folder.iterdir())
        loaded = seconds(lambda: Index.load(folder), repeats)
        leaves = Index.load(folder).find_leaves(probes)
    figures = {
        "num_items": num_items,
        "num_leaves": index.num_leaves,
        "build_s": seconds(lambda: Index.build(codes, SIZES), repeats),
        "save_s": saved,
        "load_s": loaded,
        "find_100k_s": seconds(lambda: index.find_leaves(probes), repeats),
        "bytes_an_item_in_memory": index.num_bytes / num_items,
        "bytes_an_item_on_disk": on_disk / num_items,
    }
    if num_items <= 1_000_000:  # ten million tuples would need gigabytes
        known = set(map(tuple, codes.tolist()))
        keys = list(map(tuple, probes.tolist()))
        figures["find_100k_in_a_set_of_tuples_s"] = seconds(lambda: [key in known for key in keys], repeats)
        assert [key in known for key in keys] == (leaves >= 0).tolist(), "index and set disagree"
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one million SIDs only (under a minute)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rows = []
    for num_items in (100_000, 1_000_000) if arguments.quick else (100_000, 1_000_000, 10_000_000):
        row = measure(num_items, repeats=3)
        rows.append(row)
        say(
            f"{num_items:>10,} items: build {row['build_s']['median']:.2f} s, "
            f"map {row['load_s']['median'] * 1e3:.1f} ms, {row['bytes_an_item_on_disk']:.1f} bytes an item on disk, "
            f"{row['bytes_an_item_in_memory']:.1f} in memory"
        )
    generator = np.random.default_rng(SEED)
    codes = np.stack([generator.integers(0, size, 1_000_000, dtype=np.int32) for size in SIZES], axis=1)
    changes = measure_changes(codes)
    say(
        f"{len(codes):>10,} items: add {changes['add_1000_to_a_delta_of_10000_s']['median'] * 1e3:.0f} ms; "
        f"rule cold {changes['rule_cold_s']['median'] * 1e3:.2f}, warm {changes['rule_warm_s']['median'] * 1e3:.2f}, "
        f"by hand {changes['rule_by_hand_and_pushed_up_s']['median'] * 1e3:.1f} ms"
    )
    report = {
        "benchmark": "index",
        "units": {"*_s": "seconds of process time", "bytes_*": "bytes", "peak_rss_mb": "MiB, this process so far"},
        "seed": SEED,
        "sizes": SIZES,
        "hardware": hardware(),
        "versions": versions("numpy"),
        "rows": rows,
        "changes": changes,
    }
    deliver(report, arguments.json)


if __name__ == "__main__":
    main()
