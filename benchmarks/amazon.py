"""The Amazon leave-one-out benchmark: the model and every baseline on one split, in one table.

run   python benchmarks/amazon.py --data DIR [--budget-minutes M | --passes P] [--seeds 3] [--quick] [--json FILE]
          [--only NAMES …]

DIR has items.parquet and events.parquet with `position` and `split_loo` (`measuring.leave_one_out` says what is asked,
and what the order of the events of one day gives away). Recall and NDCG at 5 and 10, full ranking over all items, seen
items masked and not. ± is the standard error: over users for what is not trained (once is enough), over seeds for what
is. Everything is fitted on training events whose days were shuffled by the seed, except `item_knn file order`: the same
counts on the days as the file has them, successors only, so it learns which ids follow which in a file. The difference
is what that order is worth, and why no figure of a method that sees it says much about next items.

`without_model` and `served` are the ranker of the project over its memory, without and with the beams of `model` of the
same seed and budget (`measuring.amazon_ranked`). Alone of all rows they learn from the validation items, an order of
candidates and nothing else; what is counted are training events.

--json is written after every row and read again, so a run that was stopped goes on where it was. --budget-minutes is
the training time of one seed of the model, --passes a length that is the same on any machine, however busy. --quick:
2,000 users, one seed, few steps (≤ 2 minutes on two cores): a look, not a measurement.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.measuring.amazon_ranked import PROTOCOLS, RankedParams, Said, draw_rows, rank_all  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.leave_one_out import CUTS, LeaveOneOut, compare, measure, read_leave_one_out  # noqa: E402
from models.baselines.item_knn import ItemKnn  # noqa: E402
from models.baselines.knn_sum import KnnSum  # noqa: E402
from models.baselines.own import Own  # noqa: E402
from models.baselines.popularity import Popularity  # noqa: E402
from models.baselines.ranking import rank_items, recent_items  # noqa: E402
from models.baselines.sasrec import SasRec  # noqa: E402
from models.baselines.star import Star, text_vectors  # noqa: E402
from models.baselines.text_knn import TextKnn  # noqa: E402
from models.corpus.teacher import Teacher, TeacherParams  # noqa: E402
from plumline import artifact  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.measuring.amazon_model import Trained

MEASURES = tuple(f"{name}@{cut}" for cut in CUTS for name in ("recall", "ndcg"))
FIRST_SEED, QUICK_USERS, K = 17, 2000, max(CUTS)

KNN: dict[str, Any] = {"window": 3, "decay": 0.8, "last": 50, "both_ways": True, "cosine": True}
FILE_KNN: dict[str, Any] = {"window": 3, "decay": 0.8, "last": 50}
TEXT_WEIGHT = 0.03
SASREC: dict[str, Any] = {
    "epochs": 60,
    "batch_windows": 128,
    "num_negatives": 1024,
    "width": 64,
    "dropout": 0.5,
    "learning_rate": 1e-3,
    "max_length": 50,
}
"""Width 64 and heavy dropout, as reproductions with cross-entropy have it; epochs by the validation items."""

# R@5, N@5, R@10, N@10 of test items as others published them (in brackets whose table); the same model differs by up
# to 40% from paper to paper. S3-Rec's table masks seen items, GRAM's does not; of TIGER's paper it is not known.
# phonism/genrec is not quoted: its figures are of the validation items.
PUBLISHED = {
    "amazon2014_beauty": {
        "SASRec (S3-Rec's table)": (0.0387, 0.0249, 0.0605, 0.0318),
        "SASRec (GRAM's table)": (0.0323, 0.0200, 0.0475, 0.0249),
        "S3-Rec": (0.0387, 0.0244, 0.0647, 0.0327),
        "TIGER (paper)": (0.0454, 0.0321, 0.0648, 0.0384),
        "TIGER (GRAM's table)": (0.0352, 0.0236, 0.0533, 0.0294),
        "LC-Rec (GRAM's table)": (0.0503, 0.0352, 0.0715, 0.0420),
        "GRAM": (0.0641, 0.0451, 0.0890, 0.0531),
    },
    "amazon2014_sports": {
        "SASRec (S3-Rec's table)": (0.0233, 0.0154, 0.0350, 0.0192),
        "SASRec (GRAM's table)": (0.0147, 0.0089, 0.0220, 0.0113),
        "S3-Rec": (0.0251, 0.0161, 0.0385, 0.0204),
        "TIGER (paper)": (0.0264, 0.0181, 0.0400, 0.0225),
        "TIGER (GRAM's table)": (0.0176, 0.0143, 0.0311, 0.0146),
        "LC-Rec (GRAM's table)": (0.0259, 0.0175, 0.0384, 0.0216),
        "GRAM": (0.0375, 0.0256, 0.0554, 0.0314),
    },
}


LABEL_USERS = 6000
"""Users whose validation items the rankers of the row `served` learn from: each asks the model once more."""


@dataclass(frozen=True)
class Ranked:
    """Lists of a fitted method: protocol → a list a test query. parameters: trained numbers (0: none are)."""

    lists: dict[str, list[list[str]]]
    minutes: float
    parameters: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One method and seed to be run."""

    task: LeaveOneOut
    seed: int
    quick: bool
    budget_minutes: float
    passes: int | None = None


