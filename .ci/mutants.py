"""Which changes of a module do its own tests notice? Mutants by mutmut's operators, one forked pytest a mutant.

    make mutants MODULES="models/retrieval/trie.py" N=60        (N=0: all mutants)
    python .ci/mutants.py --sample 60 --seed 0 --out build/mutants.json models/retrieval/trie.py
    python .ci/mutants.py --again build/mutants.json            (after tests were added: only what no test noticed)

Only mutmut's operators are used, not its runner: that one leaves out every decorated function (`beam_search`, `parse`)
and whatever stands outside functions, which is where the limits and thresholds are. Left out here: annotations,
decorators, arguments of `len` and `isinstance`, plain texts within a `raise` (wording), what runs for type checkers or
as a script only.

A module is tested by tests/<its path>/test_<its name>.py alone. All happens in a copy of the working tree in a
temporary folder. What the tests import from elsewhere (torch takes longer than most tests) is imported once; every
mutant then runs in a fork, which imports the copy's own code anew. A mutant is noticed if pytest fails in any way, or
takes longer than three times the tests of the unchanged module and 20 s.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    *(f"models/retrieval/{name}.py" for name in ("beam", "trie", "csr", "index", "rules", "decoder")),
    *("models/training/packing.py", "models/training/checkpoint.py", "models/evaluation/metrics.py"),
    *(f"monitoring/{name}.py" for name in ("gates", "method_rules", "methods", "verdict")),
    *("features/events.py", "features/intake/tables.py", "plumline/artifact.py", "serving/pointers.py"),
)
_MEMORY_BYTES = 12 << 30  # a mutant that asks for all the memory there is shall fail, not the machine
_CALLS_LEFT_ALONE = {"len", "isinstance"}


@dataclass(frozen=True)
class Mutant:
    """A changed module. before, after: the lines that differ; line: the first of them."""

    line: int
    before: str
    after: str
    source: str


class _Sites(cst.CSTVisitor):
    """Every node with what mutmut makes of it."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode]] = []
        self._num_raises = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom) or _is_guard(node):
            return False
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in _CALLS_LEFT_ALONE:
            return False
        self._num_raises += isinstance(node, cst.Raise)
        if not (self._num_raises and isinstance(node, cst.SimpleString)):
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    self.found += [(node, mutated) for mutated in operator(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._num_raises -= isinstance(original_node, cst.Raise)


def _is_guard(node: cst.CSTNode) -> bool:
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":`."""
    if not isinstance(node, cst.If):
        return False
    test = node.test.left if isinstance(node.test, cst.Comparison) else node.test
    return isinstance(test, cst.Name) and test.value in ("TYPE_CHECKING", "__name__")


def mutants_of(source: str, seed: str) -> tuple[int, Iterator[Mutant]]:
    """Their number, and the mutants in an order drawn by the seed; those that are no Python are left out."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    sites = _Sites()
    wrapper.visit(sites)
    random.Random(seed).shuffle(sites.found)
    return len(sites.found), _made(wrapper.module, source, sites.found)


def _made(module: cst.Module, source: str, sites: list[tuple[cst.CSTNode, cst.CSTNode]]) -> Iterator[Mutant]:
    seen = {source}
    for node, mutated in sites:
        changed = module.deep_replace(node, mutated)
        assert isinstance(changed, cst.Module)
        code = changed.code
        with contextlib.suppress(SyntaxError, ValueError):
            compile(code, "mutant", "exec", dont_inherit=True)
            if code not in seen:
                yield _compared(source, code)
            seen.add(code)


def _compared(source: str, code: str) -> Mutant:
    old, new = source.splitlines(), code.splitlines()
    changes = [op for op in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if op[0] != "equal"]
    start, end = changes[0][1], changes[-1][2]
    before, after = old[start:end], new[changes[0][3] : changes[-1][4]]
    return Mutant(start + 1, "\n".join(before), "\n".join(after), code)


def tests_of(module: str) -> list[str]:
    """The module's own test files: test_<name>.py and test_<name>_<topic>.py, if no module has that longer name."""
    path = Path(module)
    folder = ROOT / "tests" / path.parent
    own = [p for p in sorted(folder.glob(f"test_{path.stem}_*.py")) if not _is_another_s(path, p)]
    return [str(p.relative_to(ROOT)) for p in [folder / f"test_{path.name}", *own] if p.exists()]


def _is_another_s(module: Path, tests: Path) -> bool:
    """Whether these are tests of another module, as test_beam_check.py is beside beam.py."""
    words = tests.stem.removeprefix("test_").split("_")
    names = ["_".join(words[:number]) for number in range(1, len(words) + 1)]
    return any(
        name != module.stem and len(name) > len(module.stem) and (ROOT / module.parent / f"{name}.py").exists()
        for name in names
    )


def copy_tree(folder: Path) -> None:
    """What git knows or would take, as it stands."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def forked(task: Callable[[], int], log: Path, timeout: float) -> int | None:
    """Exit code of the task in a process of its own, None if it was stopped. What it prints goes to the log."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = task()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + timeout
    done = 0
    while not done and time.monotonic() < until:
        time.sleep(0.02)
        done, status = os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # also what the tests may have started and left
    if not done:
        os.waitpid(pid, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def run_tests(folder: Path, module: str, imported: Path | None = None) -> int:
    """pytest in the copy. imported: where to write what else was imported, and the environment it was imported in."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    sys.dont_write_bytecode = True  # a mutant of the same size and second would be taken for the one before
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    # A failure is enough: no smaller example of it, no comparison in words.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, phases=phases)
    options = ["-x", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", "--tb=line"]
    code = int(pytest.main([*options, *tests_of(module)]))
    if imported is not None:
        files = {name: getattr(loaded, "__file__", None) for name, loaded in list(sys.modules.items())}
        assert files.get(module.removesuffix(".py").replace("/", ".")) == str(folder / module), (
            "not the copy was tested"
        )
        names = [name for name, file in files.items() if file and not Path(file).is_relative_to(folder)]
        imported.write_text(json.dumps({"names": names, "environment": dict(os.environ)}))
    return code


def preload(imported: Path) -> None:
    """Import what the tests imported from elsewhere; what cannot be had alone is left to the tests."""
    about = json.loads(imported.read_text())
    os.environ |= {name: value for name, value in about["environment"].items() if name not in os.environ}
    for name in about["names"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def measure(
    module: str, sample: int, seed: int, folder: Path, survivors_before: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Run the tests of one module on its mutants. survivors_before: what they noticed without these they still do."""
    tests, log, start = tests_of(module), folder / "log", time.monotonic()
    copy = folder / "copy"
    if not tests:
        raise SystemExit(f"{module}: no test file of its own")
    if forked(lambda: run_tests(copy, module, folder / "imported.json"), log, 3600) != 0:
        raise SystemExit(f"{module}: its tests fail as it stands\n{log.read_text()[-3000:]}")
    preload(folder / "imported.json")
    begun = time.monotonic()
    if forked(lambda: run_tests(copy, module), log, 3600) != 0:
        raise SystemExit(f"{module}: its tests fail in a fork\n{log.read_text()[-3000:]}")
    seconds_whole = time.monotonic() - begun
    source = (ROOT / module).read_text()
    num_all, drawn = mutants_of(source, f"{seed}:{module}")
    num_run, num_tried, survivors = 0, 0, []
    for mutant in drawn:
        about = {"line": mutant.line, "before": mutant.before, "after": mutant.after}
        num_run += 1
        if survivors_before is None or about in survivors_before:
            num_tried += 1
            (copy / module).write_text(mutant.source)
            if forked(lambda: run_tests(copy, module), log, 3 * seconds_whole + 20) == 0:
                survivors.append(about)
        if sys.stderr.isatty():
            print(f"\r{module}: {num_run} run, {len(survivors)} not noticed", end="", file=sys.stderr, flush=True)
        if num_run == sample:
            break
    (copy / module).write_text(source)
    if survivors_before is not None and num_tried != len(survivors_before):
        raise SystemExit(f"{module}: changed since the results of --again; run it anew")
    return {
        "tests": tests,
        "num_mutants": num_all,
        "num_run": num_run,
        "num_noticed": num_run - len(survivors),
        "share": round(1 - len(survivors) / num_run, 3) if num_run else None,
        "seconds": round(time.monotonic() - start, 1),
        "survivors": sorted(survivors, key=lambda one: one["line"]),
    }


def main() -> None:
    """Measure, print, save after every module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(MODULES), help="default: all that docs/mutants.md lists")
    parser.add_argument("--sample", type=int, default=60, help="mutants a module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", type=Path, help="results whose survivors alone are run, with their sample and seed")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.json")
    args = parser.parse_args()
    out = args.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not live through a fork
    before = json.loads(args.again.read_text()) if args.again else {"modules": {}}
    sample, seed = before.get("sample", args.sample), before.get("seed", args.seed)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        (Path(temporary) / "copy").mkdir()
        copy_tree(Path(temporary) / "copy")
        for module in before["modules"] or args.modules:
            survivors = before["modules"][module]["survivors"] if args.again else None
            result = results[module] = measure(module, sample, seed, Path(temporary), survivors)
            out.write_text(json.dumps({"sample": sample, "seed": seed, "modules": results}, indent=1) + "\n")
            counts = f"{result['num_noticed']} of {result['num_run']} noticed ({result['share']:.0%})"
            print(f"\n{module}  {counts}, {result['num_mutants']} mutants, {result['seconds']:.0f} s", flush=True)
            for one in result["survivors"]:
                print(f"  {module}:{one['line']}")
                print("\n".join(f"    - {line}" for line in one["before"].splitlines()))
                print("\n".join(f"    + {line}" for line in one["after"].splitlines()))
    print(f"\n{'module':<34} mutants  run  noticed  share")
    for module, one in results.items():
        print(f"{module:<34} {one['num_mutants']:>7} {one['num_run']:>4} {one['num_noticed']:>8}  {one['share']:>5.0%}")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
