"""What would be served over some weights: a ranker learned over them, and its lists of the days after.

As the stage `ranker` does it for a bootstrap: whoever is asked was not learned from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring.days import Day, making
from models.evaluation.queries import Ruler
from models.evaluation.ranked_lists import Ranked
from models.evaluation.scores import ScoresParams
from models.memory import memory
from models.ranking import ranker
from models.retrieval.held_out import NEXT_DAY, PROTOCOLS, read_lists, read_sample
from plumline.stage import hash_seed, load_params


def serve(day: Day, recipe: Path, weights: Mapping[str, Path], seed: int, folder: Path) -> dict[str, Any]:
    """Arm → protocol → recall@10 and ndcg@10 of what is served and of the model's beams, with standard errors; what the
    model adds to what is served (`model_gain`); and served less that of the first arm (`difference`), paired by user.

    weights: arm → folder of weights of that day. folder: of what is made.
    """
    params = load_params(recipe, "ranker", ranker.RankerParams).model_copy(update={"leave_one_out_queries": 0})
    inputs: dict[str, Any] = day.inputs("catalog", "histories", "sids", "vocabulary", "index")
    with making(folder / "memory") as scratch:
        if scratch is not None:
            memory.run(
                load_params(recipe, "memory", memory.MemoryParams), out=scratch, **day.inputs("catalog", "histories")
            )
    lists = {}
    for name, one in weights.items():
        with making(folder / name) as scratch:
            if scratch is not None:
                told: dict[str, Any] = {"base": None, "previous": None, "seed": seed}
                ranker.run(params, sft=one.parent, memory=folder / "memory", out=scratch, **told, **inputs)
        lists[name] = read_lists(folder / name)
    queries = read_sample(day.folder / "histories", params.max_queries, seed)
    samples = load_params(recipe, "scores", ScoresParams).bootstrap_samples
    first = next(iter(weights))
    found: dict[str, Any] = {}
    for name, of_arm in lists.items():
        # Ranked compares what is served with every other list, so the first arm's is made one of those.
        theirs = {
            (NEXT_DAY, protocol, f"of {first}"): lists[first][NEXT_DAY, protocol, "served"] for protocol in PROTOCOLS
        }
        ranked = Ranked.of(NEXT_DAY, queries, of_arm | theirs)
        ruler = Ruler(hash_seed(seed, "bootstrap"), samples)
        measured, minus = ranked.measure(ruler), ranked.served_minus(ruler)
        found[name] = {
            protocol: {
                "served": measured["served"][protocol],
                "model": measured["model"][protocol],
                "model_gain": minus["without_model"][protocol],
                "difference": minus[f"of {first}"][protocol],
            }
            for protocol in PROTOCOLS
        }
    return found
