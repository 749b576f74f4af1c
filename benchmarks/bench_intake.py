"""How fast files are staged and in how much memory, beside the readers of Arrow, DuckDB and polars on the same files.

    python benchmarks/bench_intake.py [--rows 5000000] [--formats csv,csv.gz] [--quick] [--json FILE] [--folder DIR]

The rows are events: a user, an item, a time, an action and a watch time; of `quoted` also a text with separators,
quotes and line feeds, each cell in quotes. Every part runs in a process of its own on one core, the same for all; its
peak of resident memory is a figure. `--folder` keeps the files there and uses those that are there already. The speeds
are by the seconds of that core, which neighbours on the machine disturb least; the wall clock stands beside them.

`ours` is stage(), which reads a file to its end, checks every line, and for packed files and JSON writes the copy that
is read later; `again` is one more pass over what it leaves, as the steps after it do. The peers read the same file to
its end in batches, as text (`csv`) or with the types of the file, and throw the batches away. Their own speed over ours
is what the numbers of lines, the checks and the copy cost. polars is measured where it is installed.
"""

import argparse
import gzip
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.csv  # noqa: E402
import pyarrow.json  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.report import deliver  # noqa: E402
from plumline.stage import say  # noqa: E402

SEED = 17
BLOCK = 1 << 20  # rows
FORMATS = {"csv": "e.csv", "csv.gz": "e.csv.gz", "quoted": "q.csv", "jsonl": "e.jsonl", "parquet": "e.parquet"}
COLUMNS = ("user_id", "item_id", "timestamp", "action", "watch_time_s")


# --- the files ---


def make_events(num_rows: int) -> Iterator[pa.Table]:
    """Blocks of events, the same for the same number of rows."""
    rng = np.random.default_rng(SEED)
    for start in range(0, num_rows, BLOCK):
        size = min(BLOCK, num_rows - start)
        times = 1_704_067_200 + (start + np.arange(size)) // 8
        users = pc.binary_join_element_wise("u", pa.array(rng.integers(0, 400_000, size)).cast(pa.string()), "")
        yield pa.table(
            {
                "user_id": users,
                "item_id": pa.array(rng.integers(0, 100_000, size)),
                "timestamp": pa.array(times).cast(pa.timestamp("s")).cast(pa.string()),
                "action": pa.array(np.array(["click", "view", "like"])[rng.integers(0, 3, size)]),
                "watch_time_s": pa.array(rng.integers(0, 300_000, size) / 1000),
            }
        )


