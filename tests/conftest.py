"""What every test may use. Tests need no network, no accelerator and nothing outside this repository."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
for _name in [name for name in os.environ if name.startswith(("PLUMLINE_", "PREFECT_")) and name != "PLUMLINE_UPDATE"]:
    del os.environ[_name]  # the tests' answers must not depend on whoever runs them

from plumline.settings import switch_telemetry_off  # noqa: E402

switch_telemetry_off()

# a busy machine is not a bug: what may take how long is measured in benchmarks/, not here
hypothesis.settings.register_profile("plumline", deadline=None, derandomize=True)
hypothesis.settings.load_profile("plumline")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home: the graph, the recipes and the parameters of the repository, no data."""
    return make_home(tmp_path / "home")


def make_home(folder: Path) -> Path:
    """Copy what a clone brings with it to `folder`."""
    folder.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder
