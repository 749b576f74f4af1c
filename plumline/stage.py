"""What every stage shares: typed parameters, and the command line made from a function's signature.

A stage is a module with `run(params, *, inputs…, out: Path)` that writes files into `out` and nothing else.
`main(run, section=…)` turns it into a command line,
`python -m models.training.sft --params recipes/cpu_tiny.yaml --corpus artifacts/corpus … --out artifacts/sft`: it
verifies every input artifact, skips work whose key is already finished, hands `run` a scratch folder, seals and
publishes it. Started by torchrun in several processes, the first one alone publishes; the others' scratch is thrown
away. What a keyword-only argument is follows from its annotation:

    out: Path            the artifact folder to publish
    name: Path           an input (artifact, folder or file) that must exist
    name: Path | None    an input that may be left out (`--name=`)
    name: date, int, str a plain argument, part of the key
"""

import argparse
import ast
import ctypes
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from plumline import artifact
from plumline.crash import crash_point
from plumline.errors import ArtifactError, InputError, PlumlineError
from plumline.settings import switch_telemetry_off, this_process

ROOT_PACKAGES = ("plumline", "features", "models", "serving", "monitoring", "flows")
CODE_ROOT = Path(__file__).resolve().parent.parent


P = TypeVar("P", bound="Params")


class Params(BaseModel):
    """Base of every stage's parameters: frozen, unknown keys refused, no default means required."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """The sections of a recipe file. Raises InputError naming the file."""
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise InputError(f"{path}: no such recipe; there are {known}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(sections, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections, one a stage")
    return sections


def load_params(recipe: Path, section: str, kind: type[P]) -> P:
    """One section of a recipe as `kind`. Raises InputError naming the file, the key, and what is allowed."""
    sections = read_recipe(recipe)
    if section not in sections:
        raise InputError(f"{recipe}: no section {section!r}; there are {sorted(sections)}")
    try:
        return kind.model_validate(sections[section] or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([section, *map(str, first["loc"])])
        allowed = sorted(kind.model_fields)
        raise InputError(
            f"{recipe}: {where}: {first['msg']} (got {first.get('input')!r}); {section} takes {allowed}"
        ) from None


def params_kind(run: Callable[..., None]) -> type[Params]:
    """The class of a stage's parameters."""
    kind: type[Params] = inspect.signature(run, eval_str=True).parameters["params"].annotation
    return kind


@cache
def import_closure(module: str) -> tuple[str, ...]:
    """Source files (relative to the code root, sorted) of our own that a module can reach by imports, lazy ones too.

    Read from the syntax trees, nothing is imported. A stage's key hashes them, and dvc.yaml names their folders.
    """
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        path = _module_file(name)
        if path is None or str(path) in seen:
            continue
        seen.add(str(path))
        queue += _imported(path)
    return tuple(sorted(seen))


