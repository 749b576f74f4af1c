"""dvc.yaml is the one graph: code deps cover import closures, one writer an out, one noun, no orphan section."""

import importlib
import inspect
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
import yaml

from flows.steps.graph import fill, read_graph, read_params, upstream
from plumline.errors import InputError
from plumline.stage import ROOT_PACKAGES, Params, import_closure, load_params, read_recipe

ROOT = Path(__file__).resolve().parents[2]
GRAPH = read_graph(ROOT)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SECTIONS_OF_NO_STAGE = {"gate": "monitoring.gates:GateParams", "monitor": "monitoring.health:MonitorParams"}


def _is_data(dep: str) -> bool:
    return dep.startswith(("artifacts/", "data/"))


def _folder(path: str) -> str:
    """The dep of dvc.yaml that covers a source file: its package, in models/ its room."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "models" else parts[0]


def _params_class(section: str) -> type[Params]:
    if section in SECTIONS_OF_NO_STAGE:
        module, _, name = SECTIONS_OF_NO_STAGE[section].partition(":")
        return getattr(importlib.import_module(module), name)
    run = importlib.import_module(GRAPH[section].module).run
    return inspect.signature(run, eval_str=True).parameters["params"].annotation


def test_code_deps_are_the_folders_of_the_import_closures():
    """None is missing, so that `dvc repro` sees every change; none is too many, so that the table does not lie."""
    for name, stage in GRAPH.items():
        wanted = {_folder(path) for path in import_closure(stage.module)}
        assert {dep for dep in stage.deps if not _is_data(dep)} == wanted, f"{name}: its code is in {sorted(wanted)}"


def test_dvc_yaml_is_a_table_of_contents():
    """Short enough to read, and a sentence above each stage."""
    lines = (ROOT / "dvc.yaml").read_text().splitlines()
    assert len(lines) < 260
    for name in GRAPH:
        above = lines[lines.index(f"  {name}:") - 1]
        assert re.fullmatch(r"  # [A-Z].{30,}\.", above), f"{name} has no sentence above it"


def test_our_closure_is_the_import_graph_of_grimp():
    """Two independent readers of the imports agree (grimp builds import-linter's graph)."""
    graph = grimp.build_graph(*ROOT_PACKAGES, cache_dir=None)
    for stage in GRAPH.values():
        modules = graph.find_upstream_modules(stage.module) | {stage.module}
        files = {m.replace(".", "/") + ".py" for m in modules}
        ours = {f for f in import_closure(stage.module) if not f.startswith("features/store/")}  # Feast's, no package
        assert {f for f in files if (ROOT / f).is_file()} == ours, stage.name


def test_no_circle_between_modules():
    """Lazy imports and those for types alone count too: a circle is a wall in the wrong place."""
    graph = grimp.build_graph(*ROOT_PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # a CycleError names the circle


def test_every_out_has_one_writer_and_is_named_after_its_stage():
    outs = [out for stage in GRAPH.values() for out in stage.outs]
    assert len(set(outs)) == len(outs)
    for name, stage in GRAPH.items():
        assert stage.outs == (f"artifacts/{name}",)
        assert stage.module.split(".")[-1] == name
        assert f"--out artifacts/{name}" in stage.command


def test_inputs_on_the_command_line_are_the_deps():
    for name, stage in GRAPH.items():
        words = stage.command.split()
        given = {w for w in words if w.startswith(("artifacts/", "data/"))} - set(stage.outs) - {"data/events"}
        assert given == {dep for dep in stage.deps if _is_data(dep)}, name


def test_command_lines_fit_the_signatures():
    for name, stage in GRAPH.items():
        run = importlib.import_module(stage.module).run
        wanted = {p.replace("_", "-") for p in inspect.signature(run).parameters} | {"params", "out"}
        assert set(re.findall(r"--([a-z-]+)", stage.command)) == wanted, name


def test_the_release_needs_every_stage_but_the_table():
    assert set(GRAPH) - set(upstream(GRAPH, "release")) == {"table"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_section_of_a_recipe_has_an_owner_and_loads(recipe):
    sections = set(read_recipe(recipe))
    assert sections == set(GRAPH) | set(SECTIONS_OF_NO_STAGE), (
        "a section without an owner, or an owner without a section"
    )
    for section in sections:
        load_params(recipe, section, _params_class(section))


def test_every_parameter_says_what_it_does():
    for section in [*GRAPH, *SECTIONS_OF_NO_STAGE]:
        for field, info in _params_class(section).model_fields.items():
            assert info.description, f"{section}.{field} has no docstring"


def test_stage_params_in_dvc_yaml_name_their_own_section():
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, body in raw.items():
        assert body["params"][0] == {"${recipe}": [name]}
        used = set(re.findall(r"\$\{(\w+)\}", body["cmd"])) - {"recipe"}
        listed = set(body["params"][1]["params.yaml"]) if len(body["params"]) > 1 else set()
        assert used == listed, name


def test_a_params_file_from_before_previous_follows_nobody(tmp_path):
    (tmp_path / "params.yaml").write_text("recipe: recipes/cpu_tiny.yaml\nbase: x\n")
    values = read_params(tmp_path)
    assert (values["previous"], values["base"]) == ("", "x")
    assert fill("--previous=${previous}", values) == "--previous="


def test_templates_name_what_is_missing():
    assert fill("a ${x} b", {"x": "1"}) == "a 1 b"
    with pytest.raises(InputError, match="base"):
        fill("--base=${base}", read_params(ROOT) and {})
