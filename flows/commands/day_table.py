"""The table that `make day` prints: what the models reach, what was served, what it cost, where to look next."""

import io
import shlex
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from flows.commands.traffic_check import TrafficCheck
from flows.steps.registry import Entry, Registry
from flows.steps.runs import read_run
from plumline import artifact

_METHODS = {
    "model": "Plumline",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "text_knn": "text kNN",
    "knn_sum": "kNN sum",
    "star": "STAR",
    "sasrec": "SASRec",
}


@dataclass(frozen=True)
class DayTable:
    """Everything the table says. releases: the bootstrap's and the days', oldest first. user: one that the online store
    knows, for a first question."""

    releases: tuple[dict[str, Any], ...]
    traffic: TrafficCheck
    report: Path
    user: str

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "releases": list(self.releases),
            "traffic": asdict(self.traffic),
            "report": str(self.report),
            "next": [command for command, _ in self.next_commands()],
        }

    def text(self) -> str:
        """The table for people, 100 columns."""
        from rich.console import Console

        out = io.StringIO()
        console = Console(file=out, width=100, no_color=True, markup=False, emoji=False)
        for table in (self._quality(), self._releases(), self._seconds()):
            console.print(table)
            console.print()
        served = self.traffic
        console.print(
            f"served    {served.num_requests} requests, {served.num_items} items, invalid {served.num_invalid}, "
            f"degraded {served.num_degraded}, p50 {served.p50_ms:.0f} ms, p99 {served.p99_ms:.0f} ms; "
            f"{served.num_compared} answers equal to this process's"
        )
        console.print(f"report    {self.report}", soft_wrap=True)
        console.print("\nWhat now? Three commands (with .venv/bin on the PATH):\n")
        for command, meaning in self.next_commands():
            console.print(f"  {command:<38} {meaning}", soft_wrap=True)
        return out.getvalue().rstrip()

    def next_commands(self) -> list[tuple[str, str]]:
        """What a newcomer may run next, each as it is printed, and what it shows."""
        return [
            (f"plumline recommend --user {shlex.quote(self.user)}", "what the champion shows this user"),
            ("plumline status", "what has landed, which release answers, what waits"),
            ("plumline serve", "the same over HTTP, until Ctrl-C: see docs/tutorial.md"),
        ]

    def _quality(self) -> Any:
        from rich.table import Table

        scores = self.releases[0]["scores"]
        title = (
            f"Next days after {scores['as_of']}: {scores['num_queries']} user-days, {scores['num_users']} users, "
            "item level, full ranking, "
            "± standard error (R Recall, N NDCG)"
        )
        table = Table(title=title)
        for heading in ("method", "R@10 seen masked", "N@10 seen masked", "R@10 not masked", "N@10 not masked"):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        for method, name in _METHODS.items():
            figures = scores.get("methods", {}).get(method)
            if figures:
                cells = [
                    _figure(figures[p], m) for p in ("seen_masked", "not_masked") for m in ("recall@10", "ndcg@10")
                ]
                table.add_row(name, *cells)
        return table

    def _releases(self) -> Any:
        from rich.table import Table

        table = Table(title="Releases")
        rows = {
            "release": lambda r: r["release_id"],
            "gate": lambda r: r["verdict"],
            "R@10 not masked, days after": lambda r: _model_recall(r["scores"]),
            "SIDs of no item, no index": lambda r: _percent(r["scores"].get("hallucination_rate")),
            "beams miss, items/probability": lambda r: _missed(r["scores"].get("beam")),
            "invalid SIDs, constrained": lambda r: str(r["scores"].get("num_invalid", "-")),
            "items / SID uniqueness": lambda r: f"{r['sids']['num_items']} / {r['sids']['uniqueness']:.2%}",
            "collisions / largest bucket": lambda r: f"{r['sids']['collisions']} / {r['sids']['largest_bucket']}",
            "CPT tokens/s": lambda r: _speed(r["run"], "cpt"),
            "SFT tokens/s": lambda r: _speed(r["run"], "sft"),
        }
        table.add_column("")
        for release in self.releases:
            table.add_column(f"{release['kind']} {release['as_of']}", justify="right")
        for name, cell in rows.items():
            table.add_row(name, *(cell(release) for release in self.releases))
        return table

    def _seconds(self) -> Any:
        from rich.table import Table

        table = Table(title="Seconds a stage (wall, process start included)")
        stages = list(dict.fromkeys(stage for r in self.releases for stage in r["run"].get("seconds", {})))
        table.add_column("stage")
        for release in self.releases:
            table.add_column(release["as_of"], justify="right")
        for stage in stages:
            table.add_row(stage, *(_seconds(r["run"].get("seconds", {}).get(stage)) for r in self.releases))
        totals = [sum(r["run"].get("seconds", {}).values()) for r in self.releases]
        table.add_row("all", *map(_seconds, totals), end_section=True)
        return table


def day_table(home: Path, first: date, traffic: TrafficCheck, report: Path, user: str) -> DayTable:
    """Collect the table from the releases of `first` and later. user: for the first question."""
    from flows.steps.verdicts import read_verdict

    def row(entry: Entry) -> dict[str, Any]:
        folder = Registry(home).restore(entry.release_id)
        verdict = read_verdict(home, entry.release_id)
        return {
            "release_id": entry.release_id,
            "as_of": entry.as_of,
            "kind": entry.kind,
            "verdict": verdict.status if verdict else "unjudged",
            "scores": artifact.read_json(folder / "scores" / "scores.json"),
            "sids": artifact.read_json(folder / "sids" / "report.json"),
            "run": read_run(home, entry.release_id),
        }

    entries = [entry for entry in Registry(home).entries() if entry.as_of >= first.isoformat()]
    newest_first = max((n for n, e in enumerate(entries) if not e.base), default=0)
    lineage = entries[newest_first : newest_first + 1]
    for entry in entries[newest_first + 1 :]:  # days of an older lineage are another story
        if entry.base in {known.release_id for known in lineage}:
            lineage.append(entry)
    return DayTable(tuple(row(entry) for entry in lineage), traffic, report, user)


def _figure(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.4f} ± {figures[f'{name}_se']:.4f}"


def _model_recall(scores: dict[str, Any]) -> str:
    """A release without a landed day after it was not scored."""
    model = scores.get("methods", {}).get("model")
    return _figure(model["not_masked"], "recall@10") if model else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _missed(certificate: dict[str, Any] | None) -> str:
    """A release of before there were certificates, or scored without, has none."""
    return "-" if certificate is None else f"{certificate['missed_items']:.2%} / {certificate['missed_mass']:.2%}"


def _speed(run: dict[str, Any], stage: str) -> str:
    speed = run.get("throughput", {}).get(stage, {}).get("tokens_per_s")
    return f"{speed:,.0f}" if speed else "-"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
