"""How long the index takes to build, save and map, and how many bytes an item it needs.

    python benchmarks/bench_index.py [--quick] [--json FILE]

Random SIDs of 256 x 128 x 64 x 16 codes, the worst case for a trie (hardly a shared prefix below the second level),
with a hundredth of duplicates. The lookup's peer is a Python set of tuples, what one writes first.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.index import Index
from plumline.stage import num_cores, say

SIZES = (256, 128, 64, 16)
SEED = 17


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median and spread of process time (neighbours disturb it least), after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


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
    report = {
        "benchmark": "index",
        "units": {"*_s": "seconds of process time", "bytes_*": "bytes", "peak_rss_mb": "MiB, this process so far"},
        "seed": SEED,
        "sizes": SIZES,
        "hardware": {"processor": processor(), "cores": num_cores()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "rows": rows,
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
