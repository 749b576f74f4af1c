"""Catalogues of several sizes through the doors that a user has: `plumline init`, `bootstrap`, `recommend`.

run   python benchmarks/catalogue_sizes.py [--sizes 100 5000 20000 200000] [--recipe cpu_tiny] [--data DIR …]
          [--keep DIR] [--json FILE] [--quick]

Each catalogue is a synthetic world (features/synthetic.py: three users an item but 500 to 60,000, thirty events a user,
sixty days; topics grow with the square root of the items) or a folder of your own with items and events (parquet), in a
home of its own, with not a word changed in the recipe. What is printed: the codebooks that it got, uniqueness, whether
the release was promoted (and what the gate said, if not), what `recommend` answered, wall seconds of the commands and
of every stage, and the largest memory of a process so far. --keep: where the homes stay (default: nowhere). --quick:
100 items and a training of few steps (a minute or two): does it run?
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.report import deliver  # noqa: E402
from features.histories import read_some_users  # noqa: E402
from features.synthetic import make_world  # noqa: E402
from flows.steps.runs import read_run  # noqa: E402
from plumline import artifact  # noqa: E402
from plumline.stage import say  # noqa: E402

DAYS = 60
FEW_STEPS: dict[str, dict[str, Any]] = {
    "quantizer": {"steps": 60, "warmup_steps": 20},
    "cpt": {"steps": 10},
    "sft": {"steps": 20},
    "rivals": {"sasrec_steps": 10},
}


@dataclass(frozen=True)
class Home:
    """A home of its own. folder: where it lies."""

    folder: Path

    def run(self, *arguments: str) -> tuple[int, float, str, str]:
        """`plumline …`: exit code, wall seconds, stdout, the last line of stderr."""
        environment = {**os.environ, "PLUMLINE_HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stderr.replace("\r", "\n").strip().splitlines()
        return done.returncode, round(time.perf_counter() - began, 1), done.stdout, lines[-1] if lines else ""


def make_home(folder: Path, recipe: str, quick: bool) -> Home:
    """What a clone brings with it."""
    folder.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    if quick:
        path = folder / "recipes" / f"{recipe}.yaml"
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, values in FEW_STEPS.items():
            sections[name] |= values
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return Home(folder)


def write_world(folder: Path, num_items: int) -> list[str]:
    """items, users and events of a world as parquet files; returns the arguments of `init`."""
    world = make_world(17, min(max(3 * num_items, 500), 60_000), num_items, DAYS)
    for name in ("items", "users", "events"):
        pq.write_table(getattr(world, name), folder / f"{name}.parquet")
    return files_of(folder)


def files_of(folder: Path) -> list[str]:
    """The arguments of `init` for the files of a folder."""
    found = {name: folder / f"{name}.parquet" for name in ("items", "events", "users")}
    return [word for name, path in found.items() if path.exists() for word in (f"--{name}", str(path.resolve()))]


def measure(home: Home, files: list[str], recipe: str) -> dict[str, Any]:
    """All three commands, and what they left."""
    row: dict[str, Any] = {}
    code, row["init_s"], _, said = home.run("init", *files, "--recipe", recipe)
    if code:
        return {**row, "stopped": f"init: {said}"}
    code, row["bootstrap_s"], out, said = home.run("bootstrap", "--json")
    artifacts = home.folder / "artifacts"
    if (artifacts / "sids" / "report.json").exists():
        report = artifact.read_json(artifacts / "sids" / "report.json")
        names = ("num_items", "uniqueness", "uniqueness_with_tie_break", "content_uniqueness", "largest_bucket")
        row |= {name: report[name] for name in names}
        row["sizes"] = artifact.read_json(artifacts / "sids" / "space.json")["sizes"]
    made = yaml.safe_load(out) or [] if code in (0, 2) else []
    row["max_rss_gb"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2)  # of all so far
    if not made:
        return {**row, "stopped": f"bootstrap: {said}"}
    row |= {"promoted": made[0]["promoted"], "reasons": made[0]["reasons"]}
    row["seconds"] = {k: round(v, 1) for k, v in read_run(home.folder, made[0]["release_id"])["seconds"].items()}
    row["methods"] = {
        name: {protocol: round(found["recall@10"], 4) for protocol, found in figures.items() if "recall@10" in found}
        for name, figures in artifact.read_json(artifacts / "scores" / "scores.json")["methods"].items()
        if isinstance(figures, dict)
    }
    if not row["promoted"]:
        return {**row, "stopped": "gate"}
    [user] = read_some_users(artifacts / "histories", 1)
    code, row["recommend_s"], out, said = home.run("recommend", "--user", user, "--json")
    row["recommended"] = len(yaml.safe_load(out)["items"]) if code == 0 else said
    return row


def lines(row: dict[str, Any]) -> list[str]:
    """A catalogue for people."""
    told = [f"{row['name']}: {row.get('num_items', '?')} items, SIDs {row.get('sizes', '-')}"]
    if "uniqueness" in row:
        told.append(
            f"  unique {row['uniqueness']:.4f} (content {row['content_uniqueness']:.4f}), with the tie-break "
            f"{row['uniqueness_with_tie_break']:.4f}, largest bucket {row['largest_bucket']}"
        )
    told.append("  " + ", ".join(f"{name[:-2]} {row[name]:.0f} s" for name in row if name.endswith("_s")))
    if "seconds" in row:
        told.append("  " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in row["seconds"].items()))
        told.append("  recall@10 " + ", ".join(f"{name} {found}" for name, found in row["methods"].items()))
    verdict = "promoted" if row.get("promoted") else f"stopped by {row['stopped']}"
    return [*told, "  " + "; ".join([verdict, *row.get("reasons", [])]), f"  recommended: {row.get('recommended', 0)}"]


def main() -> None:
    """One catalogue after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[100, 5_000, 20_000, 200_000], help="items of each world"
    )
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="folders with items.parquet and events.parquet"
    )
    parser.add_argument("--recipe", default="cpu_tiny", help="a file of recipes/, without .yaml")
    parser.add_argument("--keep", type=Path, help="folder for the homes; default: a temporary one")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    sizes = [100] if arguments.quick else arguments.sizes
    rows, recipe = [], arguments.recipe
    with tempfile.TemporaryDirectory() as scratch:
        for source in (*sizes, *arguments.data):
            name = f"world {source}" if isinstance(source, int) else source.name
            home = make_home(
                (arguments.keep or Path(scratch)) / name.replace(" ", "-"), arguments.recipe, arguments.quick
            )
            files = write_world(home.folder, source) if isinstance(source, int) else files_of(source)
            rows.append({"name": name, **measure(home, files, recipe)})
            say("\n".join(lines(rows[-1])))
    packages = versions("numpy", "scikit-learn", "torch", "transformers", "prefect")
    deliver(
        {"benchmark": "catalogue_sizes", "rows": rows, "hardware": hardware(), "versions": packages}, arguments.json
    )


if __name__ == "__main__":
    main()
