"""A recipe is read whole before anything is made: what a stage would refuse after minutes is said at once."""

from importlib import import_module
from pathlib import Path

from flows.steps.graph import Stage
from models.evaluation.rivals import RivalsParams
from models.ranking.ranker import RankerParams
from monitoring.gates import GateParams
from monitoring.health import MonitorParams
from plumline.errors import InputError
from plumline.stage import Params, load_params, params_kind, read_recipe

JUDGES: dict[str, type[Params]] = {"gate": GateParams, "monitor": MonitorParams}
"""Sections that belong to no stage."""
SAMPLES = ("max_queries", "leave_one_out_queries")
"""Held-out requests that two sections speak of."""


def check_recipe(path: Path, graph: dict[str, Stage]) -> dict[str, Params]:
    """Every section of a recipe, typed, for all stages of the graph and for the judges.

    Raises InputError naming the file, the key, what is allowed and what to do.
    """
    kinds = {name: params_kind(import_module(stage.module).run) for name, stage in graph.items()} | JUDGES
    if unknown := sorted(read_recipe(path).keys() - kinds.keys()):
        raise InputError(f"{path}: no stage reads the section {unknown[0]!r}; sections are {sorted(kinds)}")
    params = {name: load_params(path, name, kind) for name, kind in kinds.items()}
    rivals, ranker = params["rivals"], params["ranker"]
    if isinstance(rivals, RivalsParams) and isinstance(ranker, RankerParams):
        for name in SAMPLES:
            asked, compared = getattr(ranker, name), getattr(rivals, name)
            if compared < asked:
                raise InputError(
                    f"{path}: rivals.{name} {compared} is less than ranker.{name} {asked}, so some lists would have "
                    f"nothing to be compared with; set rivals.{name} to {asked} or more"
                )
    return params