def write_file(folder: Path, name: str, num_rows: int) -> None:
    """One of FORMATS."""
    path = folder / FORMATS[name]
    if name == "csv.gz":
        write_file(folder, "csv", num_rows)
        with (folder / FORMATS["csv"]).open("rb") as plain, gzip.open(path, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(plain, packed, 1 << 20)
    elif path.exists():
        return
    elif name == "parquet":
        blocks = make_events(num_rows)
        first = next(blocks)
        with pq.ParquetWriter(path, first.schema) as writer:
            for table in itertools.chain([first], blocks):
                writer.write_table(table)
    elif name == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for table in make_events(num_rows):
                file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    else:
        style = "all_valid" if name == "quoted" else "none"
        with path.open("wb") as file:
            for number, table in enumerate(make_events(num_rows)):
                table = _with_text(table) if name == "quoted" else table
                options = pyarrow.csv.WriteOptions(include_header=not number, quoting_style=style)
                pyarrow.csv.write_csv(table, file, options)


def _with_text(table: pa.Table) -> pa.Table:
    """Cells that only quotes keep together: every fiftieth has a line feed."""
    texts = np.array(['Lamp, 5" wide', "Chair", "Table; oak", "Sofa"])[np.arange(len(table)) % 4]
    texts = np.where(np.arange(len(table)) % 50 == 0, 'Shelf,\n"high"', texts)
    table = pa.table([column.cast(pa.string()) for column in table.columns], names=table.column_names)
    return table.append_column("title", pa.array(texts))


# --- the readers, each in a process of its own on one core ---


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._core = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        """Of the wall, and of the core that this process had."""
        return {"wall_s": time.perf_counter() - self._wall, "core_s": time.process_time() - self._core}


def read_ours(path: Path) -> dict[str, Any]:
    from features.intake.staging.stage import stage

    options: Any = SimpleNamespace(format=None, separator=None, encoding=None, columns=())
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        clock = Clock()
        rows = stage([str(path)], options, noun="events", into=Path(scratch))
        figures = clock.seconds()
        clock = Clock()
        num_rows = sum(block.num_rows for block in rows.blocks())
        again = clock.seconds()["core_s"]
        copied = sum(file.stat().st_size for file in Path(scratch).iterdir())
    return {"num_rows": num_rows, **figures, "again_core_s": again, "copy_mb": copied / 1e6}


def read_arrow(path: Path) -> dict[str, Any]:
    clock = Clock()
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            num_rows = sum(batch.num_rows for batch in file.iter_batches(use_threads=False))
    elif path.suffix == ".jsonl":
        with pyarrow.json.open_json(path, pyarrow.json.ReadOptions(use_threads=False, block_size=1 << 22)) as reader:
            num_rows = sum(batch.num_rows for batch in reader)
    else:
        names = [*COLUMNS, *(["title"] if path.name == FORMATS["quoted"] else [])]
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        options = pyarrow.csv.ReadOptions(use_threads=False, block_size=1 << 22)
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(path, options, parse, convert) as reader:
            num_rows = sum(batch.num_rows for batch in reader)
    return {"num_rows": num_rows, **clock.seconds()}


def read_duckdb(path: Path) -> dict[str, Any]:
    import duckdb

    source = {".parquet": "read_parquet(?)", ".jsonl": "read_json(?)"}.get(
        path.suffix, "read_csv(?, all_varchar = true, header = true)"
    )
    clock = Clock()
    with duckdb.connect(config={"threads": 1}) as connection:
        reader = connection.execute(f"SELECT * FROM {source}", [str(path)]).fetch_record_batch(1 << 16)
        num_rows = sum(batch.num_rows for batch in reader)
    return {"num_rows": num_rows, **clock.seconds()}


def read_polars(path: Path) -> dict[str, Any]:
    import polars as pl

    clock = Clock()
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
    elif path.suffix == ".jsonl":
        frame = pl.read_ndjson(path)
    else:
        frame = pl.read_csv(path, infer_schema=False)
    return {"num_rows": frame.height, **clock.seconds()}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours": read_ours,
    "arrow": read_arrow,
    "duckdb": read_duckdb,
    "polars": read_polars,
}


def measure(reader: str, name: str, path: Path) -> dict[str, Any]:
    """Run one reader in a process of its own."""
    command = [sys.executable, __file__, "--reader", reader, "--file", str(path)]
    one = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **one})
    figures: dict[str, Any] = json.loads(done.stdout)
    say(f"{name} {reader}: {figures['rows_per_s']:,.0f} rows/s, {figures['peak_rss_mb']:.0f} MiB")
    return figures


def answer(reader: str, path: Path) -> None:
    """The other side of `measure`."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.array(np.arange(1))  # Arrow imports pandas here: not on anybody's clock
    figures = READERS[reader](path)
    # Not getrusage: its peak is that of whoever started this process, if that one was larger.
    peak = next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith("VmHWM"))
    figures |= {
        "rows_per_s": figures["num_rows"] / figures["core_s"],
        "mb_per_s": path.stat().st_size / 1e6 / figures["core_s"],
        "peak_rss_mb": int(peak.split()[1]) / 1024,
    }
    print(json.dumps(figures))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--quick", action="store_true", help="50,000 rows")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    parser.add_argument("--reader", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        answer(arguments.reader, arguments.file)
        return
    num_rows = 50_000 if arguments.quick else arguments.rows
    readers = [name for name in READERS if name != "polars" or importlib.util.find_spec("polars")]
    report: dict[str, Any] = {
        "benchmark": "intake",
        "units": {
            "rows_per_s": "rows a second of the core",
            "wall_s": "seconds of wall clock",
            "core_s": "seconds of the core",
            "again_core_s": "seconds of the core for one more pass over what staging leaves",
            "peak_rss_mb": "MiB of that process",
            "copy_mb": "MB of the copy in the scratch folder",
            "over_*": "rows/s of ours over those of that reader",
        },
        "seed": SEED,
        "num_rows": num_rows,
        "hardware": hardware(),
        "versions": versions("pyarrow", "duckdb", *(["polars"] if "polars" in readers else [])),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.formats.split(","):
            write_file(folder, name, num_rows)
            path = folder / FORMATS[name]
            parts = {reader: measure(reader, name, path) for reader in readers}
            ours = parts["ours"]["rows_per_s"]
            over = {f"over_{peer}": ours / parts[peer]["rows_per_s"] for peer in readers if peer != "ours"}
            report[name] = {"file_mb": path.stat().st_size / 1e6, **parts, **over}
    deliver(report, arguments.json)


if __name__ == "__main__":
    main()
