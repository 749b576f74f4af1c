"""Daily fine-tuning, day after day: where an increment should start, and what the weights forget (ORBIT's curve).

run   python benchmarks/daily_sft.py [--days 14] [--seeds 1] [--arms NAMES] [--json FILE] [--cache DIR] [--quick]

Day 0 learns everything once, from the recipe: SIDs, vocabulary, continued pre-training (CPT), fine-tuning. Then the log
goes on a day at a time. Every arm makes its weights of the day, and the users of the NEXT day with events are asked:
item level, full ranking over live items, seen items masked and not, pooled over all days (± by bootstrap over users; Δ
against the first arm, paired by query). Histories, new items and their SIDs are the same for all arms.

    previous          the recipe's daily_steps and daily_learning_rate, from the arm's weights of the day before
    cpt, same cost    as many steps from the CPT checkpoint, at the loop's learning rate
    cpt, longer       CPT_STEPS times as many
    weekly anew       anew from the CPT checkpoint every WEEK days, at the recipe's full length (`steps`, all windows);
                      on the days between as previous, from there
    none              the weights of day 0
    ORBIT x           as previous, weights kept within x times the distance that day 0's have from the CPT checkpoint

An increment trains on the recent days (one; CPT_DAYS from the CPT checkpoint) and a tenth of the older windows.
Forgetting is the loss on metadata examples of CPT (text → SID, SID → text) under the day's weights: of items whose
metadata CPT never saw ("unseen"), and of as many that it did ("trained"); the row "CPT" says what it was to begin with.
At most --users of a day's users are asked. Cost: tokens trained on, and CPU seconds of training on one thread.
--served: after the last day a ranker is learned over each arm's weights, and what is served is asked on the SERVED_DAYS
after it (two folds of users; paired by user-day).

The default data are examples/online_retail. --json is written after every arm of a day and read again, so that a run
that was stopped goes on where it was; with --cache its weights are found again as well, without they are trained anew.
--quick: two days of the log's last three months, few steps, one seed (≤ 2 minutes): a look, not a measurement.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from benchmarks.measuring.days import Day, Log, making, recall_of_queries  # noqa: E402
from benchmarks.measuring.fine_tuning import make_examples, of_first_training, open_model, save_model  # noqa: E402
from benchmarks.measuring.forgetting import Lessons, distance, mean_loss  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.served_weights import serve  # noqa: E402
from models.corpus.material import CorpusParams, Material  # noqa: E402
from models.evaluation import metrics, scores  # noqa: E402
from models.language.model import build_language_model, load_language_model  # noqa: E402
from models.training.cpt import CptParams  # noqa: E402
from models.training.loop import train  # noqa: E402
from models.training.packing import LoopParams  # noqa: E402
from models.training.sft import SftParams  # noqa: E402
from plumline import artifact  # noqa: E402
from plumline.errors import InputError  # noqa: E402
from plumline.stage import hash_seed, load_params, read_recipe, say  # noqa: E402

FIRST = "previous"
CPT_STEPS, CPT_DAYS, WEEK = 2, 28, 7
SERVED_DAYS = 14
BOOTSTRAP_SAMPLES = 1000
QUICK: dict[str, dict[str, Any]] = {
    "quantizer": {"steps": 60, "warmup_steps": 20},
    "cpt": {"steps": 40},
    "sft": {"steps": 80, "daily_steps": 10},
}


@dataclass(frozen=True)
class Arm:
    """A way to get the weights of a day. start: none, previous, cpt or weekly. steps: in daily_steps. orbit: see
    above."""

    name: str
    start: str
    steps: int = 1
    orbit: float | None = None


def arms(orbit: Sequence[float]) -> list[Arm]:
    """Those that this version of the loop can make: ORBIT is its `orbit_distance`."""
    found = [
        Arm(FIRST, "previous"),
        Arm("cpt, same cost", "cpt"),
        Arm("cpt, longer", "cpt", CPT_STEPS),
        Arm("weekly anew", "weekly"),
        Arm("none", "none"),
    ]
    if "orbit_distance" not in LoopParams.model_fields:
        say("the loop has no orbit_distance: no arms with ORBIT")
        return found
    return found + [Arm(f"ORBIT {share:g}", "previous", orbit=share) for share in orbit]


@dataclass(frozen=True)
class Study:
    """One seed. days: day 0 and those after it, as the log makes them. folder: of weights."""

    log: Log
    seed: int
    folder: Path
    num_users: int

    def params(self, section: str, kind: Any) -> Any:
        """A section of the recipe."""
        return load_params(self.log.recipe, section, kind)

    @cache  # noqa: B019  a study lives as long as the program
    def day(self, number: int) -> Day:
        """Day 0 is the one that leaves so many to come; see Log."""
        return self.log.following(self.day(number - 1)) if number else self.log.first_day(self.log.days[0])

    @lru_cache(maxsize=1)  # noqa: B019
    def material(self, number: int) -> Material:
        """What examples are made of, as known on a day."""
        return Material.load(**self.day(number).inputs("catalog", "histories", "sids", "vocabulary"))

    @lru_cache(maxsize=2)  # noqa: B019
    def windows(self, number: int, recent_days: int) -> Any:
        """Examples of fine-tuning."""
        params = self.params("corpus", CorpusParams).model_copy(update={"recent_days": recent_days})
        rng = np.random.default_rng(hash_seed(self.seed, "sft", number))
        return make_examples(params, self.material(number), self.day(number).as_of, rng)

    @cache  # noqa: B019
    def lessons(self) -> Lessons:
        """What CPT learns, and what forgetting is measured on."""
        rng = np.random.default_rng(hash_seed(self.seed, "cpt"))
        return Lessons.of(self.params("corpus", CorpusParams), self.material(0), rng)

    def cpt(self) -> Path:
        """Weights of continued pre-training."""
        folder, params = self.folder / "cpt", self.params("cpt", CptParams)
        with making(folder) as scratch:
            if scratch is not None:
                learned = self.lessons()
                words, codes = self.material(0).words, self.day(0).folder / "quantizer"
                model = build_language_model(params.model, words, hash_seed(self.seed, "model"), codes)
                self._learn(model, learned.examples, learned.chosen, params.loop, params.steps, scratch, "cpt", None)
        return folder / "weights"

    def weights(self, arm: Arm, number: int) -> Path:
        """Weights of an arm on a day, made if they are not there."""
        if number == 0 or arm.start == "none":
            folder = self.folder / "day 0"
            with making(folder) as scratch:
                if scratch is not None:
                    self._learn_anew(0, scratch)
            return folder / "weights"
        folder = self.folder / arm.name / str(self.day(number).as_of)
        with making(folder) as scratch:
            if scratch is None:
                pass
            elif arm.start == "weekly" and number % WEEK == 0:
                self._learn_anew(number, scratch)
            else:
                self._learn_increment(arm, number, scratch)
        return folder / "weights"

    def _learn_anew(self, number: int, out: Path) -> None:
        params, examples = self.params("sft", SftParams), self.windows(number, 1)
        model = open_model(self.cpt(), self.material(number).words, params, self.seed, from_cpt=True)
        self._learn(model, examples, of_first_training(examples), params.loop, params.steps, out, "sft", None)

    def _learn_increment(self, arm: Arm, number: int, out: Path) -> None:
        params = self.params("sft", SftParams)
        from_cpt, loop = arm.start == "cpt", params.loop
        examples = self.windows(number, CPT_DAYS if from_cpt else 1)
        start = self.cpt() if from_cpt else self.weights(arm, number - 1)
        if not from_cpt and params.daily_learning_rate is not None:
            loop = loop.model_copy(update={"learning_rate": params.daily_learning_rate})
        if arm.orbit is not None:
            most = arm.orbit * distance(self.weights(arm, 0), self.cpt())
            loop = loop.model_copy(update={"orbit_distance": most})
        steps, chosen = arm.steps * params.daily_steps, examples.of_kinds("recent", "replay")
        anchor = self.cpt() if arm.orbit is not None else None
        model = open_model(start, self.material(number).words, params, self.seed, from_cpt=from_cpt)
        self._learn(model, examples, chosen, loop, steps, out, "sft", anchor)

    def _learn(
        self,
        model: Any,
        examples: Any,
        chosen: np.ndarray,
        loop: LoopParams,
        steps: int,
        out: Path,
        stage: str,
        anchor: Path | None,
    ) -> None:
        began = time.process_time()
        more = {} if anchor is None else {"anchor": anchor}
        seed, progress = hash_seed(self.seed, stage, out.name), out / "progress.jsonl"
        found = train(
            model, examples, loop, chosen=chosen, steps=steps, seed=seed, stage=stage, progress_path=progress, **more
        )
        save_model(model, out / "weights")
        cost = {"tokens": found["tokens"], "cpu_seconds": round(time.process_time() - began, 2)}
        artifact.write_json(out / "metrics.json", {**found, **cost})

    def forgetting(self, weights: Path) -> dict[str, float]:
        """Mean loss a target token of the metadata examples, by name."""
        model, row_tokens = load_language_model(weights), self.params("cpt", CptParams).loop.row_tokens
        return {name: mean_loss(model, *asked, row_tokens) for name, asked in self.lessons().asked.items()}

    @cache  # noqa: B019
    def queries(self, number: int) -> list[scores.Query]:
        """Users of the day after."""
        return scores.read_sample(self.day(number).folder / "histories", self.num_users, hash_seed("queries"))

    def recall(self, weights: Path, number: int) -> dict[str, list[float | None]]:
        """recall@10 of each query; None where nothing relevant is left."""
        width = self.params("scores", scores.ScoresParams).width
        return recall_of_queries(self.day(number), weights, self.queries(number), width)

    def served(self, chosen: Sequence[Arm], number: int) -> dict[str, Any]:
        """Arm → figures of what is served over its weights on the days after a day."""
        day = self.log.following(self.day(number - 1), SERVED_DAYS)
        weights = {arm.name: self.weights(arm, number) for arm in chosen}
        return serve(day, self.log.recipe, weights, self.seed, self.folder / "served")

    def row(self, arm: Arm, number: int) -> dict[str, Any]:
        """What an arm did on a day, and how well it was then."""
        weights = self.weights(arm, number)
        cost = {"tokens": 0, "cpu_seconds": 0.0}
        if arm.start != "none":
            told = artifact.read_json(weights.parent / "metrics.json")
            cost = {name: told[name] for name in cost}
        return {
            "seed": self.seed,
            "arm": arm.name,
            "day": self.day(number).as_of.isoformat(),
            "asked": self.day(number).asked.isoformat(),
            **cost,
            "distance": distance(weights, self.cpt()),
            "forgetting": self.forgetting(weights),
            "users": [query.user_id for query in self.queries(number)],
            "recall@10": self.recall(weights, number),
        }


def pooled(rows: list[dict[str, Any]], first: list[dict[str, Any]], protocol: str) -> list[metrics.Estimate]:
    """recall@10 over all days of an arm, and its difference to the first arm on the same queries."""
    of_first = {(row["seed"], row["day"]): row["recall@10"][protocol] for row in first}
    values, differences, users = [], [], []
    for row in rows:
        before = of_first.get((row["seed"], row["day"]), row["recall@10"][protocol])
        for user, value, other in zip(row["users"], row["recall@10"][protocol], before, strict=True):
            if value is not None:
                values.append(value)
                differences.append(value - other)
                users.append(user)
    told = {"seed": hash_seed("bootstrap"), "num_samples": BOOTSTRAP_SAMPLES}
    return [metrics.bootstrap_mean(np.array(v), np.array(users), **told) for v in (values, differences)]


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arm → figures over all days and seeds; the mean of a day for costs and forgetting."""
    found: dict[str, dict[str, Any]] = {}
    of_arm = {name: [row for row in rows if row["arm"] == name] for name in dict.fromkeys(r["arm"] for r in rows)}
    for name, those in of_arm.items():
        figures: dict[str, Any] = {"days": len(those)}
        for protocol in scores.PROTOCOLS:
            mean, difference = pooled(those, of_arm.get(FIRST, []), protocol)
            figures[protocol] = {"recall@10": mean.mean, "recall@10_se": mean.standard_error}
            figures[protocol] |= {"difference": difference.mean, "difference_se": difference.standard_error}
        for key in ("tokens", "cpu_seconds", "distance"):
            figures[key] = float(np.mean([row[key] for row in those]))
        figures["forgetting"] = {k: float(np.mean([r["forgetting"][k] for r in those])) for k in ("unseen", "trained")}
        found[name] = figures
    return found


