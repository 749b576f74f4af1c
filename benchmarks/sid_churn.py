"""What a retraining of the SIDs moves, with the codes' names kept (models/semantic_ids/alignment.py) and without.

run   python benchmarks/sid_churn.py [--quick] [--json FILE] [--data DIR …] [--seeds 17 18 19] [--recipe FILE]

The recipe's embeddings and quantizer, of both kinds, twice: with two seeds on one catalogue (every pair of --seeds),
and with one seed on the catalogue of the day and of four weeks before (everything fitted anew on each). The day is two
weeks before the last event, as `plumline init` would hold out. Churn: share of the items known to both whose first l
codes are no longer what they were, each item once, or weighted by its events. What is asked of alignment is the column
"cut" of level 1: at least half. Rows "inherited" start the new codebooks from the items that carried the old codes
(`quantizer.retraining_start: previous`), so that alignment has nothing left to do; `kmeans`, the others, starts anew.
--quick: one pair of seeds, the first folder (≤ 2 minutes on 2 cores).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.measuring.datasets import DataSet, read_dataset  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from models.semantic_ids.alignment import align, churn, common_rows  # noqa: E402
from models.semantic_ids.embeddings import EmbeddingsParams, Encoders  # noqa: E402
from models.semantic_ids.frozen_quantizer import QuantizerParams  # noqa: E402
from models.semantic_ids.quantizer import fit  # noqa: E402
from models.semantic_ids.sids import extend_table  # noqa: E402
from models.semantic_ids.table import SidTable  # noqa: E402
from models.semantic_ids.vectors import VectorFile, VectorWriter  # noqa: E402
from plumline.artifact import write_json  # noqa: E402
from plumline.stage import load_params, say  # noqa: E402

HELD_OUT = timedelta(weeks=2)
LATER = timedelta(weeks=4)
KINDS = ("rqvae", "rq_kmeans")
SEED, WEEKS = "another seed", "four weeks later"
UNITS = {
    "before, after": "share of known items (items) or of their events (traffic) whose first l codes moved, without and "
    "with alignment",
    "cut": "1 - after / before, of items and of traffic",
}


@dataclass(frozen=True)
class Snapshot:
    """What a data set was on one day, embedded. folder: the vectors."""

    as_of: date
    folder: Path
    pairs: Any
    traffic: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """Codes of a quantiser, (N, L), of the items of a snapshot."""

    snapshot: Snapshot
    seed: int
    item_ids: list[str]
    codes: np.ndarray
    codebooks: tuple[int, ...]

    @property
    def table(self) -> SidTable:
        """As the stage sids would make it, without a tie-break."""
        return extend_table(None, self.item_ids, self.codes, self.codebooks, 0)


def take_snapshot(data: DataSet, as_of: date, params: EmbeddingsParams, folder: Path) -> Snapshot:
    """Embed the items that were known, and count what went together, by the end of a day."""
    items = data.known(as_of)
    encoders = Encoders.fit(items, params)
    with VectorWriter(folder, encoders.widths) as writer:
        for block in encoders.embed_blocks(items):
            writer.write(block)
    return Snapshot(as_of, folder, data.pairs(as_of), data.traffic(as_of))


def train(snapshot: Snapshot, params: QuantizerParams, seed: int, old: Trained | None = None) -> Trained:
    """A quantiser of one seed and its codes. old: whose codes it inherits."""
    file = VectorFile(snapshot.folder)
    start = {"retraining_start": "previous" if old else "kmeans"}
    quantizer = fit(file, snapshot.pairs, params.model_copy(update=start), seed, old.table if old else None)
    codes = np.concatenate([part for _, part in quantizer.encode_blocks(file.blocks(), 1)])
    return Trained(snapshot, seed, file.item_ids(), codes, quantizer.codebooks)


def compare(old: Trained, new: Trained, params: QuantizerParams) -> dict[str, Any]:
    """Churn from one training to the next, as the stage sids reports it; traffic is the newer snapshot's."""
    table = old.table
    names = align(table, new.item_ids, new.codes, new.codebooks)
    renamed = np.stack([new_names[new.codes[:, level]] for level, new_names in enumerate(names)], axis=1)
    before = churn(table, new.item_ids, new.codes, new.snapshot.traffic)
    after = churn(table, new.item_ids, renamed, new.snapshot.traffic)
    return {
        "kind": params.kind,
        "seeds": [old.seed, new.seed],
        "days": [old.snapshot.as_of.isoformat(), new.snapshot.as_of.isoformat()],
        "num_known": len(common_rows(table, new.item_ids)[0]),
        "num_items": len(new.item_ids),
        "before": before,
        "after": after,
        "cut": [
            {"level": b["level"], **{by: 1 - a[by] / b[by] if b[by] else None for by in ("items", "traffic")}}
            for b, a in zip(before, after, strict=True)
        ],
    }


