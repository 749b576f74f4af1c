"""`plumline sids report`: what the Semantic IDs of a release are worth, for people, for scripts, and as a page."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.steps.registry import Registry
from plumline import artifact
from plumline.errors import RefusedError
from serving.pointers import read_pointer

if TYPE_CHECKING:
    from monitoring.sid_report import SidReport

_NUM_SHOWN = 5
_MAX_CHILDREN_JSON = 64
"""Second codes of a first one in --json: all of them, but for a catalogue of a million items."""


@dataclass(frozen=True)
class SidAnswer:
    """A report, ready to print. page: where it was drawn, None if it was not."""

    report: "SidReport"
    page: Path | None

    def to_json(self) -> dict[str, Any]:
        """All figures, and the atlas with every first code and at most 64 second codes of each."""
        return self.report.to_json()

    def lines(self) -> list[str]:
        """For people, 100 columns."""
        from rich.console import Console

        from monitoring.sid_page import number, percent, short, whole

        report, figures = self.report, self.report.figures
        out = io.StringIO()
        console = Console(file=out, width=100, no_color=True, markup=False, emoji=False, highlight=False)
        console.print(f"release         {report.release_id}, {whole(figures['num_items'])} items as of {report.as_of}")
        console.print(
            f"unique          {percent(figures['uniqueness'])}"
            + (f", with the tie-break {percent(figures['uniqueness_with_tie_break'])}" if report.tie_break else "")
        )
        console.print(
            f"collisions      {whole(figures['collisions'])} items, at most {whole(figures['largest_bucket'])} on a SID"
        )
        found = [f"{short(name)} {number(value)}" for name, value in (report.reconstruction or {}).items()]
        console.print(f"reconstruction  {', '.join(found) or '–'} (share of variance unexplained)")
        for measure in (report.co_occurrence, report.purity):
            if measure["why"]:
                console.print(f"left out        {measure['why']}", soft_wrap=True)
        console.print("\nCodes, and how often a shared prefix agrees (× chance)")
        console.print(self._levels())
        for title, table in self._tables():
            console.print(f"\n{title}")
            console.print(table)
        lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
        return [*lines, *([f"\npage            {self.page}"] if self.page else [])]

    def _levels(self) -> Any:
        from monitoring.sid_page import level_names, number, percent, times

        report = self.report
        table = _table("level", "in use", "perplexity", "gini")
        measures = {"taken together": report.co_occurrence["levels"]}
        measures |= {f"same {kind}": found["levels"] for kind, found in (report.purity["kinds"] or {}).items()}
        measures = {name: levels for name, levels in measures.items() if levels}
        for name in measures:
            table.add_column(name, justify="right", no_wrap=True)
        churned = {row["level"]: row["items"] for row in (report.churn or {}).get("after", [])}
        if churned:
            table.add_column("moved", justify="right")
        for row, (name, level) in enumerate(zip(level_names(report), report.levels, strict=True)):
            cells = [name, f"{level['used']}/{level['size']}", number(level["perplexity"]), number(level["gini"])]
            for levels in measures.values():
                cells.append(percent(levels[row]["share"]) + times(levels[row]["lift"]))
            if churned:
                cells.append(percent(churned.get(level["level"])))
            table.add_row(*cells)
        return table

    def _tables(self) -> list[tuple[str, Any]]:
        from monitoring.sid_page import short, whole

        found = []
        titles = {"sid": "Largest sets of one full SID", "prefix": "Largest sets of all codes but the last"}
        for key, title in titles.items():
            table = _table("SID", "items", "who")
            for bucket in self.report.buckets[key][:_NUM_SHOWN]:
                who = "; ".join(short(item["title"] or item["item_id"], 40) for item in bucket["items"][:3])
                table.add_row(bucket["sid"], whole(bucket["num_items"]), who)
            if table.row_count:
                found.append((title, table))
        table = _table("first code", "items", "named by")
        for prefix in self.report.atlas["prefixes"][: 2 * _NUM_SHOWN]:
            table.add_row(prefix["sid"], whole(prefix["num_items"]), short(", ".join(prefix["words"]), 70))
        if table.row_count:
            found.append(("Largest first codes", table))
        return found


def report_sids(home: Path, *, release_id: str | None, page: Path | None, whole: bool) -> SidAnswer:
    """Measure a release (None: the champion) and draw its page.

    whole: for JSON; a larger atlas, and a page only if `page` names one.
    Raises RefusedError if there is no champion, InputError for a release that the registry lacks.
    """
    if release_id is None:
        pointer = read_pointer(home / "releases")
        if pointer is None:
            raise RefusedError("no champion whose SIDs could be looked at; run plumline bootstrap first")
        release_id = pointer.release_id
    folder = Registry(home).restore(release_id)

    from monitoring.sid_page import MAX_CHILDREN, MAX_PREFIXES, write_sid_page
    from monitoring.sid_report import gather_sid_report
    from serving.release import Release

    histories: Path | None = home / "artifacts" / "histories"
    if not (home / "artifacts" / "histories" / artifact.MANIFEST).exists():
        histories = None
    report = gather_sid_report(
        Release.load(folder),
        histories,
        max_prefixes=None if whole else MAX_PREFIXES,
        max_children=_MAX_CHILDREN_JSON if whole else MAX_CHILDREN,
    )
    if page is None and not whole:
        page = home / ".plumline" / "reports" / "sids" / f"{report.release_id}.html"
    return SidAnswer(report, write_sid_page(page, report) if page else None)


def _table(*headings: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        left = heading in ("level", "SID", "who", "first code", "named by")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading in ("SID", "first code"))
    return table
