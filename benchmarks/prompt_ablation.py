"""What does each part of the prompt and of the targets pay? Parts in and out, one at a time, everything else alike.

run   python benchmarks/prompt_ablation.py [--data DIR] [--as-of DATE] [--seeds 17 18 19] [--variants NAME …]
          [--eval-days 14] [--queries 1500] [--map NAME=COLUMN …] [--recipe FILE] [--json FILE] [--cache DIR] [--quick]

Every variant is a change of the recipe (VARIANTS); `as it is` is the recipe. What a log has no column for is left out.
A variant's vocabulary, corpus, continued pre-training, fine-tuning and ranker are made anew, the stages before them
once. Asked are the users of the days after --as-of, item level, full ranking over live items, seen items masked and
not. Of each variant: recall@10 of the model's beams alone and of what is served, less those of the variant beside it
(`as it is`, or one that differs in this thing alone) with the same seed, ± the standard error of the difference, paired
by user (over seeds: of their mean); model_gain (served less the same ranker without the model); and what it costs:
places or tokens of a prompt (mean), seconds of training.

--json: a row a variant and seed; rows that it holds are not run again. --cache keeps the homes. --quick: one seed, few
steps, 200 user-days (minutes): does it run?
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from benchmarks.measuring.home import QUICK_STEPS, Home, add_log_arguments, read_log  # noqa: E402
from features.catalog import Catalog  # noqa: E402
from models.evaluation.queries import Ruler  # noqa: E402
from models.evaluation.ranked_lists import Ranked  # noqa: E402
from models.language.words import read_profiles  # noqa: E402
from models.ranking.ranker import METHODS  # noqa: E402
from models.retrieval.held_out import NEXT_DAY, PROTOCOLS, read_lists, read_sample  # noqa: E402
from models.retrieval.retriever import Retriever  # noqa: E402
from plumline import artifact  # noqa: E402
from plumline.errors import InputError  # noqa: E402
from plumline.stage import hash_seed, read_recipe  # noqa: E402

QUICK_QUERIES, PLAIN = 200, "as it is"
Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """changes: section → key → value. needs: (table, column) without a value of which nothing would change. beside: the
    variant that it is compared with, which differs in this one thing."""

    changes: Changes
    needs: tuple[str, str] | None = None
    beside: str = PLAIN


SPELLED_OUT: Changes = {
    "vocabulary": {"item_places": False},
    "corpus": {"day_targets": 8, "taught_targets": 2},
    "cpt": {"model": {"layers": 4}},
    "sft": {"steps": 2000, "loop": {"dropout": 0.0}},
}
"""SIDs token by token, as `recipes/cpu_tiny_tokens.yaml` has it: about the same minutes."""


def spelled_out(**changes: Mapping[str, Any]) -> Changes:
    """`SPELLED_OUT`, and more changes of its sections."""
    sections = dict.fromkeys([*SPELLED_OUT, *changes])
    return {section: {**SPELLED_OUT.get(section, {}), **changes.get(section, {})} for section in sections}


VARIANTS: dict[str, Variant] = {
    PLAIN: Variant({}),
    "no user": Variant({"vocabulary": {"template": ["history", "context"]}}),
    "history of 25": Variant({"vocabulary": {"max_history": 25}}),
    "history of 100": Variant({"vocabulary": {"max_history": 100}}),
    "one gap": Variant({"vocabulary": {"num_gaps": 1}}),
    "channels": Variant({"vocabulary": {"history_features": ["channel"]}}, ("items", "channel")),
    "watch ratios": Variant({"vocabulary": {"history_features": ["watch_ratio"]}}, ("events", "watch_ratio")),
    "watch times": Variant({"vocabulary": {"history_features": ["watch_time_s"]}}, ("events", "watch_time_s")),
    "quantities": Variant({"vocabulary": {"history_features": ["quantity"]}}, ("events", "quantity")),
    "prices": Variant({"vocabulary": {"history_features": ["price"]}}, ("events", "price")),
    "a day's items": Variant({"corpus": {"day_targets": 8}}),
    "horizon 3 days": Variant({"corpus": {"day_targets": 8, "target_days": 3}}, beside="a day's items"),
    "taught": Variant({"corpus": {"taught_targets": 2}}),
    "no pairs": Variant({"sft": {"head": {"prefix_rows": 0}}}),
    "spelled out": Variant(SPELLED_OUT),
    "spelled out, no context": Variant(spelled_out(vocabulary={"template": ["history", "user"]}), beside="spelled out"),
    "spelled out, context title": Variant(
        spelled_out(vocabulary={"context_features": ["title"]}), ("items", "title"), beside="spelled out"
    ),
    "spelled out, prices": Variant(
        spelled_out(vocabulary={"history_features": ["price"]}), ("events", "price"), beside="spelled out"
    ),
    "spelled out, watch ratios": Variant(
        spelled_out(vocabulary={"history_features": ["watch_ratio"]}), ("events", "watch_ratio"), beside="spelled out"
    ),
}


def has_values(tables: Mapping[str, pa.Table], needs: tuple[str, str] | None) -> bool:
    """Whether a log has anything to say in the column that a variant is about."""
    if needs is None:
        return True
    table = tables.get(needs[0])
    if table is None or needs[1] not in table.column_names:
        return False
    return table.column(needs[1]).null_count < table.num_rows


def make_home(arguments: argparse.Namespace, folder: Path, changes: Changes, seed: int) -> Home:
    """The home of a seed, told to make a variant next."""
    tables = read_log(arguments.data, arguments.map)
    queries = QUICK_QUERIES if arguments.quick else arguments.queries
    told: dict[str, dict[str, Any]] = {
        "events": {"horizon_days": arguments.eval_days},
        "histories": {"eval_days": arguments.eval_days},
        "ranker": {"leave_one_out_queries": 0, "max_queries": queries},
    }
    for section, values in [*(QUICK_STEPS.items() if arguments.quick else ()), *changes.items()]:
        known = read_recipe(arguments.recipe).get(section) or {}
        merged = {k: {**(known.get(k) or {}), **v} if isinstance(v, dict) else v for k, v in values.items()}
        told[section] = {**told.get(section, {}), **merged}
    return Home.make(
        folder / f"{arguments.data.resolve().name}-{seed}",
        tables["items"],
        tables["events"],
        tables.get("users"),
        recipe=arguments.recipe,
        changes=told,
        as_of=arguments.as_of,
        seed=seed,
    )


def read_ranked(home: Home, seed: int, path: Path) -> Ranked:
    """The lists of a variant. path: folder with lists.parquet."""
    about = artifact.read_json(home.artifact("ranker") / "report.json")
    return Ranked.of(NEXT_DAY, read_sample(home.artifact("histories"), about["max_queries"], seed), read_lists(path))


def run(arguments: argparse.Namespace, folder: Path, name: str, seed: int) -> dict[str, Any]:
    """One variant and seed: run the stages, measure, keep its lists for those that are compared with it."""
    variant = VARIANTS[name]
    beside = make_home(arguments, folder, {}, seed).folder / variant.beside.replace(" ", "_")
    if name != variant.beside and not beside.exists():
        run(arguments, folder, variant.beside, seed)
    home = make_home(arguments, folder, variant.changes, seed)
    seconds = home.run("ranker")
    ranked = read_ranked(home, seed, home.artifact("ranker"))
    ruler = Ruler(hash_seed(seed, "bootstrap"), 1000)
    row = {
        "figures": ranked.measure(ruler),
        "model_gain": ranked.served_minus(ruler)["without_model"],
        "seconds": {stage: seconds[stage] for stage in ("corpus", "cpt", "sft", "ranker")},
        "prompt_tokens": mean_prompt(home, ranked),
    }
    kept = home.folder / name.replace(" ", "_")
    kept.mkdir(exist_ok=True)
    shutil.copy(home.artifact("ranker") / "lists.parquet", kept)
    if name == variant.beside:
        return row
    other = read_ranked(home, seed, beside)
    row["minus"] = {
        method: {
            p: ruler.compare(task.queries, ranked.lists[method][p], other.lists[method][p], task.relevant)
            for p, task in ranked.tasks.items()
        }
        for method in METHODS
    }
    return row


def mean_prompt(home: Home, ranked: Ranked) -> float:
    """Places or tokens of a prompt, mean over the held-out requests."""
    parts = {name: home.artifact(name) for name in ("vocabulary", "sids", "index", "catalog")}
    weights = home.artifact("sft") / "weights"
    retriever = Retriever.load(weights=weights, device="cpu", **parts)  # type: ignore[arg-type]
    profiles = read_profiles(Catalog.load(home.artifact("catalog")))
    queries = ranked.tasks["not_masked"].queries
    lengths = [len(retriever.prompt(one.request(profiles.get(one.user_id, {}))).read) for one in queries]
    return float(np.mean(lengths))


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A variant a line: means over its seeds."""
    for protocol in PROTOCOLS:
        yield f"{protocol.replace('_', ' ')}: recall@10; − is the variant beside it, same seed, paired by user"
        titles = ("model", "model −", "served", "served −", "model gain")
        yield f"{'':26s}{'seeds':>6s}{'tokens':>8s}{'cpt+sft':>9s}" + "".join(f"{title:>20s}" for title in titles)
        for name in dict.fromkeys(row["variant"] for row in rows):
            own = [row for row in rows if row["variant"] == name]
            told = [row for row in own if "minus" in row]
            cells = []
            for method in ("model", "served"):
                cells.append(pooled([row["figures"][method][protocol] for row in own]))
                cells.append(pooled([row["minus"][method][protocol] for row in told]))
            cells.append(pooled([row["model_gain"][protocol] for row in own]))
            tokens = np.mean([row["prompt_tokens"] for row in own])
            trained = np.mean([row["seconds"]["cpt"] + row["seconds"]["sft"] for row in own])
            yield f"{name:26s}{len(own):6d}{tokens:8.1f}{trained:8.0f}s" + "".join(f"{cell:>20s}" for cell in cells)
        yield ""


