"""New items in a world with known truth: what is served, its rivals, and an oracle, by the age of what was taken.

run   python benchmarks/world.py [--seeds 3] [--recipe FILE] [--json FILE] [--cache DIR] [--quick]

The world (features/synthetic.py): 4,000 users, 3,000 items of which six in ten are published during its 30 days, and
chains that users follow three times in ten. The recipe learns from what was there by 2024-01-27; asked are the users of
the two days after. Everything is made by the stages of dvc.yaml. ± is the standard error over users; other seeds are
other worlds.

The oracle knows the world (`Truth`) but not the dice. It ranks by the expected number of a day's events with each item:
the first event follows the chain from the last item of the history with probability `chain` if the successor is on the
shelf, else the taste of the day (topic, drifting; one in ten any) times popularity among what is on the shelf; every
further event goes on from the one before. The number of events of that day, at least one, is a Poisson mixture given
the user's events up to as_of (Gamma prior of the world). A day has no order for the measure and lists are cut at ten,
so it is no strict bound, but nobody who sees only histories should pass it by more than chance.

--json is written after every seed and read again. --cache keeps the homes, whose finished stages are found finished.
--quick: a small world, few steps, one seed (≤ 2 minutes): a look, not a measurement.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.home import QUICK_STEPS, Home  # noqa: E402
from benchmarks.measuring.served import measure, table  # noqa: E402
from features.catalog import Catalog  # noqa: E402
from features.synthetic import STRAY, Truth, World, make_world  # noqa: E402
from models.baselines.ranking import best_columns  # noqa: E402
from models.retrieval.held_out import K, Query  # noqa: E402
from plumline import artifact  # noqa: E402
from plumline.stage import say  # noqa: E402

FIRST_SEED, START = 3, date(2024, 1, 1)
EVAL_DAYS, MOST_EVENTS, CHUNK = 2, 8, 256


@dataclass(frozen=True)
class Shape:
    """A world's size; as_of is its last day but three."""

    users: int = 4000
    items: int = 3000
    days: int = 30
    events_per_user: float = 40.0
    new_items: float = 0.6
    chain: float = 0.3

    @property
    def as_of(self) -> date:
        """The last day that is learned from."""
        return date.fromordinal(START.toordinal() + self.days - 4)

    def make(self, seed: int) -> World:
        """Draw it."""
        return make_world(
            seed, self.users, self.items, self.days,
            events_per_user=self.events_per_user, new_items=self.new_items, chain=self.chain, start=START,
        )  # fmt: skip


QUICK = Shape(users=400, items=300)


class Oracle:
    """See the module's docstring. allowed: (N,) bool, items that lists may hold."""

    def __init__(self, truth: Truth, shape: Shape, allowed: np.ndarray) -> None:
        self.truth, self.shape, self.allowed = truth, shape, allowed
        num_topics = int(max(truth.topic.max(), truth.taste.max())) + 1
        total_T = np.bincount(truth.topic, weights=truth.popularity, minlength=num_topics)
        self.share_N = truth.popularity / total_T[truth.topic]
        self.num_topics = num_topics
        self.before_N = np.argsort(truth.successor)  # the successors are a permutation

    def lists(self, queries: Sequence[Query], exclude: Sequence[frozenset[str]]) -> list[list[str]]:
        """The K items of the largest expected number on the query's day."""
        names = [f"i{number:0{self._width}d}" for number in range(len(self.allowed))]
        row = {name: number for number, name in enumerate(names)}
        found = []
        for start in range(0, len(queries), CHUNK):
            chunk = slice(start, start + CHUNK)
            expected = self.expected(queries[chunk])
            expected[:, ~self.allowed] = -np.inf
            for values, gone in zip(expected, exclude[chunk], strict=True):
                values[[row[item] for item in gone]] = -np.inf
                found.append([names[number] for number in best_columns(values, K)])
        return found

    def expected(self, queries: Sequence[Query]) -> np.ndarray:
        """(Q, N) expected number of events with each item on each query's day."""
        chain = self.shape.chain
        day_Q = np.array([(query.day - START).days for query in queries])
        taste_QN = self._taste(queries, day_Q)
        open_QN = self._open(day_Q)
        last_Q = np.array([int(query.history[-1][0][1:]) if query.history else -1 for query in queries])
        now_QN = np.zeros_like(taste_QN)
        known = np.flatnonzero(last_Q >= 0)
        now_QN[known, last_Q[known]] = 1.0
        total_QN = np.zeros_like(taste_QN)
        for at_least_Q in self._at_least(queries, day_Q):
            chained_QN = chain * now_QN[:, self.before_N] * open_QN
            now_QN = chained_QN + (1 - chained_QN.sum(axis=1, keepdims=True)) * taste_QN
            total_QN += at_least_Q[:, None] * now_QN
        return total_QN

    @property
    def _width(self) -> int:
        return len(str(max(len(self.allowed) - 1, 1)))

    def _open(self, day_Q: np.ndarray) -> np.ndarray:
        born, gone = self.truth.birth, self.truth.death
        open_QN: np.ndarray = (born[None] <= day_Q[:, None]) & (day_Q[:, None] < gone[None])
        return open_QN

    def _taste(self, queries: Sequence[Query], day_Q: np.ndarray) -> np.ndarray:
        """(Q, N) probability of each item of a choice by taste: what is not on the shelf is drawn again."""
        users = np.array([int(query.user_id[1:]) for query in queries])
        drift = (day_Q + 0.5) / self.shape.days
        weight_QT = np.full((len(queries), self.num_topics), STRAY / self.num_topics)
        rows = np.arange(len(queries))
        weight_QT[rows, self.truth.taste[users, 0]] += (1 - STRAY) * (1 - drift)
        weight_QT[rows, self.truth.taste[users, 1]] += (1 - STRAY) * drift
        weight_QN = weight_QT[:, self.truth.topic] * self.share_N * self._open(day_Q)
        taste_QN: np.ndarray = weight_QN / weight_QN.sum(axis=1, keepdims=True)
        return taste_QN

    def _at_least(self, queries: Sequence[Query], day_Q: np.ndarray) -> np.ndarray:
        """(MOST_EVENTS, Q) probability of at least 1, 2, … events of the day, given that there is one."""
        seen_Q = np.array([len(query.history) for query in queries])
        # λ of the whole time ~ Gamma(2, mean events_per_user - 1); a day's events then are negative binomial.
        rate = 2 / (self.shape.events_per_user - 1)
        shape_Q, rate_Q = 2.0 + seen_Q, rate * self.shape.days + day_Q
        p_Q = rate_Q / (rate_Q + 1)
        mass = [p_Q**shape_Q]
        for number in range(1, MOST_EVENTS):
            mass.append(mass[-1] * (shape_Q + number - 1) / number * (1 - p_Q))
        at_least: np.ndarray = (1 - np.cumsum(mass, axis=0)) / (1 - mass[0])
        return at_least


