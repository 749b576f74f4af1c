"""Dry runs of recipes that take longer than a test may: their own sections, from vectors to a model that is decoded.

A setting that a stage refuses after an hour of GPU, a model of a family that does not go through: found here, on a CPU,
with two layers and two steps. Only what needs another machine, or time, is changed; `CHANGES` is the whole of it.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from flows.steps.graph import read_graph, upstream
from flows.steps.recipe import check_recipe
from models.language.model import load_language_model
from models.retrieval.beam_check import check_beams
from models.retrieval.retriever import Request, Retriever
from models.training.packing import LoopParams
from plumline.artifact import read_json
from plumline.schema import PAIRS, conform
from plumline.tables import write_parquet

MADE = ("catalog", "histories")
"""What the small world has; all later stages run."""
SHORT = {"quantizer.steps": 20, "quantizer.warmup_steps": 5, "cpt.steps": 2, "sft.steps": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "cpu_small": SHORT,
    "gpu_135m": SHORT,
    "gpu_llm": {**SHORT, "cpt.loop.fsdp": False, "sft.loop.fsdp": False}
    | {"cpt.loop.accumulation": 2, "sft.loop.accumulation": 2},
}


def dry_run(root: Path, name: str, world: Any, folder: Path, changes: Mapping[str, Any]) -> dict[str, Path]:
    """Every stage up to the model and its index, with a recipe but for some changes (`section.key…` → value)."""
    sections = yaml.safe_load((root / "recipes" / f"{name}.yaml").read_text())
    for place, value in changes.items():
        *path, key = place.split(".")
        at = sections
        for part in path:
            at[part] = dict(at[part])  # it may be another section's, too, by an anchor
            at = at[part]
        at[key] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    graph = read_graph(root)
    params = check_recipe(folder / "recipe.yaml", graph)
    made = {name: folder / name for name in graph}
    for given in MADE:
        shutil.copytree(getattr(world, given), made[given])
    pairs = [{"item_a": a, "item_b": b, "count": 2} for a, b in zip(world.item_ids, world.item_ids[1:], strict=False)]
    write_parquet(made["histories"] / "pairs.parquet", conform(pa.Table.from_pylist(pairs), PAIRS))
    wanted = {*upstream(graph, "sft"), *upstream(graph, "index")} - {*upstream(graph, "histories")}
    for name in [stage for stage in graph if stage in wanted]:
        run = import_module(graph[name].module).run
        known = {**made, "params": params[name], "base": None, "previous": None, "seed": 17, "as_of": world.as_of}
        made[name].mkdir()
        run(**{key: known[key] for key in signature(run).parameters if key != "out"}, out=made[name])
    return made


@pytest.fixture(autouse=True)
def in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUMLINE_THREADS", "1")
    AcceleratorState._reset_state(True)  # a process has one precision for good; a stage is a process of its own
    yield
    AcceleratorState._reset_state(True)


def check_answers(world: Any, made: Mapping[str, Path]) -> None:
    """The model is decoded: a search of all beams finds every live item, with the scores of the model alone."""
    folders = {name: made[name] for name in ("vocabulary", "sids", "index", "catalog")}
    retriever = Retriever.load(**folders, weights=made["sft"] / "weights", device="cpu")
    histories = [world.item_ids, ["item05"], []]  # 24 items and their gaps: longer than the window of the Gemma here
    requests = [Request(history=[(item, n * 86_400_000) for n, item in enumerate(items)]) for items in histories]
    certificate = check_beams(retriever, requests, k=len(world.live), width=100)
    assert certificate.holds
    assert (certificate.missed_items, certificate.missed_mass) == (0, 0)
    for hits in retriever.retrieve(requests, k=len(world.live), width=100):
        assert sorted(hit.item_id for hit in hits) == sorted(world.live)


@pytest.mark.parametrize(
    ("name", "family", "tied"),
    [
        ("gpu_135m", "llama", True),
        ("gpu_llm", "llama", False),
        ("gpu_llm", "qwen3", True),
        ("gpu_llm", "gemma3_text", True),
    ],
)
def test_a_recipe_of_a_pretrained_model(
    root: Path, world: Any, make_foreign: Callable[..., Any], tmp_path: Path, name: str, family: str, tied: bool
) -> None:
    foreign = make_foreign(tmp_path / "foreign", family, tied, layers=2)
    model = {"vocabulary.text_model": str(tmp_path / "foreign"), "cpt.model.pretrained": str(tmp_path / "foreign")}
    made = dry_run(root, name, world, tmp_path, {**CHANGES[name], **model})
    check_answers(world, made)
    before = foreign.state_dict()
    started, trained = (load_language_model(made[stage] / "weights").state_dict() for stage in ("cpt", "sft"))
    assert before.keys() == started.keys() == trained.keys()
    for key, weight in before.items():
        if weight.shape == started[key].shape and "layers" in key and weight.ndim == 2:
            # two steps of the model that was given, not a model of its shape
            assert 0 < float((started[key] - weight).norm() / weight.norm()) < 0.1, key
            assert 0 < float((trained[key] - started[key]).norm() / weight.norm()) < 0.1, key


def test_the_recipe_of_a_workstation(root: Path, world: Any, tmp_path: Path) -> None:
    made = dry_run(root, "cpu_small", world, tmp_path, CHANGES["cpu_small"])
    check_answers(world, made)
    levels = [level["size"] for level in read_json(made["quantizer"] / "report.json")["levels"]]
    assert levels == sorted(set(levels), reverse=True)  # multi-resolution
    metrics = read_json(made["sft"] / "metrics.json")
    assert metrics["anchor_distance"] > 0
    assert np.isfinite(metrics["final_loss"])
    assert torch.isfinite(load_language_model(made["sft"] / "weights").get_input_embeddings().weight).all()


def test_what_a_dry_run_changes_is_what_a_gpu_is_for(root: Path) -> None:
    """The model is named once, the larger one is sharded, and its steps can be shared by the GPUs of a machine."""
    graph = read_graph(root)
    for name in ("gpu_135m", "gpu_llm"):
        params: Any = check_recipe(root / "recipes" / f"{name}.yaml", graph)
        loops: list[LoopParams] = [params["cpt"].loop, params["sft"].loop]
        assert params["vocabulary"].text_model == params["cpt"].model.pretrained
        assert params["cpt"].model.pretrained_layers is None
        assert {loop.precision for loop in loops} == {"bf16"}
        assert all(loop.fsdp == (name == "gpu_llm") for loop in loops)
        assert all(loop.row_tokens >= params["corpus"].max_tokens for loop in loops)
    text = (root / "recipes" / "gpu_llm.yaml").read_text()
    assert text.count("Qwen/") == 1
