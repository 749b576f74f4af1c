"""dvc.yaml read as what it is: the one graph of stages. Knows nothing of Prefect or DVC's own code."""

import re
import shlex
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from plumline.artifact import sha256_file, sha256_json
from plumline.errors import InputError
from plumline.stage import CODE_ROOT, import_closure

_TEMPLATE = re.compile(r"\$\{(\w+)\}")
_DEFAULTS = {"previous": ""}  # lines that a params.yaml of an older home lacks


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, its templates not yet filled in."""

    name: str
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def module(self) -> str:
        """Python module that the command runs."""
        return shlex.split(self.command)[2]

    def argv(self, python: str, values: dict[str, str]) -> list[str]:
        """The command as a list, `python` being the interpreter, `${name}` being values[name]."""
        return [python, *shlex.split(fill(self.command, values))[1:]]


def fill(text: str, values: dict[str, str]) -> str:
    """Replace `${name}` by its value. Raises InputError for a name that params.yaml does not have."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InputError(f"dvc.yaml: ${{{match[1]}}} stands in no line of params.yaml; it has {sorted(values)}")
        return values[match[1]]

    return _TEMPLATE.sub(value, text)


def read_params(home: Path) -> dict[str, str]:
    """params.yaml as strings; `previous` is "" where the file has no such line."""
    return {**_DEFAULTS, **{name: str(value) for name, value in _yaml(home / "params.yaml").items()}}


def read_graph(home: Path) -> dict[str, Stage]:
    """Every stage of dvc.yaml in an order in which each comes after what it needs."""
    raw = _yaml(home / "dvc.yaml")["stages"]
    stages = {
        name: Stage(name, " ".join(body["cmd"].split()), tuple(body["deps"]), tuple(_path(o) for o in body["outs"]))
        for name, body in raw.items()
    }
    return {name: stages[name] for name in TopologicalSorter(needs(stages)).static_order()}


def needs(graph: dict[str, Stage]) -> dict[str, set[str]]:
    """Stage → the stages whose artifacts it reads."""
    writer = {out: name for name, stage in graph.items() for out in stage.outs}
    return {name: {writer[dep] for dep in stage.deps if dep in writer} for name, stage in graph.items()}


def upstream(graph: dict[str, Stage], goal: str) -> list[str]:
    """Names of the stages that `goal` needs, itself last, in running order."""
    before, needed, queue = needs(graph), set(), [goal]
    while queue:
        name = queue.pop()
        needed.add(name)
        queue += before[name] - needed
    return [name for name in graph if name in needed]


def graph_version(graph: dict[str, Stage], stages: list[str]) -> str:
    """Hash of all code that these stages can reach."""
    files = sorted({path for name in stages for path in import_closure(graph[name].module)})
    return sha256_json({path: sha256_file(CODE_ROOT / path) for path in files})


def _path(out: str | dict[str, Any]) -> str:
    return out if isinstance(out, str) else next(iter(out))


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: not there; run in a clone of Plumline, or set PLUMLINE_HOME to one") from None
