"""The Semantic IDs of a release as one page to read: plots, the atlas, who collides. No script, no server, no network.

Whatever came from outside (titles, words, item ids) is escaped, and its length is bounded.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from monitoring.sid_plots import BarChart, Curve, bar_chart, rank_curve
from monitoring.sid_report import SidReport
from plumline import artifact

MAX_PREFIXES = 60
MAX_CHILDREN = 8
MAX_BUCKETS = 10
_HISTOGRAM_EDGES = (1, 2, 3, 4, 5, 9, 17, 33, 65, 129, 257)

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:66rem;padding:0 1rem;color:#1c2330;background:#fff}
h1{margin:0;font-size:1.6rem}h2{margin:2.4rem 0 .3rem;font-size:1.15rem}h3{margin:0;font-size:.95rem}
p{margin:.3rem 0 .7rem;max-width:52rem}small,.note,.none{color:#556}.note{font-size:.85rem}
table{border-collapse:collapse;width:100%;margin:.4rem 0 1rem}
td,th{padding:.25rem .6rem;border-bottom:1px solid #dde2ea;text-align:left;vertical-align:top;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:.86em ui-monospace,monospace;color:#2a4f9e;white-space:nowrap}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}
.tile{border:1px solid #dde2ea;border-radius:.4rem;padding:.5rem .9rem;min-width:8.5rem;flex:1}
.tile b{display:block;font-size:1.45rem;font-variant-numeric:tabular-nums}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:1rem 1.6rem;margin:.8rem 0}
.plots.wide{grid-template-columns:repeat(auto-fill,minmax(26rem,1fr))}
figure{margin:0}svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif;fill:#1c2330}
.plots:not(.wide) svg{font-size:13px;max-width:26rem}
.s0{fill:#3867c8}.s1{fill:#b4bfd0}.s2{fill:#d98b2b}.s3{fill:#eccb9a}
.key{display:inline-block;width:.7rem;height:.7rem;margin:0 .3rem 0 .8rem;border-radius:.15rem;vertical-align:-1px}
.key:first-child{margin-left:0}.key.s0{background:#3867c8}.key.s1{background:#b4bfd0}.key.s2{background:#d98b2b}
.key.s3{background:#eccb9a}.line{fill:none;stroke:#3867c8;stroke-width:1.6}.area{fill:#3867c8;opacity:.12}
.even{stroke:#8592a6;stroke-dasharray:4 3}.axis{stroke:#c3cad6}.tick{fill:#556}
details{border-bottom:1px solid #e7ebf1;padding:.3rem 0}details details{border:0;margin-left:1.3rem;padding:.12rem 0}
summary{cursor:pointer}summary code{display:inline-block;min-width:4.2rem}details details code{min-width:7.5rem}
summary .n{display:inline-block;min-width:4.5rem;text-align:right;color:#556;
font-variant-numeric:tabular-nums;margin:0 .6rem}ul{margin:.15rem 0 .3rem 1.3rem;padding-left:1rem;color:#39434f;
font-size:.92em}footer{margin:2.5rem 0 1rem}
"""

