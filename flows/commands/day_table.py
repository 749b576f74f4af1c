"""The tables that `make day` prints: what is served and its rivals, what the model adds, what it cost, what is next.

Figures are of the bootstrap, since it alone trains every rival; the releases after it have a line each.
"""

import io
import shlex
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from flows.commands.traffic_check import TrafficCheck
from flows.steps.registry import Entry, Registry
from flows.steps.runs import read_run
from monitoring.methods import (
    LEGEND,
    MODEL,
    PROTOCOL_WORDS,
    PROTOCOLS,
    SERVED,
    WITHOUT_MODEL,
    Measure,
    Protocol,
    gain_in_words,
    label,
    methods_of,
    model_gain,
    number,
    served_method,
)
from plumline import artifact

_MEASURES: dict[Measure, str] = {"recall@10": "R@10", "ndcg@10": "N@10"}
_SLICES = {"items/new": "new items", "items/tail": "tail items", "history/cold": "cold users"}
_SLICED = (SERVED, WITHOUT_MODEL, MODEL, "memory", "own", "sasrec")
"""Methods whose slices are shown: what is served, its parts, and the strongest rival that learns."""


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
        scores = self.releases[0]["scores"]
        console.print(_next_days(scores))
        for line in _in_words(scores):
            console.print(line)
        console.print()
        for table in (_slices(scores), _last_events(scores), self._releases(), self._seconds()):
            if table is not None:
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

    def _releases(self) -> Any:
        from rich.table import Table

        table = Table(title="Releases")
        rows = {
            "release": lambda r: r["release_id"],
            "gate": lambda r: r["verdict"],
            "served, R@10 not masked": lambda r: _figure(
                r["scores"], served_method(r["scores"]), "not_masked", "recall@10"
            ),
            "model gain, R@10 not masked": lambda r: str(model_gain(r["scores"], "not_masked") or "-"),
            "astray without index (levels)": lambda r: _astray(r["scores"]),
            "beams miss, items/probability": lambda r: _missed(r["scores"].get("beam")),
            "invalid items in lists": lambda r: str(r["scores"].get("num_invalid", "-")),
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


def _next_days(scores: dict[str, Any]) -> Any:
    from rich.table import Table

    title = (
        f"Next days after {scores['as_of']}: {scores['num_queries']} user-days, {scores['num_users']} users\n"
        "item level, full ranking, ± standard error (R Recall, N NDCG)"
    )
    return _compared(Table(title=title), scores)


def _last_events(scores: dict[str, Any]) -> Any:
    """Leave-one-out, which benchmarks of sequential recommendation ask for; None if it was not measured."""
    from rich import box
    from rich.table import Table

    asked = scores.get("leave_one_out", {})
    if not asked.get("num_queries"):
        return None
    title = f"Leave-one-out: the last event of these days, of {asked['num_queries']} users known up to it"
    return _compared(Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False), asked)


def _compared(table: Any, scores: dict[str, Any]) -> Any:
    """A row a method, and what the language model adds."""
    columns = [(protocol, measure) for protocol in PROTOCOLS for measure in _MEASURES]
    table.add_column("method")
    for protocol, measure in columns:
        table.add_column(f"{_MEASURES[measure]} {PROTOCOL_WORDS[protocol]}", justify="right")
    names = methods_of(scores)
    for method in names:
        cells = [_figure(scores, method, protocol, measure) for protocol, measure in columns]
        table.add_row(label(scores, method), *cells, end_section=method == names[-1])
    if served_method(scores) == SERVED:
        table.add_row("model gain", *(str(model_gain(scores, p, m) or "-") for p, m in columns))
    return table


def _in_words(scores: dict[str, Any]) -> list[str]:
    """What the names and the model gain mean; nothing of a release without a ranker."""
    if served_method(scores) != SERVED:
        return []
    gains = {protocol: model_gain(scores, protocol) for protocol in PROTOCOLS}
    said = [f"{words[0].upper()}{words[1:]}." for p, gain in gains.items() if (words := gain_in_words(gain, p))]
    return [*said, "model gain: served minus without model, paired by user.", LEGEND]


def _slices(scores: dict[str, Any]) -> Any:
    """New and rare items, new users, and how much of the catalogue is shown; None of a release without a ranker."""
    from rich.table import Table

    by_method = scores.get("method_slices")
    if not by_method:
        return None
    table = Table(title="R@10 seen masked / not masked by kind of item and user (queries), and how much is shown")
    table.add_column("method")
    for name, words in _SLICES.items():
        asked = (by_method.get(SERVED, {}).get(name, {}).get(p, {}).get("num_queries", 0) for p in PROTOCOLS)
        table.add_column(f"{words}\n({' / '.join(f'{num:,}' for num in asked)})", justify="right")
    table.add_column("coverage", justify="right")
    table.add_column("effective\nvocabulary", justify="right")
    for method in (method for method in methods_of(scores) if method in _SLICED):
        cells = [
            " / ".join(_short(number(by_method, method, name, p, "recall@10")) for p in PROTOCOLS) for name in _SLICES
        ]
        coverage, vocabulary = (number(scores, "shown", method, key) for key in ("coverage", "effective_vocabulary"))
        shown = "-" if vocabulary is None else f"{vocabulary:,.0f}"
        table.add_row(label(scores, method), *cells, _percent(coverage), shown)
    return table


def _figure(scores: dict[str, Any], method: str, protocol: Protocol, measure: Measure) -> str:
    """A release without a landed day after it was not scored, a protocol may have had no query."""
    value, error = (number(scores, "methods", method, protocol, key) for key in (measure, f"{measure}_se"))
    return "-" if value is None else f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _astray(scores: dict[str, Any]) -> str:
    """Share of the model's probability on no live item's SID, and at which level it leaves them."""
    levels = ", ".join(f"{100 * share:.1f}" for share in scores.get("hallucination_by_level", []))
    return _percent(scores.get("hallucination_rate")) + (f" ({levels})" if levels else "")


def _missed(certificate: dict[str, Any] | None) -> str:
    """A release of before there were certificates, or scored without, has none."""
    return "-" if certificate is None else f"{certificate['missed_items']:.2%} / {certificate['missed_mass']:.2%}"


def _speed(run: dict[str, Any], stage: str) -> str:
    speed = run.get("throughput", {}).get(stage, {}).get("tokens_per_s")
    return f"{speed:,.0f}" if speed else "-"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
