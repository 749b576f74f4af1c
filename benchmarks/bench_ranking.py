"""Ranking while a request waits: 300 candidates on one core beside LightGBM, and a whole request beside its beams.

    python benchmarks/bench_ranking.py [--home DIR …] [--cache DIR] [--quick] [--json FILE]

Two targets: 300 candidates ranked in at most 2 ms, and a whole request (beams, ranker, reasons) in at most 1.3 times
its beams alone (`retrieval_only`).

    gather         what was counted for one request, beside its beams, at the recipe's size
    rank           features, scores, the choice of the best ten and their reasons: what the first target is about
    features       each part of it alone,
    scores         the trees as tables (models/ranking/trees.py), beside
    lightgbm       Booster.predict on the same rows,
    contributions  of the ten best, beside
    pred_contrib   LightGBM's, of the same ten,
    reasons        shares and words of the ten best, contributions within

Scores and contributions of both sides are compared in every request. The 300 candidates are the best placed of those
that the sources name when each is asked for more than the recipe does, until 300 have come together; a request of which
never so many come together is left out. The second target is measured on requests as they come, with as many
candidates as the recipe asks for, the one after the other way of asking, every other round the other way round; passes
of the language model are counted.

Requests are held-out user-days of a home. --home: folders whose artifacts/ (or that themselves) hold catalog,
histories, sids, vocabulary, sft, index, memory and a ranker with trees. Without it a world is made
(features/synthetic.py, 4,500 items, 2,000 users, a fine-tuning of few steps: what the model knows does not change what
a pass takes); --cache keeps it. Process time on one thread; medians over requests and rounds, and beside them
`quickest`, the median over requests of each one's quickest round, which neighbours on the machine disturb least.
--quick: a smaller world and fewer rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.home import QUICK_STEPS, Home  # noqa: E402
from benchmarks.measuring.report import deliver  # noqa: E402
from benchmarks.world import EVAL_DAYS, Shape  # noqa: E402
from features.catalog import Catalog  # noqa: E402
from models.language.words import read_profiles  # noqa: E402
from models.ranking.candidates import SOURCES, Candidates, Counted, Named, Visit, gather  # noqa: E402
from models.ranking.features import FEATURES, features  # noqa: E402
from models.ranking.frozen_ranker import Ranker  # noqa: E402
from models.ranking.ranked import Found, RankedRetriever  # noqa: E402
from models.ranking.why import Teller  # noqa: E402
from models.retrieval.held_out import K, read_sample  # noqa: E402
from models.retrieval.retriever import Request  # noqa: E402
from plumline.artifact import read_json  # noqa: E402
from plumline.errors import InputError  # noqa: E402
from plumline.stage import say  # noqa: E402
from plumline.tables import column  # noqa: E402
from serving.recommender import Recommender  # noqa: E402
from serving.release import Release  # noqa: E402

SEED = 17
CANDIDATES, REQUESTS, ROUNDS = 300, 60, 9
RANKING_MS, OVER_BEAMS = 2.0, 1.3  # the targets
RECIPE = ROOT / "recipes" / "cpu_tiny.yaml"
WORLD, QUICK_WORLD = Shape(users=2000, items=4500, new_items=0.3), Shape(users=600, items=3000, new_items=0.3)
CHANGES: dict[str, dict[str, Any]] = {
    "events": {"horizon_days": EVAL_DAYS},
    "histories": {"eval_days": EVAL_DAYS},
    "ranker": {"max_queries": 500, "leave_one_out_queries": 0},
    **QUICK_STEPS,
    "quantizer": {},  # the recipe's: of few steps hardly half of the codes are in use, which the stage refuses
}
_STEP = 20  # items by which each source is asked for more
_MOST = 1000
_DIFFERENCE = 1e-9  # of scores and contributions, at most
UNITS = {
    "ms": "milliseconds of process time, one thread: median and 9th decile over requests and rounds; quickest: median "
    "over requests of the quickest round",
    "lightgbm_over_ours": "median of LightGBM's / median of ours",
    "largest_difference": "between LightGBM's figures and ours",
    "whole_over_beams": "median of whole requests / median of their beams alone; pairs: median over the pairs of turns",
    "forward_passes": "of the language model, a request",
}


def make_world(folder: Path, shape: Shape) -> None:
    """A home with a ranker in it; stages that are finished there are found finished."""
    world = shape.make(SEED)
    home = Home.make(
        folder, world.items, world.events, world.users, recipe=RECIPE, changes=CHANGES, as_of=shape.as_of, seed=SEED
    )
    home.run("ranker")


def load(folder: Path) -> Recommender:
    """What would serve, of the artifacts of a home."""
    parts = {name: folder / name for name in ("catalog", "sids", "vocabulary", "index")}
    ranker = Ranker.load(folder / "ranker")
    if ranker.trees is None:
        raise InputError(f"{folder / 'ranker'}: places are fused there; measured are trees, of a home with more labels")
    parts["weights"] = folder / "sft" / "weights"
    ranked = RankedRetriever.load(parts, folder / "memory", ranker, device="cpu")
    ranked.retriever.epoch.base.tags.encode()
    items = Catalog.load(folder / "catalog").items
    titles = dict(zip(column(items, "item_id"), column(items, "title"), strict=True))
    as_of = date.fromisoformat(read_json(folder / "histories" / "stats.json")["as_of"])
    return Recommender(
        release=Release(folder, "benchmark", as_of, {}, {}),
        retriever=ranked.retriever,
        titles={item: titles[item] for item in ranked.retriever.epoch.item_ids()},
        ranked=ranked,
    )


def read_requests(folder: Path, number: int) -> list[Request]:
    """Held-out user-days of the artifacts of a home."""
    profiles = read_profiles(Catalog.load(folder / "catalog"))
    return [query.request(profiles.get(query.user_id, {})) for query in read_sample(folder / "histories", number, SEED)]


@dataclass(frozen=True, eq=False)
class Case:
    """One request to be ranked. beams: named as the ranker takes them. table: features of `found`'s candidates. best:
    rows of the ten best."""

    request: Request
    found: Found
    beams: Mapping[str, Named]
    table: np.ndarray
    best: np.ndarray

    @staticmethod
    def of(lists: RankedRetriever, request: Request, size: int) -> "Case | None":
        """None where not so many candidates come together."""
        [[found]] = lists.find([[request]], to_tell=True)
        counted = found.counted
        assert counted is not None
        allows = lists.shelf.mask(lists.retriever.allowed(request))
        beams = {name: _named(found.candidates, name) for name in ("beam", "fresh_beam")}
        for asked in range(lists.ranker.candidates.size, _MOST, _STEP):
            candidates = gather(lists.shelf, found.visit, counted, allows, beams, lists.ranker.candidates, asked)
            if len(candidates) >= size:
                break
        else:
            return None
        kept = np.sort(np.argsort(np.nanmin(candidates.places, axis=1), kind="stable")[:size])
        candidates = Candidates(candidates.items[kept], candidates.scores[kept], candidates.places[kept])
        found = replace(found, candidates=candidates)
        table = features(lists.shelf, found.visit, candidates, found.unseen_only)
        best = np.argsort(-lists.ranker.scores(candidates, table), kind="stable")[:K]
        return Case(request, found, beams, table, best)


def _named(candidates: Candidates, source: str) -> Named:
    """What a source named, best first."""
    at = SOURCES.index(source)
    rows = np.argsort(candidates.places[:, at])[: np.count_nonzero(~np.isnan(candidates.places[:, at]))]
    return candidates.items[rows], candidates.scores[rows, at]


def turns(works: Mapping[str, Callable[[int], Any]], number: int, rounds: int) -> dict[str, np.ndarray]:
    """(rounds, number) seconds of process time of each work on each of so many cases; in every round all take turns,
    in every other one the other way round. One round before does not count."""
    names = list(works)
    seconds = {name: np.zeros((rounds + 1, number)) for name in names}
    for turn in range(rounds + 1):
        for case in range(number):
            for name in names[:: 1 if turn % 2 else -1]:
                began = time.process_time()
                works[name](case)
                seconds[name][turn, case] = time.process_time() - began
    return {name: found[1:] for name, found in seconds.items()}


def in_ms(seconds: np.ndarray) -> dict[str, float]:
    """Median, 9th decile, and the median over cases of the quickest round. seconds: (rounds, cases)."""
    found = {
        "median": np.median(seconds),
        "9th_decile": np.quantile(seconds, 0.9),
        "quickest": np.median(seconds.min(axis=0)),
    }
    return {name: round(float(value) * 1e3, 4) for name, value in found.items()}


def measure_ranking(
    lists: RankedRetriever, teller: Teller, booster: lightgbm.Booster, cases: Sequence[Case], rounds: int
) -> dict[str, Any]:
    """The first target. Raises InputError if our trees say something else than LightGBM's."""
    ranker, shelf, params = lists.ranker, lists.shelf, lists.ranker.candidates
    trees = ranker.trees
    assert trees is not None
    columns = [FEATURES.index(name) for name in booster.feature_name()]
    asked = [np.ascontiguousarray(case.table[:, columns]) for case in cases]
    ten = [rows[case.best] for case, rows in zip(cases, asked, strict=True)]
    masks = [shelf.mask(lists.retriever.allowed(case.request)) for case in cases]
    codes_of = lists.retriever.codes_of
    judged = [ranker.judge(case.found.candidates, case.table) for case in cases]
    answers = [trees.ask(case.table) for case in cases]

    def tell(number: int) -> Any:
        case = cases[number]
        found, counted, items = case.found, case.found.counted, case.found.candidates.items[case.best]
        assert counted is not None
        sids = [codes_of[shelf.item_id(item)] for item in items.tolist()]
        return teller.reasons(shelf, found.visit, counted, items, judged[number].shares(case.best), sids)

    def gather_one(number: int) -> Any:
        case = cases[number]
        visit = Visit.of(shelf, case.request.history, case.found.visit.now, case.request.context_item)
        return gather(shelf, visit, Counted.of(shelf, visit, params), masks[number], case.beams, params)

    def features_of(number: int) -> Any:
        found = cases[number].found
        return features(shelf, found.visit, found.candidates, found.unseen_only)

    works: dict[str, Callable[[int], Any]] = {
        "gather": gather_one,
        "rank": lambda number: lists.rank(cases[number].found, K, None, teller),
        "features": features_of,
        "scores": lambda number: trees.ask(cases[number].table).scores(),
        "lightgbm": lambda number: booster.predict(asked[number], num_threads=1),
        "contributions": lambda number: answers[number].contributions(cases[number].best),
        "pred_contrib": lambda number: booster.predict(ten[number], pred_contrib=True, num_threads=1),
        "reasons": tell,
    }
    differences = {"scores": 0.0, "contributions": 0.0}
    for number, case in enumerate(cases):
        scores = works["scores"](number) - works["lightgbm"](number)
        added = works["contributions"](number)[:, columns] - works["pred_contrib"](number)[:, :-1]
        for name, found in (("scores", scores), ("contributions", added)):
            differences[name] = max(differences[name], float(np.abs(found).max()))
        assert [hit.item_id for hit in works["rank"](number)] == [
            shelf.item_id(item) for item in case.found.candidates.items[case.best].tolist()
        ]
    if max(differences.values()) > _DIFFERENCE:
        raise InputError(f"our trees and LightGBM's differ by {differences}; nothing was measured")
    seconds = turns(works, len(cases), rounds)
    found = {name: in_ms(values) for name, values in seconds.items()}
    peers = {"scores": ("lightgbm", "scores"), "contributions": ("pred_contrib", "contributions")}
    return {
        "requests": len(cases),
        "candidates": len(cases[0].table),
        "trees": len(trees.trees),
        "gathered": statistics.median(len(works["gather"](number)) for number in range(len(cases))),
        "ms": found,
        "lightgbm_over_ours": {
            name: round(found[theirs]["median"] / found[ours]["median"], 3) for name, (theirs, ours) in peers.items()
        },
        "largest_difference": differences,
        "reached": found["rank"]["median"] <= RANKING_MS,
    }