def bench(folder: Path, recipe: Path, seeds: list[int], scratch: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """The rows of one data set."""
    data = read_dataset(folder)
    embeddings = load_params(recipe, "embeddings", EmbeddingsParams)
    later = data.last_day - HELD_OUT
    now, past = (take_snapshot(data, day, embeddings, scratch / f"{data.name}-{day}") for day in (later, later - LATER))
    for kind in KINDS:
        params = load_params(recipe, "quantizer", QuantizerParams).model_copy(update={"kind": kind})
        trained = [train(now, params, seed) for seed in seeds]
        pairs = [(SEED, old, new) for old, new in combinations(trained, 2)]
        pairs += [(WEEKS, train(past, params, new.seed), new) for new in trained[: 1 if quick else None]]
        for case, old, new in pairs:
            yield {"data": data.name, "case": case, **compare(old, new, params)}
            inherited = train(now, params, new.seed, old)
            yield {"data": data.name, "case": f"{case}, inherited", **compare(old, inherited, params)}
        say(f"{data.name}, {kind}: done")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: means over the pairs of one case, with the least and the largest where there are several."""
    yield f"{'':62s} {'':3s} {'items that moved':^37s} {'weighted by traffic':^37s}"
    heading = f"{'without':>9s} {'with':>15s} {'cut':>11s}"
    yield f"{'':62s} {'lvl':3s} {heading} {heading}"
    for key in dict.fromkeys((row["data"], row["kind"], row["case"]) for row in rows):
        those = [row for row in rows if (row["data"], row["kind"], row["case"]) == key]
        label = f"{', '.join(key)} ({len(those)})"
        for level in range(len(those[0]["after"])):
            cells = []
            for by in ("items", "traffic"):
                before, after, cut = (
                    [row[name][level][by] for row in those if row[name][level][by] is not None]
                    for name in ("before", "after", "cut")
                )
                cells.append(f"{_mean(before):>9s} {_mean(after, spread=True):>15s} {_mean(cut):>11s}")
            yield f"{label if not level else '':62s} {level + 1:3d} {cells[0]} {cells[1]}"
        if key[2] not in (SEED, WEEKS):
            continue
        least = min(row["cut"][0]["items"] or 0.0 for row in those)
        verdict = "at least half" if least >= 0.5 else "LESS THAN HALF"
        yield f"{'':62s}     level 1: items cut by {least:.1%} or more: {verdict}"


def _mean(values: list[float], *, spread: bool = False) -> str:
    if not values:
        return "–"
    text = f"{np.mean(values):.3f}"
    return f"{text} ({min(values):.2f}–{max(values):.2f})" if spread and len(values) > 1 else text


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[ROOT / "examples/online_retail"], help="folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19], help="every pair of them is compared")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/cpu_tiny.yaml")
    parser.add_argument("--quick", action="store_true", help="one pair of seeds, the first folder")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = arguments.data[: 1 if arguments.quick else None]
    seeds = arguments.seeds[: 2 if arguments.quick else None]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            rows += bench(folder.resolve(), arguments.recipe, seeds, Path(scratch), arguments.quick)
    print("\n".join(table(rows)))
    if arguments.json:
        report = {
            "benchmark": "sid_churn",
            "quick": arguments.quick,
            "params": load_params(arguments.recipe, "quantizer", QuantizerParams).model_dump(mode="json"),
            "units": UNITS,
            "rows": rows,
            "hardware": hardware(),
            "versions": versions("numpy", "scikit-learn", "scipy", "torch"),
        }
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