def rank(run: Run, fit: Callable[[], Any]) -> Ranked:
    """Fit a baseline, and ask it once with seen items left out and once without."""
    began = time.perf_counter()
    baseline = fit()
    minutes = (time.perf_counter() - began) / 60
    histories = [query.item_ids for query in run.task.test]
    seen = [query.seen for query in run.task.test]
    nothing = [frozenset[str]()] * len(seen)
    lists = {name: baseline.rank(histories, K, gone) for name, gone in zip(PROTOCOLS, (seen, nothing), strict=True)}
    model = getattr(baseline, "model", None)
    return Ranked(lists, minutes, sum(p.numel() for p in model.parameters()) if model else 0)


def run_popularity(run: Run) -> Ranked:
    return rank(run, lambda: Popularity.fit(run.task.histories, run.task.item_ids))


def run_item_knn(run: Run) -> Ranked:
    return rank(run, lambda: ItemKnn.fit(run.task.shuffled_days(run.seed), run.task.item_ids, **KNN))


def run_own(run: Run) -> Ranked:
    return rank(run, lambda: Own.fit(run.task.histories, run.task.item_ids))


def run_file_order(run: Run) -> Ranked:
    return rank(run, lambda: ItemKnn.fit(run.task.histories, run.task.item_ids, **FILE_KNN))


def run_text_knn(run: Run) -> Ranked:
    return rank(run, lambda: TextKnn.fit(run.task.histories, run.task.item_ids, run.task.items))


def run_knn_sum(run: Run) -> Ranked:
    def fit() -> KnnSum:
        histories, item_ids = run.task.shuffled_days(run.seed), run.task.item_ids
        text = TextKnn.fit(histories, item_ids, run.task.items)
        return KnnSum(ItemKnn.fit(histories, item_ids, **KNN), text, TEXT_WEIGHT)

    return rank(run, fit)


@dataclass(frozen=True)
class TeacherRanker:
    """What the model's further targets are drawn from (models/corpus/teacher.py), asked itself."""

    teacher: Teacher
    item_ids: list[str]
    popularity: np.ndarray

    def rank(self, histories: list[list[str]], k: int, exclude: list[frozenset[str]]) -> list[list[str]]:
        """The k items of the highest scores."""
        params = self.teacher.params
        recent = recent_items(histories, self.item_ids, params.last, params.decay)
        return rank_items(
            lambda chunk: recent[chunk] @ self.teacher.similar, self.popularity, self.item_ids, k, exclude
        )


def run_teacher(run: Run) -> Ranked:
    from benchmarks.measuring.amazon_examples import fit_teacher

    def fit() -> TeacherRanker:
        item_ids = run.task.item_ids
        teacher, rows = fit_teacher(run.task, item_ids, TeacherParams(), run.seed)
        return TeacherRanker(teacher, item_ids, np.bincount(rows, minlength=len(item_ids)).astype(float))

    return rank(run, fit)


def run_star(run: Run) -> Ranked:
    """STAR on MiniLM vectors; in a quick run, or where no item has a title, on TF-IDF ones."""

    def fit() -> Star:
        vectors = text_vectors(run.task.items, star_encoder(run.quick))
        return Star.fit(run.task.histories, run.task.item_ids, run.task.item_ids, vectors)

    return rank(run, fit)


def star_encoder(quick: bool) -> str:
    return "tfidf_svd" if quick else "minilm"