@contextmanager
def counted_passes(model: Any) -> Iterator[list[int]]:
    """Meanwhile a list gets an entry a forward pass of the model: the tokens (or places) of each row."""
    passes: list[int] = []

    def count(_: Any, __: Any, named: dict[str, Any]) -> None:
        read = named["input_ids"] if "input_ids" in named else named["inputs_embeds"]
        passes.append(read.shape[1])

    hook = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


def measure_requests(recommender: Recommender, requests: Sequence[Request], rounds: int) -> dict[str, Any]:
    """The second target."""

    def ask(number: int, retrieval_only: bool) -> Any:
        one = requests[number]
        profile = {name: value for name, value in one.profile.items() if value is not None}
        return recommender.recommend(
            history=one.history, profile=profile, at_ms=one.at_ms, now_ms=one.at_ms, k=K,
            retrieval_only=retrieval_only,
        )  # fmt: skip

    works = {"whole": lambda number: ask(number, False), "beams": lambda number: ask(number, True)}
    passes = {}
    for name, work in works.items():
        with counted_passes(recommender.retriever.model) as tokens:
            for number in range(len(requests)):
                work(number)
        passes[name] = len(tokens) / len(requests)
    seconds = turns(works, len(requests), rounds)
    found = {name: in_ms(values) for name, values in seconds.items()}
    ratio = found["whole"]["median"] / found["beams"]["median"]
    retriever = recommender.retriever
    return {
        "requests": len(requests),
        "history": statistics.median(len(one.history) for one in requests),
        "prompt_tokens": statistics.median(len(retriever.prompt(one).read) for one in requests),
        "forward_passes": passes,
        "ms": found,
        "whole_over_beams": round(ratio, 3),
        "whole_over_beams_pairs": round(float(np.median(seconds["whole"] / seconds["beams"])), 3),
        "reached": ratio <= OVER_BEAMS,
    }


