"""How large must codebooks be? Uniqueness of the SIDs of catalogues of many sizes against codebooks of many sizes.

run   python benchmarks/sid_codebooks.py [--data DIR …] [--draw 2560 …] [--worlds 100 1000 …] [--codebooks 256,256 …]
          [--seeds 17 …] [--recipe FILE] [--json FILE] [--cache DIR] [--quick]

The recipe's embeddings and quantizer on every item of a folder (items.parquet, and events.parquet if there is one), on
so many of them drawn at random (--draw), and on synthetic worlds (features/synthetic.py), with each of the codebooks
that are named; `auto` is what the recipe's word makes of the contents, and was read off these rows
(models/semantic_ids/codebook_sizes.py). --json is written after every row and read again, so that a run that was
stopped goes on where it was.
--quick: one world of 1,000 items, two codebooks (seconds).

Columns: items; contents: different vectors; alone: share of the items whose vector no other item has (no codebook can
do better); codebooks; seed; unique: share of items alone on their SID without a tie-break digit; largest: most items on
one such SID; over 16: items that share the last of 16 digits; used and perplexity of every level; s: seconds of the
training, one thread.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

from benchmarks.measuring.datasets import count_pairs, read_dataset  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from features.intake.tables import read_table, rename  # noqa: E402
from features.synthetic import make_world  # noqa: E402
from models.semantic_ids.codebook_sizes import TIE_BREAK, Contents  # noqa: E402
from models.semantic_ids.embeddings import EmbeddingsParams, Encoders  # noqa: E402
from models.semantic_ids.frozen_quantizer import QuantizerParams  # noqa: E402
from models.semantic_ids.quantizer import fit  # noqa: E402
from models.semantic_ids.table import bucket_sizes, describe_levels  # noqa: E402
from models.semantic_ids.vectors import VectorFile, VectorWriter  # noqa: E402
from plumline import artifact  # noqa: E402
from plumline.schema import ITEMS  # noqa: E402
from plumline.stage import load_params, say  # noqa: E402


def read_world(num_items: int) -> tuple[pa.Table, pa.Table]:
    """Items and pairs of a synthetic world: three users an item, 200 to 60,000, and thirty events a user."""
    world = make_world(17, max(200, min(3 * num_items, 60_000)), num_items, 60)
    frame = world.events.select(["user_id", "item_id"]).to_pandas()
    codes = frame.item_id.astype("category")
    order = np.argsort(frame.user_id.to_numpy(), kind="stable")
    users = frame.user_id.to_numpy()[order]
    ends = np.flatnonzero(users[1:] != users[:-1]) + 1
    histories = np.split(codes.cat.codes.to_numpy().astype(np.int64)[order], ends)
    pairs = count_pairs(codes.cat.categories.to_list(), histories, window=5, min_count=2)
    return world.items.sort_by("item_id"), pairs


def read_folder(folder: Path, num_drawn: int | None) -> tuple[pa.Table, pa.Table]:
    """Items of a folder, all or so many, and the pairs of all; without events there are no pairs."""
    if (folder / "events.parquet").exists():
        data = read_dataset(folder)
        items, pairs = data.items, data.pairs(data.last_day)
    else:
        items = rename(read_table(folder / "items.parquet"), ITEMS, {}).table.sort_by("item_id").combine_chunks()
        pairs = count_pairs(items.column("item_id").to_pylist(), [], window=5, min_count=2)
    if num_drawn is not None:
        items = items.take(np.sort(np.random.default_rng(17).permutation(items.num_rows)[:num_drawn]))
    return items, pairs


def embed(items: pa.Table, params: EmbeddingsParams, folder: Path) -> VectorFile:
    """Vectors of the items, made once."""
    if not (folder / "done").exists():
        encoders = Encoders.fit(items, params)
        with VectorWriter(folder, encoders.widths) as writer:
            for block in encoders.embed_blocks(items):
                writer.write(block)
        (folder / "done").touch()
    return VectorFile(folder)


def measure(file: VectorFile, pairs: pa.Table, params: QuantizerParams, seed: int) -> dict[str, Any]:
    """One row: train, give codes, count."""
    began = time.process_time()
    quantizer = fit(file, pairs, params, seed)
    seconds = time.process_time() - began
    codes = np.concatenate([part for _, part in quantizer.encode_blocks(file.blocks(), 1)])
    buckets = bucket_sizes(codes)
    levels = describe_levels(codes, quantizer.codebooks)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return {
        "codebooks": list(quantizer.codebooks),
        "uniqueness": float((buckets == 1).mean()),
        "largest": int(buckets.max()),
        "over": int(np.where(counts > TIE_BREAK[0], counts - TIE_BREAK[0] + 1, 0).sum()),
        "usage": [round(level["usage"], 4) for level in levels],
        "perplexity": [round(level["perplexity"], 1) for level in levels],
        "seconds": round(seconds, 1),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    books = ", ".join(map(str, row["codebooks"]))
    usage = " ".join(f"{value:.2f}" for value in row["usage"])
    perplexity = " ".join(f"{value:.0f}" for value in row["perplexity"])
    return (
        f"{row['data']:>20s} {row['items']:>8,d} {row['contents']:>8,d} {row['alone']:>6.3f} {books:>16s} "
        f"{row['seed']:>4d} {row['uniqueness']:>7.4f} {row['largest']:>7,d} {row['over']:>7,d}  {usage:>16s} "
        f" {perplexity:>16s} {row['seconds']:>7.1f}"
    )


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[ROOT / "examples/online_retail"], help="folders")
    parser.add_argument("--draw", type=int, nargs="*", default=[], help="also so many items of each folder")
    parser.add_argument("--worlds", type=int, nargs="*", default=[100, 1000, 5000, 20000], help="items of each world")
    parser.add_argument("--codebooks", nargs="+", default=["auto"], help="256,256 or auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/cpu_tiny.yaml")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not run again")
    parser.add_argument("--cache", type=Path, help="folder for embeddings; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.data, arguments.worlds, arguments.codebooks = [], [1000], ["64,64", "auto"]
    embeddings = load_params(arguments.recipe, "embeddings", EmbeddingsParams)
    quantizer = load_params(arguments.recipe, "quantizer", QuantizerParams)
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    draws = (None, *arguments.draw)
    sources: list[tuple[str, Callable[[], tuple[pa.Table, pa.Table]]]] = [
        (f"{folder.name} {drawn or ''}".strip(), partial(read_folder, folder.resolve(), drawn))
        for folder in arguments.data
        for drawn in draws
    ]
    sources += [(f"world {size}", partial(read_world, size)) for size in arguments.worlds]
    with tempfile.TemporaryDirectory() as scratch:
        for name, read in sources:
            wanted = [
                (asked, seed)
                for seed in arguments.seeds
                for asked in arguments.codebooks
                if (name, asked, seed) not in {(r["data"], r["asked"], r["seed"]) for r in rows}
            ]
            if not wanted:
                continue
            items, pairs = read()
            file = embed(items, embeddings, (arguments.cache or Path(scratch)) / name.replace(" ", "-"))
            say(f"{name}: {items.num_rows} items, {pairs.num_rows} pairs")
            contents = Contents.of(file)
            for asked, seed in wanted:
                books = "auto" if asked == "auto" else tuple(int(size) for size in asked.split(","))
                params = quantizer.model_copy(update={"codebooks": books})
                about = {"data": name, "items": items.num_rows, "contents": contents.number}
                about |= {"alone": contents.uniqueness, "asked": asked, "seed": seed}
                rows.append({**about, **measure(file, pairs, params, seed)})
                say(line(rows[-1]))
                if arguments.json:
                    report = {
                        "benchmark": "sid_codebooks",
                        "params": quantizer.model_dump(mode="json"),
                        "rows": rows,
                        "hardware": hardware(),
                        "versions": versions("numpy", "scikit-learn", "scipy", "torch"),
                    }
                    artifact.replace_file(arguments.json, json.dumps(report) + "\n")
    for row in sorted(rows, key=lambda row: (row["items"], row["data"], row["codebooks"], row["seed"])):
        print(line(row))


if __name__ == "__main__":
    main()
