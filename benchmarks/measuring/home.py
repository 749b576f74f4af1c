"""A home for a benchmark: tables landed as `plumline init` lands them, stages run as dvc.yaml says, without Prefect."""

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from features import landing
from flows.steps.graph import read_graph, read_params, upstream
from plumline.artifact import replace_file
from plumline.errors import PlumlineError
from plumline.schema import EVENTS, ITEMS, USERS
from plumline.settings import child_environment
from plumline.stage import CODE_ROOT, die_with_parent, read_recipe, say

_LANDED_AT = datetime(2100, 1, 1, tzinfo=UTC)  # no event is from the future: the benchmark has no clock

QUICK_STEPS: dict[str, dict[str, Any]] = {
    "quantizer": {"steps": 60, "warmup_steps": 20},
    "cpt": {"steps": 20},
    "sft": {"steps": 60},
    "rivals": {"sasrec_steps": 30},
    "scores": {"bootstrap_samples": 100},
}
"""Changes to a recipe for a quick run."""


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --as-of, --map, --recipe and --cache: a log of anybody's, the sample by default."""
    sample, recipe = CODE_ROOT / "examples" / "online_retail", CODE_ROOT / "recipes" / "cpu_tiny.yaml"
    parser.add_argument("--data", type=Path, default=sample, help="folder with items.parquet and events.parquet")
    parser.add_argument("--as-of", type=date.fromisoformat, default=date(2011, 10, 31), help="last day learned from")
    parser.add_argument("--map", action="append", default=[], metavar="NAME=COLUMN", help="as for plumline init")
    parser.add_argument("--recipe", type=Path, default=recipe, help="recipe of the stages")
    parser.add_argument("--cache", type=Path, help="folder for the homes; default: a temporary one")


def read_log(folder: Path, mapping: Sequence[str]) -> dict[str, pa.Table]:
    """items, events and, if there, users of a folder, in their contracts. mapping: NAME=COLUMN, as `plumline init`."""
    raw = {contract: folder / f"{contract.name}.parquet" for contract in (ITEMS, EVENTS, USERS)}
    found = {contract.name: landing.read_table(path) for contract, path in raw.items() if path.exists()}
    names = landing.split_mapping(mapping, found)
    return {c.name: landing.rename(found[c.name], c, names[c.name]).table for c in raw if c.name in found}


@dataclass(frozen=True)
class Home:
    """A folder with data/landing, params.yaml, recipe.yaml and, once stages ran, artifacts/."""

    folder: Path

    @staticmethod
    def make(
        folder: Path,
        items: pa.Table,
        events: pa.Table,
        users: pa.Table | None,
        *,
        recipe: Path,
        changes: Mapping[str, Mapping[str, Any]],
        as_of: date,
        seed: int,
    ) -> "Home":
        """Land tables in their contracts, and write what the stages are told. changes: section → key → value in the
        recipe. What is there already is kept, so that finished stages are found finished."""
        folder.mkdir(parents=True, exist_ok=True)
        landed = folder / "data" / "landing"
        landing.land(items, events, users, landing=landed, source="benchmark", now=_LANDED_AT)
        (folder / "data" / "traffic").mkdir(exist_ok=True)
        sections = copy.deepcopy(read_recipe(recipe))
        for section, values in changes.items():
            sections[section] = {**(sections.get(section) or {}), **values}
        params = {"recipe": "recipe.yaml", "as_of": as_of.isoformat(), "base": "", "previous": "", "seed": seed}
        replace_file(folder / "recipe.yaml", yaml.safe_dump(sections, sort_keys=False))
        replace_file(folder / "params.yaml", yaml.safe_dump(params, sort_keys=False))
        return Home(folder)

    @property
    def recipe(self) -> Path:
        """The recipe of this home."""
        return self.folder / "recipe.yaml"

    def artifact(self, name: str) -> Path:
        """Folder of an artifact."""
        return self.folder / "artifacts" / name

    def run(self, goal: str) -> dict[str, float]:
        """Run the stages that `goal` needs, itself last. Seconds of each (of one that was finished: of finding so).

        Raises PlumlineError with the log of a stage that failed.
        """
        graph, values = read_graph(CODE_ROOT), read_params(self.folder)
        logs = self.folder / "artifacts" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        seconds = {}
        for name in upstream(graph, goal):
            began = time.perf_counter()
            with (logs / f"{name}.log").open("ab") as log:
                done = subprocess.run(
                    graph[name].argv(sys.executable, values),
                    cwd=self.folder,
                    env=child_environment(PYTHONPATH=str(CODE_ROOT), TQDM_MININTERVAL="10"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,
                    check=False,
                )
            if done.returncode:
                raise PlumlineError(f"{name}: exit code {done.returncode}; see {log.name}")
            seconds[name] = round(time.perf_counter() - began, 1)
            say(f"{name}: {seconds[name]} s")
        return seconds