def measure(name: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Both targets on the artifacts of one home."""
    recommender = load(folder)
    lists = recommender.ranked
    assert lists is not None
    requests = read_requests(folder, REQUESTS // 3 if quick else REQUESTS)
    cases = [case for one in requests if (case := Case.of(lists, one, CANDIDATES)) is not None]
    if not cases:
        raise InputError(f"{name}: no request comes to {CANDIDATES} candidates; take a home with a larger catalogue")
    teller = Teller(recommender.titles, lists.ranker.prefix_words, lists.ranker.verb)
    booster = lightgbm.Booster(model_file=folder / "ranker" / "model.txt")
    rounds = 3 if quick else ROUNDS
    ranking = measure_ranking(lists, teller, booster, cases, rounds)
    whole = measure_requests(recommender, requests, rounds)
    ms, over = ranking["ms"], ranking["lightgbm_over_ours"]
    say(
        f"{name}, {len(lists.shelf):,} items: {CANDIDATES} candidates ranked in {ms['rank']['median']:.2f} ms "
        f"(quickest {ms['rank']['quickest']:.2f}; goal {RANKING_MS:g}): features {ms['features']['median']:.2f}, "
        f"scores {ms['scores']['median']:.2f} (LightGBM {over['scores']:.2f}x), reasons {ms['reasons']['median']:.2f} "
        f"(contributions {ms['contributions']['median']:.2f}, LightGBM {over['contributions']:.2f}x); gathered in "
        f"{ms['gather']['median']:.2f}. A request {whole['ms']['whole']['median']:.2f} ms, its beams "
        f"{whole['ms']['beams']['median']:.2f}: {whole['whole_over_beams']:.3f}x (goal {OVER_BEAMS:g})"
    )
    return {"home": name, "items": len(lists.shelf), "ranking": ranking, "request": whole}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, nargs="+", default=[], help="homes to measure instead of a world")
    parser.add_argument("--cache", type=Path, help="folder of the world's home; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="a smaller world, fewer requests and rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with nullcontext(arguments.cache) if arguments.cache else tempfile.TemporaryDirectory() as name:
        homes = arguments.home
        if not homes:
            homes = [Path(name) / "world"]
            make_world(homes[0], QUICK_WORLD if arguments.quick else WORLD)
        rows = [
            measure(home.name, home / "artifacts" if (home / "artifacts").is_dir() else home, arguments.quick)
            for home in homes
        ]
    report = {
        "benchmark": "ranking",
        "quick": arguments.quick,
        "units": UNITS,
        "goals": {"rank_ms": RANKING_MS, "whole_over_beams": OVER_BEAMS},
        "seed": SEED,
        "hardware": {**hardware(), "threads": 1},
        "versions": versions("numpy", "torch", "transformers", "lightgbm"),
        "rows": rows,
    }
    deliver(report, arguments.json)


if __name__ == "__main__":
    main()