def run_sasrec(run: Run) -> Ranked:
    def fit() -> SasRec:
        options = {name: value for name, value in SASREC.items() if name != "epochs"}
        batches = -(-len(run.task.test) // SASREC["batch_windows"])
        steps = 20 if run.quick else SASREC["epochs"] * batches
        return SasRec.fit(run.task.shuffled_days(run.seed), run.task.item_ids, steps=steps, seed=run.seed, **options)

    return rank(run, fit)


@lru_cache(maxsize=1)
def counted_lists(task: LeaveOneOut, seed: int) -> tuple[dict[str, Any], float]:
    """Lists of `memory` and `without_model`, and the minutes they took."""
    began = time.perf_counter()
    return rank_all(task, seed, RankedParams()), (time.perf_counter() - began) / 60


def run_counted(run: Run, method: str) -> Ranked:
    lists, minutes = counted_lists(run.task, run.seed)
    return Ranked(lists[method], minutes)


@dataclass(frozen=True)
class Model:
    """A trained model, and what it says. said: "test": to every test query; "labels": to label_rows."""

    trained: "Trained"
    label_rows: np.ndarray
    said: dict[str, list[Said]]


@lru_cache(maxsize=1)
def asked_model(task: LeaveOneOut, seed: int, budget_minutes: float, passes: int | None, quick: bool) -> Model:
    """The model of the rows `model` and `served`, trained once for both."""
    from benchmarks.measuring.amazon_examples import AmazonParams
    from benchmarks.measuring.amazon_model import QUICK, train_model

    rows = draw_rows(len(task.validation), LABEL_USERS, seed)
    with tempfile.TemporaryDirectory() as scratch:
        params = QUICK if quick else AmazonParams()
        trained = train_model(task, Path(scratch), seed, budget_minutes, params, passes)
        labels = trained.said([task.validation[row] for row in rows.tolist()])
        return Model(trained, rows, {"test": trained.said(task.test), "labels": labels})


def run_model(run: Run) -> Ranked:
    asked = asked_model(run.task, run.seed, run.budget_minutes, run.passes, run.quick)
    items = [[item for item, _ in one.hits] for one in asked.said["test"]]  # both protocols are read off one list of 50
    model = asked.trained
    return Ranked(dict.fromkeys(PROTOCOLS, items), model.minutes, model.parameters, model.notes)


def run_served(run: Run) -> Ranked:
    asked = asked_model(run.task, run.seed, run.budget_minutes, run.passes, run.quick)
    lists = rank_all(
        run.task,
        run.seed,
        RankedParams(),
        codes_of=asked.trained.codes_of,
        hits_of=asked.said,
        label_rows=asked.label_rows,
    )
    gains = {}
    for protocol in PROTOCOLS:
        gain = compare(lists["served"][protocol], lists["without_model"][protocol], run.task, protocol == PROTOCOLS[0])
        gains[protocol] = {"means": gain.means, "standard_errors": gain.standard_errors}
    length = {"budget_minutes": run.budget_minutes} if run.passes is None else {"passes": run.passes}
    notes = {**length, "label_users": len(asked.label_rows), "model_gain": gains}
    return Ranked(lists["served"], asked.trained.minutes, asked.trained.parameters, notes)


@dataclass(frozen=True)
class Method:
    """run: fits and ranks. params: what a row depends on beside data and seed. trained: a row a seed, else one row."""

    run: Callable[[Run], Ranked]
    params: dict[str, Any] = field(default_factory=dict)
    trained: bool = False


RANKED = RankedParams().to_json()
METHODS = {
    "popularity": Method(run_popularity),
    "own": Method(run_own),
    "item_knn": Method(run_item_knn, KNN),
    "text_knn": Method(run_text_knn),
    "knn_sum": Method(run_knn_sum, {**KNN, "text_weight": TEXT_WEIGHT}),
    "teacher": Method(run_teacher, TeacherParams().model_dump()),
    "star": Method(run_star),
    "item_knn file order": Method(run_file_order, FILE_KNN),
    "sasrec": Method(run_sasrec, SASREC, trained=True),
    "model": Method(run_model, trained=True),
    "memory": Method(partial(run_counted, method="memory"), RANKED),
    "without_model": Method(partial(run_counted, method="without_model"), RANKED, trained=True),
    "served": Method(run_served, {**RANKED, "label_users": LABEL_USERS}, trained=True),
}


def run_row(name: str, run: Run) -> dict[str, Any]:
    """Figures of one method and seed."""
    ranked = METHODS[name].run(run)
    figures = {p: measure(ranked.lists[p], run.task, masked=p == "seen_masked") for p in PROTOCOLS}
    return {
        "data": run.task.name,
        "method": name,
        "seed": run.seed,
        "key": _key(name, run),
        "num_users": len(run.task.test),
        "quick": run.quick,
        "figures": {p: figures[p].means for p in PROTOCOLS},
        "standard_errors": {p: figures[p].standard_errors for p in PROTOCOLS},
        "minutes": ranked.minutes,
        "parameters": ranked.parameters,
        "notes": ranked.notes,
    }


def _key(name: str, run: Run) -> str:
    settings: list[Any] = [METHODS[name].params, run.quick, len(run.task.test)]
    if name == "star":
        settings.append(star_encoder(run.quick))
    if name in ("model", "served"):
        from benchmarks.measuring.amazon_model import params_of

        settings += [run.passes or run.budget_minutes, params_of(run.quick)]
        settings += [] if run.passes is None else ["passes"]
    return artifact.sha256_json(settings)[:16]


def table(rows: list[dict[str, Any]], name: str) -> Iterator[str]:
    """Lines of one data set's table, masked and not, and what others published."""
    rows = [row for row in rows if row["data"] == name]
    quick = " (--quick: a look, not a measurement)" if any(row["quick"] for row in rows) else ""
    names = "".join(f"{'R' if m.startswith('recall') else 'N'}@{m.split('@')[1]:15s}" for m in MEASURES)
    for protocol in PROTOCOLS:
        words = protocol.replace("_", " ")
        yield f"{name}, leave-one-out, full ranking, {words}, {rows[0]['num_users']:,} users{quick}"
        yield f"{'':24s} {names}seeds  minutes  parameters"
        for method in METHODS:
            those = [row for row in rows if row["method"] == method]
            if those:
                cells = "".join(f"{_mean_se(those, protocol, measure):17s}" for measure in MEASURES)
                minutes = np.mean([row["minutes"] for row in those])
                yield f"{method:24s} {cells}{len(those):5d}  {minutes:7.1f}  {those[0]['parameters']:10,d}"
        yield ""
        gains = [row["notes"]["model_gain"][protocol] for row in rows if row["method"] == "served"]
        if gains:
            yield f"model_gain (served - the same without the model, {len(gains)} seed(s)): " + ", ".join(
                f"{name} {np.mean([g['means'][name] for g in gains]):+.4f} ± "
                f"{np.mean([g['standard_errors'][name] for g in gains]):.4f}"
                for name in ("recall@10", "ndcg@10")
            )
            yield "without_model and served learned the order of candidates from the validation items"
            yield ""
    if published := PUBLISHED.get(name):
        yield "published by others, not measured here (SASRec and S3-Rec: seen masked; the others: not stated)"
        for method, figures in published.items():
            yield f"{method:24s} " + "".join(f"{value:.4f}{'':11s}" for value in figures)


def _mean_se(rows: list[dict[str, Any]], protocol: str, measure: str) -> str:
    values = [row["figures"][protocol][measure] for row in rows]
    error = rows[0]["standard_errors"][protocol][measure]
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ± {error:.4f}"


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with items.parquet and events.parquet")
    parser.add_argument("--budget-minutes", type=float, default=90.0, help="training time of the model, each seed")
    parser.add_argument("--passes", type=int, help="passes over the log that the model trains, in place of minutes")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of what is trained")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_USERS:,} users, one seed, few steps")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not run again")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; default: its own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    task = read_leave_one_out(arguments.data)
    task = task.sample(QUICK_USERS, FIRST_SEED) if arguments.quick else task
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    for seed in range(FIRST_SEED, FIRST_SEED + (1 if arguments.quick else arguments.seeds)):
        for name in arguments.only:  # all methods of a seed: several share what was trained
            if seed > FIRST_SEED and not METHODS[name].trained:
                continue
            run = Run(task, seed, arguments.quick, arguments.budget_minutes, arguments.passes)
            where = (task.name, name, seed)
            if (*where, _key(name, run)) in {(r["data"], r["method"], r["seed"], r["key"]) for r in rows}:
                continue
            row = run_row(name, run)
            rows = [r for r in rows if (r["data"], r["method"], r["seed"]) != where] + [row]
            shown = ", ".join(f"{p} {row['figures'][p]['recall@10']:.4f}" for p in PROTOCOLS)
            print(f"{name}, seed {seed}: recall@10 {shown}, {row['minutes']:.1f} min", file=sys.stderr, flush=True)
            _write(arguments.json, rows)
    print("\n".join(table(rows, task.name)))


def _write(path: Path | None, rows: list[dict[str, Any]]) -> None:
    if path is None:
        return
    order = list(METHODS)
    report = {
        "benchmark": "amazon",
        "rows": sorted(rows, key=lambda r: (r["data"], order.index(r["method"]), r["seed"])),
        "hardware": hardware(),
        "versions": versions("numpy", "scikit-learn", "scipy", "torch", "transformers"),
    }
    artifact.replace_file(path, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