_TEMPLATE = """{% macro bars(c) %}<figure><h3>{{ c.title }}</h3>
{% if c.series|length > 1 %}<div class="note">{% for s in c.series %}<span class="key s{{ loop.index0 }}"></span>{{ s }}
{% endfor %}</div>{% endif %}
<svg viewBox="0 0 480 {{ c.height }}" role="img" aria-label="{{ c.title }}">
<line class="axis" x1="96" x2="96" y1="0" y2="{{ c.height }}"/>
{% for y, name in c.labels %}<text x="88" y="{{ y + 4 }}" text-anchor="end">{{ name }}</text>{% endfor %}
{% for b in c.bars %}<rect class="s{{ b.series }}" x="96" y="{{ b.y + 1 }}" width="{{ b.width }}" height="11"/>
<text class="tick" x="{{ 101 + b.width }}" y="{{ b.y + 10 }}">{{ b.text }}</text>{% endfor %}</svg>
{% if c.note %}<div class="note">{{ c.note }}</div>{% endif %}</figure>{% endmacro %}
{% macro curve(c) %}<figure><h3>{{ c.title }}</h3><svg viewBox="0 0 320 150" role="img" aria-label="{{ c.title }}">
<polygon class="area" points="40,128 {{ c.points }} 312,128"/><polyline class="line" points="{{ c.points }}"/>
<line class="even" x1="40" x2="312" y1="{{ c.even }}" y2="{{ c.even }}"/>
<line class="axis" x1="40" x2="312" y1="128" y2="128"/>
<g class="tick"><text x="35" y="16" text-anchor="end">{{ c.top }}</text><text x="35" y="132" text-anchor="end">0</text>
<text x="40" y="144">rank 1</text><text x="312" y="144" text-anchor="end">{{ c.last }}</text></g></svg>
<div class="note">{{ c.note }}</div></figure>{% endmacro %}
{% macro items(rows) %}<ul>{% for i in rows %}<li>{{ short(i.title) or "(no title)" }} <small>{{ short(i.item_id) }}
{%- if i.retired %}, retired{% endif %}</small></li>{% endfor %}</ul>{% endmacro %}
{% macro buckets(rows) %}<table><tr><th>SID</th><th class="n">items</th><th>who</th></tr>
{% for b in rows %}<tr><td><code>{{ b.sid }}</code></td><td class="n">{{ whole(b.num_items) }}</td>
<td>{% for i in b["items"] %}{{ short(i.title, 160) or "(no title)" }} <small>{{ short(i.item_id) }}
{%- if i.retired %}, retired{% endif %}</small>{% if not loop.last %}<br>{% endif %}{% endfor %}
{% if b.num_items > b["items"]|length %}<br><small>and {{ whole(b.num_items - b["items"]|length) }} more</small>
{% endif %}</td></tr>{% endfor %}</table>{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Semantic IDs of {{ r.release_id }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{ style }}</style></head><body>
<h1>Semantic IDs of {{ r.release_id }}</h1>
<p>{{ whole(r.figures.num_items) }} items known on {{ r.as_of }}; levels of {{ r.space.sizes|join(" × ") }} codes
{%- if r.tie_break %}, the last one the tie-break digit{% endif %}.</p>
<div class="tiles">{% for name, value in tiles %}<div class="tile"><b>{{ value }}</b>{{ name }}</div>{% endfor %}</div>

<h2>How the codes are used</h2>
<p>Items of every code, the most used first. A flat curve is even use; where it meets the floor, codes lie idle.
The dashed line is what each code would hold if all held the same.</p>
<div class="plots">{% for c in curves %}{{ curve(c) }}{% endfor %}</div>
<table><tr><th>level</th><th class="n">codes</th><th class="n">in use</th><th class="n">usage</th>
<th class="n">perplexity</th><th class="n">gini</th></tr>
{% for l in r.levels %}<tr><td>{{ level_names[loop.index0] }}</td><td class="n">{{ whole(l.size) }}</td>
<td class="n">{{ whole(l.used) }}</td><td class="n">{{ percent(l.usage) }}</td><td class="n">{{ number(l.perplexity) }}
</td><td class="n">{{ number(l.gini) }}</td></tr>{% endfor %}</table>

<h2>What a shared prefix means</h2>
<p>Items whose SIDs begin alike should belong together. Each figure stands beside what chance would give.</p>
<div class="plots wide">{% for c in charts %}{{ bars(c) }}{% endfor %}</div>
{% for why in missing %}<p class="none">{{ why }}</p>{% endfor %}
{% if churn %}<h2>What the last retraining moved</h2>
<p>Share of the {{ whole(r.churn.num_known) }} items of both tables whose first codes changed, before and after the new
codes got the old names.</p><div class="plots wide">{% for c in churn %}{{ bars(c) }}{% endfor %}</div>{% endif %}

<h2>Who shares a SID</h2>
<div class="plots wide">{{ bars(histogram) }}</div>
{% if r.buckets.sid %}<h3>The largest sets of items behind one full SID</h3>
<p class="note">To the model they are one: it cannot prefer one of them to another.</p>
{{ buckets(r.buckets.sid[:max_buckets]) }}{% else %}<p>Every item has a full SID of its own.</p>{% endif %}
{% if r.buckets.prefix %}<h3>The largest sets of items that share all codes but the last</h3>
{{ buckets(r.buckets.prefix[:max_buckets]) }}{% endif %}

<h2>Atlas</h2>
<p>The first two codes: how many items begin with them, the words that name them (frequent there, rare elsewhere; of a
second code those that the first does not say already), and examples.
{% if r.atlas.num_prefixes > atlas|length %}Shown are the {{ atlas|length }} largest of
{{ whole(r.atlas.num_prefixes) }} first codes; <code>plumline sids report --json</code> has all.{% endif %}</p>
{% for p in atlas %}<details{% if loop.first %} open{% endif %}><summary><code>{{ p.sid }}</code>
<span class="n">{{ whole(p.num_items) }}</span>{{ words(p.words) }}</summary>{{ items(p.examples) }}
{% for c in p.children %}<details><summary><code>{{ c.sid }}</code><span class="n">{{ whole(c.num_items) }}</span>
{{- words(c.words) }}</summary>{{ items(c.examples) }}</details>
{% endfor %}{% if p.num_children > p.children|length %}<details><summary class="none">
{{ whole(p.num_children - p.children|length) }} smaller second codes left out</summary></details>{% endif %}</details>
{% else %}<p class="none">There are no items.</p>{% endfor %}
<footer><small>Made by <code>plumline sids report</code> from the sealed release; <code>--json</code> prints the same
figures.</small></footer></body></html>
"""


