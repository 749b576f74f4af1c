"""dvc.yaml is the one graph: code deps are import closures, one writer an out, one noun, no orphan section."""

import importlib
import inspect
import os
import re
from pathlib import Path

import grimp
import pytest
import yaml

from flows.graph import fill, read_graph, read_params, upstream
from plumline.errors import InputError
from plumline.stage import ROOT_PACKAGES, Params, import_closure, load_params, read_recipe

ROOT = Path(__file__).resolve().parents[2]
GRAPH = read_graph(ROOT)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SECTIONS_OF_NO_STAGE = {"gate": "monitoring.gates:GateParams", "monitor": "monitoring.health:MonitorParams"}


def _code_deps(stage: str) -> list[str]:
    return sorted(dep for dep in GRAPH[stage].deps if dep.endswith(".py"))


def _params_class(section: str) -> type[Params]:
    if section in SECTIONS_OF_NO_STAGE:
        module, _, name = SECTIONS_OF_NO_STAGE[section].partition(":")
        return getattr(importlib.import_module(module), name)
    run = importlib.import_module(GRAPH[section].module).run
    return inspect.signature(run, eval_str=True).parameters["params"].annotation


def test_code_deps_equal_import_closures():
    if os.environ.get("PLUMLINE_UPDATE"):
        _rewrite_code_deps()
        read_again = read_graph(ROOT)
        GRAPH.update(read_again)
    wrong = [name for name in GRAPH if _code_deps(name) != list(import_closure(GRAPH[name].module))]
    assert not wrong, f"code deps of {wrong} differ from what they import; PLUMLINE_UPDATE=1 pytest {__file__}"


def _rewrite_code_deps() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    for name, stage in GRAPH.items():
        begin = text.index(f"\n  {name}:\n")
        start = text.index("    deps:\n", begin) + len("    deps:\n")
        end = text.index("    params:\n", start)
        deps = [dep for dep in stage.deps if not dep.endswith(".py")] + list(import_closure(stage.module))
        text = text[:start] + "".join(f"      - {dep}\n" for dep in deps) + text[end:]
    (ROOT / "dvc.yaml").write_text(text)


def test_our_closure_is_the_import_graph_of_grimp():
    """Two independent readers of the imports agree (grimp builds import-linter's graph)."""
    graph = grimp.build_graph(*ROOT_PACKAGES, cache_dir=None)
    for stage in GRAPH.values():
        modules = graph.find_upstream_modules(stage.module) | {stage.module}
        files = {m.replace(".", "/") + ".py" for m in modules}
        ours = {f for f in import_closure(stage.module) if not f.startswith("features/store/")}  # Feast's, no package
        assert {f for f in files if (ROOT / f).is_file()} == ours, stage.name


def test_every_out_has_one_writer_and_is_named_after_its_stage():
    outs = [out for stage in GRAPH.values() for out in stage.outs]
    assert len(set(outs)) == len(outs)
    for name, stage in GRAPH.items():
        assert stage.outs == (f"artifacts/{name}",)
        assert stage.module.split(".")[1] == name
        assert f"--out artifacts/{name}" in stage.command


def test_inputs_on_the_command_line_are_the_deps():
    for name, stage in GRAPH.items():
        words = stage.command.split()
        given = {w for w in words if w.startswith(("artifacts/", "data/"))} - set(stage.outs) - {"data/events"}
        assert given == {dep for dep in stage.deps if not dep.endswith(".py")}, name


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