def table(rows: list[dict[str, Any]], start: list[dict[str, Any]]) -> Iterator[str]:
    """One line an arm, then one a day: recall not masked, and forgetting."""
    titles = "".join(f"{'R@10 ' + protocol.replace('_', ' '):>19s}{'Δ previous':>18s}" for protocol in scores.PROTOCOLS)
    yield f"{'':16s}{titles}{'tokens':>10s}{'CPU s':>8s}{'distance':>10s}{'unseen':>8s}{'trained':>9s}"
    for told in start:
        lost = told["forgetting"]
        yield f"{told['arm']:16s}{'':92s}{told['distance']:10.3f}{lost['unseen']:8.3f}{lost['trained']:9.3f}"
    summary = summarise(rows)
    for name, found in summary.items():
        cells = ""
        for one in (found[protocol] for protocol in scores.PROTOCOLS):
            cells += f"{one['recall@10']:10.4f} ± {one['recall@10_se']:.4f}"
            against = f"{one['difference']:+.4f} ± {one['difference_se']:.4f}"
            cells += f"{'–' if name == FIRST else against:>18s}"
        lost = found["forgetting"]
        cells += f"{found['tokens']:10,.0f}{found['cpu_seconds']:8.1f}{found['distance']:10.3f}"
        yield f"{name:16s}{cells}{lost['unseen']:8.3f}{lost['trained']:9.3f}"
    yield "\nday by day: recall@10 not masked | loss of unseen metadata"
    yield f"{'':12s}" + "".join(f"{name:>18s}" for name in summary)
    for day in dict.fromkeys(row["day"] for row in rows):
        cells = ""
        for name in summary:
            those = [row for row in rows if (row["day"], row["arm"]) == (day, name)]
            values = [value for row in those for value in row["recall@10"][scores.PLAIN]]
            lost = [row["forgetting"]["unseen"] for row in those]
            cells += f"{f'{np.mean(values):.4f} | {np.mean(lost):.3f}' if those else '–':>18s}"
        yield f"{day:12s}{cells}"


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "examples/online_retail", help="items and events (parquet)")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/cpu_tiny.yaml")
    parser.add_argument("--days", type=int, default=14, help="increments, on consecutive days that have events")
    parser.add_argument("--seeds", type=int, default=1, help="how often all of it, from 17 on")
    parser.add_argument("--users", type=int, default=80, help="users of a day that are asked at most")
    parser.add_argument("--orbit", type=float, nargs="*", default=[1.0, 0.7], help="thresholds, of day 0's distance")
    parser.add_argument("--arms", nargs="+", help="names of those to run, as above; default: all")
    parser.add_argument("--served", action="store_true", help="also what is served after the last day, with a ranker")
    parser.add_argument("--quick", action="store_true", help="two days, few steps, one seed")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not made again")
    parser.add_argument("--cache", type=Path, help="folder for all that is made; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.days, arguments.seeds, arguments.users = 2, 1, 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        run(arguments, (arguments.cache or Path(scratch)).resolve())


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Every arm of every day of every seed."""
    recipe = {name: section or {} for name, section in read_recipe(arguments.recipe).items()}
    for name, told in QUICK.items() if arguments.quick else ():
        recipe[name] = recipe[name] | told
    settings = {name: getattr(arguments, name) for name in ("days", "users", "quick", "orbit")}
    settings |= {"data": arguments.data.resolve().name, "recipe": recipe}
    key = artifact.sha256_json(settings)[:16]
    report: dict[str, Any] = {"key": key, "start": [], "rows": [], "served": []}
    if arguments.json and arguments.json.exists():
        report = json.loads(arguments.json.read_text(encoding="utf-8"))
        if report["key"] != key:
            raise InputError(f"{arguments.json} holds a study of other settings ({report['key']}, now {key}); move it")
    folder = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    known = {arm.name: arm for arm in arms(arguments.orbit)}
    if unknown := set(arguments.arms or ()) - known.keys():
        raise InputError(f"--arms {sorted(unknown)[0]!r}: there are {', '.join(map(repr, known))}")
    chosen = [known[name] for name in arguments.arms or known]
    for seed in range(17, 17 + arguments.seeds):
        data, most = arguments.data.resolve(), 92 if arguments.quick else None
        log = Log.land(data, folder / f"log-{seed}", folder / "recipe.yaml", seed, most)
        if len(log.days) < arguments.days + 2:
            raise InputError(f"{data}: {len(log.days)} days with events; --days wants {arguments.days} + 2 at least")
        if arguments.served and not arguments.quick:  # leave days to be asked after the last one
            end = sum(day <= log.days[-1] - timedelta(days=SERVED_DAYS) for day in log.days)
            log = replace(log, days=log.days[: end + 1])
        log = replace(log, days=log.days[-arguments.days - 2 :])
        study = Study(log, seed, folder / f"weights-{seed}", arguments.users)
        if not any(told["seed"] == seed for told in report["start"]):
            for name, weights in (("CPT", study.cpt()), ("day 0", study.weights(chosen[0], 0))):
                far, lost = distance(weights, study.cpt()), study.forgetting(weights)
                report["start"].append({"seed": seed, "arm": name, "distance": far, "forgetting": lost})
        for number in range(1, arguments.days + 1):
            for arm in chosen:
                day = log.days[number].isoformat()
                if not any((row["seed"], row["day"], row["arm"]) == (seed, day, arm.name) for row in report["rows"]):
                    report["rows"].append(study.row(arm, number))
                    shown = summarise(report["rows"][-1:])[arm.name][scores.PLAIN]["recall@10"]
                    say(f"seed {seed}, {day}, {arm.name}: recall@10 not masked {shown:.4f}")
                    _write(arguments.json, report, settings)
        if arguments.served and not any(told["seed"] == seed for told in report["served"]):
            report["served"].append({"seed": seed, "arms": study.served(chosen, arguments.days)})
            _write(arguments.json, report, settings)
    print("\n".join(table(report["rows"], report["start"])))
    print("\n".join(served_table(report["served"])))


def served_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line a seed, arm and protocol: what is served after the last day."""
    for row in rows:
        yield f"\nserved on the {SERVED_DAYS} days after the last, seed {row['seed']}, recall@10"
        for arm, protocols in row["arms"].items():
            for protocol, found in protocols.items():
                cells = [f"{k} {v['recall@10']:+.4f} ± {v['recall@10_se']:.4f}" for k, v in found.items()]
                yield f"{arm:16s}{protocol:14s}" + ", ".join(cells)


def _write(path: Path | None, report: dict[str, Any], settings: dict[str, Any]) -> None:
    if path is None:
        return
    about = {"benchmark": "daily_sft", "settings": settings, "summary": summarise(report["rows"])}
    about |= {"hardware": hardware(), "versions": versions("numpy", "torch", "transformers")}
    artifact.replace_file(path, json.dumps({**about, **report}) + "\n")


if __name__ == "__main__":
    main()