@cache
def _imported(path: Path) -> tuple[str, ...]:
    """Names that may be modules and that a source file imports anywhere."""
    names: list[str] = []
    for node in _statements(ast.parse((CODE_ROOT / path).read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _statements(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Every statement, those within others too. Imports are statements, and expressions are most of a tree."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, inner, ()))


def _module_file(name: str) -> Path | None:
    if name.split(".")[0] not in ROOT_PACKAGES:
        return None
    path = Path(*name.split("."))
    return path.with_suffix(".py") if (CODE_ROOT / path.with_suffix(".py")).is_file() else None


def code_version(module: str) -> str:
    """Hash of the sources a module can reach."""
    return artifact.sha256_json({p: artifact.sha256_file(CODE_ROOT / p) for p in import_closure(module)})


def sources_version() -> str:
    """Hash of all sources of ours: equal, and no stage's code has changed; other, and `code_version` knows whose."""
    files = [path for package in ROOT_PACKAGES for path in sorted((CODE_ROOT / package).rglob("*.py"))]
    return artifact.sha256_json({path.relative_to(CODE_ROOT).as_posix(): artifact.sha256_file(path) for path in files})


@cache
def git_sha() -> str:
    """Commit of the code, with "-dirty" if the work tree differs from it; "unknown" outside git."""
    command = ["git", "-C", str(CODE_ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def say(text: str) -> None:
    """Talk to the person: stderr, one line, in one piece, whatever other processes write there at the same time."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(
    run: Callable[..., None], *, section: str, unfinished: Path | None = None, argv: Sequence[str] | None = None
) -> None:
    """Run one stage from the command line. Exits 0 done (or already done), 1 failed, 2 refused.

    unfinished: folder in which the stage keeps its unfinished work; it goes when the artifact stands.
    """
    switch_telemetry_off()
    if this_process().count > 1:
        die_with_parent()
    try:
        _run_stage(run, section, argv)
        if unfinished is not None and this_process().index == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
    except PlumlineError as error:
        say(f"{section}: {error}")
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _run_stage(run: Callable[..., None], section: str, argv: Sequence[str] | None) -> None:
    signature = inspect.signature(run, eval_str=True)
    arguments = {name: p.annotation for name, p in signature.parameters.items() if name not in ("params", "out")}
    parser = argparse.ArgumentParser(
        prog=f"python -m {_module_name(run)}", description=inspect.getdoc(sys.modules[run.__module__])
    )
    parser.add_argument("--params", type=Path, required=True, help=f"recipe; its section {section!r} is read")
    parser.add_argument("--out", type=Path, required=True, help="artifact folder to publish")
    for name, kind in arguments.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=_parser(kind), required=True)
    values = vars(parser.parse_args(argv))

    params = load_params(values.pop("params"), section, params_kind(run))
    out: Path = values.pop("out")
    inputs = {name: value for name, value in values.items() if _is_path(arguments[name])}
    for name, path in inputs.items():
        if path is not None and not path.exists():
            raise ArtifactError(f"--{name.replace('_', '-')} {path}: nothing there; run the stage that writes it")
        if path is not None and (path / artifact.MANIFEST).is_file():
            artifact.verify(path)
    about = describe(run, section, params, inputs, {n: v for n, v in values.items() if n not in inputs})
    if is_done(out, about["key"]):
        say(f"{section}: already done ({out})")
        return
    if this_process().index > 0:  # works along, and what it would publish is the first one's to publish
        with tempfile.TemporaryDirectory() as scratch:
            run(params, **values, out=Path(scratch))
        return
    crash_point(section, "start")
    began = time.perf_counter()
    with artifact.writing(out, stage=section, git_sha=git_sha(), **about) as scratch:
        run(params, **values, out=scratch)
    say(f"{section}: done in {time.perf_counter() - began:.1f} s ({out})")


def die_with_parent() -> None:
    """From now on, be killed when the process that started this one ends, so that no orphan goes on writing (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def describe(
    run: Callable[..., None], section: str, params: Params, inputs: dict[str, Path | None], plain: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a manifest that are known before the work: key, parents, params, arguments, code."""
    about: dict[str, Any] = {
        "parents": {name: artifact.fingerprint(p) if p is not None else "none" for name, p in inputs.items()},
        "params": params.model_dump(mode="json"),
        "arguments": {name: v.isoformat() if isinstance(v, date) else v for name, v in plain.items()},
        "code": code_version(_module_name(run)),
    }
    return {"key": artifact.sha256_json({"stage": section, **about}), **about}


def is_done(out: Path, key: str) -> bool:
    """Whether an intact artifact with this key lies at `out`."""
    try:
        return artifact.read_manifest(out).key == key and bool(artifact.verify(out))
    except ArtifactError:
        return False


def _module_name(run: Callable[..., None]) -> str:
    if run.__module__ != "__main__":
        return run.__module__
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "stages are run with python -m"
    return spec.name


def _is_path(kind: Any) -> bool:
    return kind is Path or Path in typing.get_args(kind)


def _parser(kind: Any) -> Callable[[str], Any]:
    optional = isinstance(kind, UnionType)
    inner = next(k for k in typing.get_args(kind) if k is not type(None)) if optional else kind

    def parse(text: str) -> Any:
        if not text and optional:
            return None
        return date.fromisoformat(text) if inner is date else inner(text)

    parse.__name__ = inner.__name__
    return parse


def hash_seed(*parts: Any) -> int:
    """A 63-bit seed from any printable parts, equal on every machine (Python's own hash() is salted)."""
    return int(artifact.sha256_json([str(part) for part in parts])[:16], 16) >> 1


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