def run_seed(seed: int, shape: Shape, folder: Path, recipe: Path, quick: bool) -> dict[str, Any]:
    """Make one world, run the stages, measure."""
    world = shape.make(seed)
    changes = {
        "events": {"horizon_days": EVAL_DAYS},
        "histories": {"eval_days": EVAL_DAYS},
        "ranker": {"leave_one_out_queries": 0},
        **(QUICK_STEPS if quick else {}),
    }
    home = Home.make(
        folder / f"world-{seed}", world.items, world.events, world.users,
        recipe=recipe, changes=changes, as_of=shape.as_of, seed=17,
    )  # fmt: skip
    seconds = home.run("ranker") | home.run("rivals")
    known = Catalog.load(home.artifact("catalog"))
    allowed = np.zeros(shape.items, dtype=bool)
    allowed[[int(item[1:]) for item in known.live_ids()]] = True
    oracle = Oracle(world.truth, shape, allowed)
    found = measure(home, 17, {"oracle": oracle.lists})
    return {"seed": seed, "quick": quick, "as_of": shape.as_of.isoformat(), "seconds": seconds, **found}


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="worlds, the first with seed 3")
    recipe = ROOT / "recipes" / "cpu_tiny.yaml"
    parser.add_argument("--recipe", type=Path, default=recipe, help="recipe of the stages")
    parser.add_argument("--json", type=Path, help="file for the figures; seeds that it holds are not run again")
    parser.add_argument("--cache", type=Path, help="folder for the homes; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="a small world, few steps, one seed")
    arguments = parser.parse_args()
    recipe_id = artifact.sha256_file(arguments.recipe)[:16]
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    shape, seeds = (QUICK, 1) if arguments.quick else (Shape(), arguments.seeds)
    with nullcontext(arguments.cache) if arguments.cache else tempfile.TemporaryDirectory() as folder:
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            about = {"seed": seed, "quick": arguments.quick, "recipe": recipe_id}
            if any(about.items() <= row.items() for row in rows):
                continue
            say(f"world {seed}")
            rows.append({**about, **run_seed(seed, shape, Path(folder), arguments.recipe, arguments.quick)})
            if arguments.json:
                report = {"benchmark": "world", "shape": vars(shape), "rows": rows, "hardware": hardware()}
                report["versions"] = versions("numpy", "torch", "lightgbm", "transformers")
                artifact.replace_file(arguments.json, json.dumps(report, indent=1) + "\n")
    told = {"quick": arguments.quick, "recipe": recipe_id}
    rows = [row for row in rows if told.items() <= row.items()][: max(seeds, 1)]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