def pooled(figures: Sequence[Mapping[str, float]]) -> str:
    """Mean over seeds, and its standard error: the users are the same, so errors over users stay whole."""
    if not figures:
        return "-"
    values, errors = (np.array([one[f"recall@10{tail}"] for one in figures]) for tail in ("", "_se"))
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{values.mean():+.4f} ± {np.hypot(errors.mean(), spread):.4f}"


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_log_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19], help="of everything that is drawn")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help="of VARIANTS, by name")
    parser.add_argument("--eval-days", type=int, default=14, help="days after --as-of that are asked")
    parser.add_argument("--queries", type=int, default=1500, help="user-days asked, at most")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not run again")
    parser.add_argument("--quick", action="store_true", help=f"one seed, few steps, {QUICK_QUERIES} user-days")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.variants if name not in VARIANTS]:
        raise InputError(f"--variants {unknown[0]!r}: there are {', '.join(map(repr, VARIANTS))}")
    log = read_log(arguments.data, arguments.map)
    named = [name for name in arguments.variants if has_values(log, VARIANTS[name].needs)]
    # what others are compared with is measured before them
    names = list(dict.fromkeys([PLAIN, *(one for name in named for one in (VARIANTS[name].beside, name))]))
    told = {"data": arguments.data.resolve().name, "as_of": arguments.as_of.isoformat(), "quick": arguments.quick}
    told |= {"eval_days": arguments.eval_days, "recipe": artifact.sha256_file(arguments.recipe)[:16]}
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    with nullcontext(arguments.cache) if arguments.cache else tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds[:1] if arguments.quick else arguments.seeds:
            for name in names:
                about = {"variant": name, "seed": seed, "changes": VARIANTS[name].changes, **told}
                if any(about.items() <= row.items() for row in rows):
                    continue
                rows.append({**about, **run(arguments, Path(folder), name, seed)})
                if arguments.json:
                    report = {"benchmark": "prompt_ablation", "rows": rows, "hardware": hardware()}
                    report["versions"] = versions("numpy", "torch", "lightgbm", "transformers")
                    artifact.replace_file(arguments.json, json.dumps(report, indent=1) + "\n")
    print(f"{told['data']}, {told['eval_days']} days after {told['as_of']}")
    print("\n".join(table([row for row in rows if told.items() <= row.items() and row["variant"] in names])))


if __name__ == "__main__":
    main()
