"""A small synthetic company with its own home, run through the real commands."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "histories": {"eval_days": 4},
    "quantizer": {"codebooks": [16, 8, 4], "steps": 60, "warmup_steps": 10, "usage_floor": 0.2},
    "vocabulary": {"text_tokens": 300},
    "cpt": {"steps": 6, "model": {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate": 64}},
    "sft": {"steps": 6, "daily_steps": 3},
    "ranker": {
        "max_queries": 120,
        "leave_one_out_queries": 20,
        "min_queries": 20,
        "candidates": {"width": 10, "fresh_width": 5},
        "trees": {"rounds": 20, "min_leaf": 20},
    },
    "rivals": {"sasrec_steps": 5},
    "scores": {"width": 10, "hallucination_queries": 20},
    # six steps teach nothing: what is tested here is the loop, the gate's own limits are tested beside it
    "gate": {"max_hallucination_rate": 1.0, "min_uniqueness": 0.0, "max_drop_se": 1e9, "max_behind_se": 1e9},
    "monitor": {"max_hallucination_percent": 100},
}
FIRST_DAY, AS_OF = "2024-01-01", "2024-01-12"


@dataclass(frozen=True)
class Company:
    """A home with landed data, and the command line in it."""

    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, exit_code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
        """`plumline …`; fails the test on another exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.home,
            env={**self.environment, **extra},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == exit_code, (
            f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
        )
        return done

    def json(self, *arguments: str, exit_code: int = 0):
        """stdout of `plumline … --json`."""
        return json.loads(self.run(*arguments, "--json", exit_code=exit_code).stdout)


def tiny_recipe(folder: Path) -> None:
    """Write recipes/tiny.yaml: cpu_tiny with steps that take seconds."""
    recipe = yaml.safe_load((ROOT / "recipes" / "cpu_tiny.yaml").read_text())
    for section, values in TINY.items():
        recipe[section] = {**(recipe[section] or {}), **values}
    (folder / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(recipe))


def found_company(folder: Path, environment: dict[str, str]) -> Company:
    """A clone's files, a synthetic world as parquet beside them, and `plumline init` on it."""
    import pyarrow.parquet as pq

    from features.synthetic import make_world

    folder.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    tiny_recipe(folder)
    world = make_world(3, num_users=150, num_items=90, num_days=16)
    for name in ("items", "users", "events"):
        pq.write_table(getattr(world, name), folder / f"{name}.parquet")
    company = Company(folder, {**environment, "PLUMLINE_HOME": str(folder), "PYTHONPATH": str(ROOT)})
    files = [word for name in ("items", "users", "events") for word in (f"--{name}", f"{name}.parquet")]
    company.run("init", *files, "--recipe", "tiny")
    return company


@pytest.fixture(scope="session")
def tiny() -> dict[str, dict[str, object]]:
    """What a recipe changes to be made in seconds: section → values."""
    return TINY


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory) -> Iterator[str]:
    """One Prefect server for all commands of the session."""
    from flows.clock.server import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture(scope="session")
def environment(prefect_url) -> dict[str, str]:
    """The environment of every command."""
    return {**os.environ, "PREFECT_API_URL": prefect_url, "OMP_NUM_THREADS": "1", "PLUMLINE_THREADS": "1"}


@pytest.fixture(scope="session")
def company(tmp_path_factory, environment) -> Company:
    """A company after `init`, `bootstrap` and one `daily`; tests leave it in a state the next can use."""
    company = found_company(tmp_path_factory.mktemp("company") / "home", environment)
    company.run("bootstrap", "--as-of", AS_OF)
    company.run("daily")
    return company


@pytest.fixture
def new_company(tmp_path, environment) -> Company:
    """A company after `init` alone, for tests that break things."""
    return found_company(tmp_path / "home", environment)
