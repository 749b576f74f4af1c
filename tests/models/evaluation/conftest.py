"""Lists of the rivals on the tiny world."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.evaluation.rivals import RivalsParams, run


@pytest.fixture(scope="session")
def list_rivals(world: Any) -> Callable[..., Path]:
    """(out, base, changes) → the stage `rivals` run on the world, or on other folders of it. changes: of parameters,
    and of inputs."""

    def make(out: Path, *, base: Path | None = None, **changes: Any) -> Path:
        inputs = {name: changes.pop(name, getattr(world, name)) for name in ("catalog", "histories")}
        out.mkdir(parents=True)
        run(RivalsParams(**{"sasrec_steps": 3, **changes}), **inputs, base=base, seed=17, out=out)
        return out

    return make


@pytest.fixture(scope="session")
def rivals(list_rivals: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, on the world."""
    return list_rivals(tmp_path_factory.mktemp("rivals") / "out")