def write_sid_page(path: Path, report: SidReport) -> Path:
    """Draw a report into one file, by one rename; an older one is replaced."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    names = level_names(report)
    html = template.render(
        r=report,
        style=_STYLE,
        tiles=_tiles(report),
        level_names=names,
        curves=_curves(report, names),
        charts=_charts(report),
        missing=_missing(report),
        churn=_churn(report),
        histogram=_histogram(report),
        atlas=[_bounded(prefix) for prefix in report.atlas["prefixes"][:MAX_PREFIXES]],
        max_buckets=MAX_BUCKETS,
        words=lambda found: short(", ".join(found), 140) or "(no words of its own)",
        whole=whole,
        percent=percent,
        number=number,
        short=short,
    )
    artifact.replace_file(path, html.lstrip())
    return path


def level_names(report: SidReport) -> list[str]:
    """What each level is called."""
    names = [f"level {level['level']}" for level in report.levels]
    return [*names[:-1], "tie-break"] if report.tie_break else names


def short(text: str | None, limit: int = 90) -> str:
    """One line of text from outside, its length bounded, without characters that could redraw the line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split())
    return plain if len(plain) <= limit else plain[: limit - 1].rstrip() + "…"


def whole(value: float | None) -> str:
    """A count."""
    return "–" if value is None else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share, with enough digits to tell small ones apart."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}%" if share >= 0.0995 or share == 0 else f"{100 * share:.3g}%"


