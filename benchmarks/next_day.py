"""The next days of a log: what is served, what it is without the model, the model alone, and every baseline.

run   python benchmarks/next_day.py --data DIR --as-of DATE [--eval-days 3] [--queries 3000] [--map NAME=COLUMN …]
          [--seeds 1] [--recipe FILE] [--json FILE] [--cache DIR] [--quick]

DIR has items.parquet, events.parquet and, if there, users.parquet, in columns that `plumline init` would take; --map as
there. They are landed, and the stages of dvc.yaml are run with the recipe up to the ranker; asked are users of the days
after --as-of (at most --queries user-days, drawn by the seed), item level, full ranking over live items, seen items
masked and not. The ranker learns from those same days of the other half of the users. ± is the standard error over
users, of differences paired by user; over several seeds, which ask the same users, the mean of theirs.

--json: a row a data set, day and seed; a row that it holds is not run again. --cache keeps the homes, whose finished
stages are found finished. --quick: few steps and 200 user-days (≤ 2 minutes on a small log): a look, no measurement.
"""

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.home import QUICK_STEPS, Home, add_log_arguments, read_log  # noqa: E402
from benchmarks.measuring.served import measure, table  # noqa: E402
from plumline import artifact  # noqa: E402

FIRST_SEED, QUICK_QUERIES = 17, 200


def run(arguments: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Land, run the stages, measure."""
    tables = read_log(arguments.data, arguments.map)
    changes: dict[str, dict[str, Any]] = {
        "events": {"horizon_days": arguments.eval_days},
        "histories": {"eval_days": arguments.eval_days},
        "ranker": {"leave_one_out_queries": 0, "max_queries": arguments.queries},
        "rivals": {"leave_one_out_queries": 0, "max_queries": arguments.queries},
    }
    if arguments.quick:
        changes |= QUICK_STEPS
        changes["ranker"]["max_queries"] = QUICK_QUERIES
    home = Home.make(
        folder / f"{arguments.data.resolve().name}-{arguments.as_of}-{seed}",
        tables["items"],
        tables["events"],
        tables.get("users"),
        recipe=arguments.recipe,
        changes=changes,
        as_of=arguments.as_of,
        seed=seed,
    )
    seconds = home.run("ranker") | home.run("rivals")
    return {"seconds": seconds, **measure(home, seed, {})}


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_log_arguments(parser)
    parser.add_argument("--eval-days", type=int, default=3, help="days after it that are asked")
    parser.add_argument("--queries", type=int, default=3000, help="user-days asked, at most")
    parser.add_argument("--seeds", type=int, default=1, help="runs, the first with seed 17")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not run again")
    parser.add_argument("--quick", action="store_true", help=f"few steps, {QUICK_QUERIES} user-days")
    arguments = parser.parse_args()
    about = {
        "data": arguments.data.resolve().name,
        "as_of": arguments.as_of.isoformat(),
        "eval_days": arguments.eval_days,
        "queries": arguments.queries,
        "recipe": artifact.sha256_file(arguments.recipe)[:16],
        "quick": arguments.quick,
    }
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + (1 if arguments.quick else arguments.seeds)):
        told = {**about, "seed": seed}
        row = next((row for row in rows if told.items() <= row.items()), None)
        if row is None:
            with nullcontext(arguments.cache) if arguments.cache else tempfile.TemporaryDirectory() as folder:
                row = {**told, **run(arguments, seed, Path(folder))}
            rows.append(row)
            if arguments.json:
                report = {"benchmark": "next_day", "rows": rows, "hardware": hardware()}
                report["versions"] = versions("numpy", "torch", "lightgbm", "transformers")
                artifact.replace_file(arguments.json, json.dumps(report, indent=1) + "\n")
        found.append(row)
    print(f"{about['data']}, {about['eval_days']} days after {about['as_of']}")
    print("\n".join(table(found, same_users=True)))


if __name__ == "__main__":
    main()