def number(value: float | None) -> str:
    """A figure of four digits."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def times(lift: float | None) -> str:
    """How many times chance."""
    return "" if lift is None else f" (× {lift:,.0f})" if lift >= 9.95 else f" (× {lift:.1f})"


def _tiles(report: SidReport) -> list[tuple[str, str]]:
    figures = report.figures
    tiles = [("unique SIDs", _share(figures["uniqueness"]))]
    if report.tie_break:
        tiles = [
            ("unique before the tie-break", _share(figures["uniqueness"])),
            ("unique with the tie-break", _share(figures["uniqueness_with_tie_break"])),
        ]
    tiles += [("items that collide", whole(figures["collisions"]))]
    return [*tiles, ("items behind one SID at most", whole(figures["largest_bucket"]))]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _curves(report: SidReport, names: Sequence[str]) -> list[Curve]:
    found = []
    for name, level, counts in zip(names, report.levels, report.curves, strict=True):
        note = f"{whole(level['used'])} of {whole(level['size'])} codes, perplexity {number(level['perplexity'])}"
        found.append(rank_curve(name, note, counts))
    return found


def _charts(report: SidReport) -> list[BarChart]:
    charts = []
    together = report.co_occurrence
    if together["levels"] is not None:
        note = (
            f"{whole(together['num_pairs'])} pairs, seen {whole(together['weight'])} times, up to {together['as_of']}"
        )
        note += "." if together["of_this_release"] else "; of another run than this release's."
        charts.append(_against("Items taken together share their first codes", note, together["levels"]))
    for kind, found in (report.purity["kinds"] or {}).items():
        note = (
            f"{whole(found['num_items'])} items of {whole(found['num_categories'])} {kind}s; a mean over items that "
            "share their first codes with another."
        )
        charts.append(_against(f"Items of one prefix are of one {kind}", note, found["levels"]))
    if report.reconstruction:
        rows = [(short(name, 15), [value]) for name, value in sorted(report.reconstruction.items())]
        title, note = "Variance that the codes leave unexplained", "Less is better; 100% is what the mean alone leaves."
        texts = [[percent(value)] for _, (value,) in rows]
        charts.append(bar_chart(title, note, ("unexplained",), rows, texts, longest=1.0))
    return charts


def _against(title: str, note: str, levels: Sequence[Mapping[str, Any]]) -> BarChart:
    names = _prefix_names(len(levels))
    rows = [(name, (level["share"], level["by_chance"])) for name, level in zip(names, levels, strict=True)]
    texts = [[percent(level["share"]) + times(level["lift"]), percent(level["by_chance"])] for level in levels]
    return bar_chart(title, note, ("share", "by chance"), rows, texts)


def _prefix_names(num_levels: int, full: bool = True) -> list[str]:
    """What the first 1, 2 … codes are called. full: whether the last of them is the whole SID."""
    names = ["first code", *(f"first {level} codes" for level in range(2, num_levels + 1))][:num_levels]
    return [*names[:-1], "full SID"] if full and names else names


def _missing(report: SidReport) -> list[str]:
    found = []
    if report.co_occurrence["levels"] is None:
        found.append(f"Agreement of items taken together is not measured: {report.co_occurrence['why']}.")
    if report.purity["kinds"] is None:
        found.append(f"Purity by category is not measured: {report.purity['why']}.")
    if not report.reconstruction:
        found.append("Reconstruction is not known: the quantizer of this release reports none.")
    return found


def _churn(report: SidReport) -> list[BarChart]:
    if not report.churn or not report.churn["before"]:
        return []
    before, after = report.churn["before"], report.churn["after"]
    charts = []
    for key, title in (("items", "Items that moved"), ("traffic", "Moved, weighted by traffic")):
        cells = [(a[key], b[key]) for b, a in zip(before, after, strict=True)]
        rows = list(zip(_prefix_names(len(cells), full=not report.tie_break), cells, strict=True))
        texts = [[percent(value) for value in row] for row in cells]
        charts.append(bar_chart(title, "", ("after", "before"), rows, texts, longest=1.0))
    return charts


def _histogram(report: SidReport) -> BarChart:
    """Share of items by the size of the bucket they are in: of full SIDs, and of all codes but the last."""
    series = [report.histogram["sid"], report.histogram["prefix"]]
    edges = [*_HISTOGRAM_EDGES, 1 << 62]
    largest = max((row["size"] for found in series for row in found), default=1)
    bins = [(low, high) for low, high in pairwise(edges) if low <= largest]
    total = max(sum(row["size"] * row["buckets"] for row in series[0]), 1)
    rows, texts = [], []
    for low, high in bins:
        inside = [[row for row in found if low <= row["size"] < high] for found in series]
        items = [sum(row["size"] * row["buckets"] for row in found) for found in inside]
        texts.append([f"{whole(n)} items" for n in items])
        name = "alone" if high == 2 else f"{low}" if high == low + 1 else f"{low} – {min(high - 1, largest)}"
        rows.append((name, [n / total for n in items]))
    return bar_chart(
        "Items by how many share",
        "alone: a SID that no other item has.",
        ("the full SID", "all codes but the last"),
        rows,
        texts,
    )


def _bounded(prefix: Mapping[str, Any]) -> dict[str, Any]:
    return {"children": (), "num_children": 0, **prefix, **({"children": prefix["children"][:MAX_CHILDREN]})}
