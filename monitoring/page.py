"""Page: a day as one file to read, without a server and without a script.

Writes report.html, report.md and gauges.json into the folder of the day, each by one rename; gauges.json of the days
before gives the little curves. Whatever came from outside (titles, reasons) is escaped.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from monitoring.day import Day
from monitoring.methods import LEGEND, PROTOCOL_WORDS, PROTOCOLS, SERVED, gain_in_words
from monitoring.quality import Comparison, MethodScore
from plumline import artifact
from plumline.errors import CorruptArtifactError

HTML, MARKDOWN, GAUGES = "report.html", "report.md", "gauges.json"
NUM_CURVE_DAYS = 30

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Plumline {{ day }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c2330}
h1{margin:0}h2{margin:2rem 0 .4rem;font-size:1.1rem}table{border-collapse:collapse;width:100%}
td,th{padding:.25rem .6rem;border-bottom:1px solid #dde2ea;text-align:left;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.ok,td.bad,td.none,.methods td{white-space:nowrap}.methods{font-size:13px}.methods th.p{text-align:center}
td.rule{min-width:13rem}
.banner{padding:.7rem 1rem;border-radius:.4rem;margin:1rem 0;background:#e3f4e6}.banner.bad{background:#fde4e1}
.bad{color:#a11}.ok{color:#176b2c}.none{color:#667}small{color:#556}
svg{width:120px;height:24px;fill:none;stroke:#3867c8;stroke-width:1.5}
</style></head><body>
<h1>Plumline, {{ day }}</h1>
<p>Release <b>{{ quality.release_id }}</b>, which knows everything up to {{ quality.as_of }}.
<small>Written {{ now }}.</small></p>
{% if alerts %}<div class="banner bad"><b>{{ alerts|length }} to look at</b><ul>
{% for a in alerts %}<li><b>{{ a.severity }}: {{ a.name }}</b>: {{ a.summary }} <small>{{ a.runbook }}</small></li>
{% endfor %}</ul></div>
{% else %}<div class="banner"><b>Every check that could be made holds.</b></div>{% endif %}
<h2>Figures with a limit</h2><table><tr><th>figure</th><th class="n">value</th><th>limit</th><th>state</th>
<th>last {{ num_curve_days }} days</th></tr>
{% for r in limited %}<tr><td>{{ r.name }}</td><td class="n">{{ r.value }}</td><td>{{ r.limit }}</td>
<td class="{{ r.state }}">{{ {"ok": "holds", "bad": "BEYOND", "none": "not measured"}[r.state] }}</td>
<td>{% if r.curve %}<svg viewBox="0 0 120 24"><polyline points="{{ r.curve }}"/></svg>{% endif %}</td></tr>
{% endfor %}</table>
{% macro of_methods(compared) %}<table class="methods">
<tr><th></th>{% for words in protocols.values() %}<th class="p" colspan="3">{{ words }}</th>{% endfor %}</tr>
<tr><th>method</th>{% for _ in protocols %}<th class="n">recall@10</th><th class="n">ndcg@10</th>
<th class="n">served − it</th>{% endfor %}</tr>
{% for method, name in names(compared).items() %}<tr><td>{{ name }}</td>
{% for p in protocols %}{% set s = compared.of(method, p) %}{% if s %}<td class="n">{{ pm(s.recall, s.recall_se) }}</td>
<td class="n">{{ pm(s.ndcg, s.ndcg_se) }}</td>
<td class="n{{ ' bad' if s.minus and s.minus.is_behind() }}">{{ minus(s) }}</td>
{% else %}<td class="n">–</td><td class="n">–</td><td class="n">–</td>{% endif %}{% endfor %}</tr>
{% endfor %}</table>
<ul>{% for line in gains_in_words(compared) %}<li>{{ line }}</li>{% endfor %}</ul>{% endmacro %}
<h2>Held-out recall and NDCG</h2>
<p><small>{{ quality.next_days.num_queries }} queries; ± one standard error. {{ legend }}
Served − it: in recall@10, paired by user (* where it was not: errors taken as independent); red where the method is
ahead of what is served by more than two standard errors.</small></p>
{{ of_methods(quality.next_days) }}
{% if quality.last_event %}<h2>The same, asked for the last event of a user</h2>
<p><small>{{ quality.last_event.num_queries }} users, known up to that event; ± one standard error.</small></p>
{{ of_methods(quality.last_event) }}{% endif %}
<h2>Semantic IDs</h2>
<table><tr><th>level</th><th class="n">codes in use</th><th class="n">perplexity</th><th class="n">gini</th>
<th class="n">model goes astray here</th></tr>
{% for l in quality.levels %}<tr><td>{{ loop.index }}</td><td class="n">{{ percent(l.usage) }}</td>
<td class="n">{{ number(l.perplexity) }}</td><td class="n">{{ number(l.gini) }}</td>
<td class="n">{{ percent(l.astray) }}</td></tr>{% endfor %}</table>
<p><small>Astray: share of the language model's probability, if nothing held it to SIDs of live items, that leaves them
at this level (another word, a code of another level, a code that no live item has there). The sum is
hallucination_percent; what is served cannot leave them.</small></p>
<h2>Drift of what was served</h2>
{% if drifts %}<table><tr><th>compared</th><th class="n">PSI</th><th class="n">chance alone reaches</th>
<th class="n">limit</th><th class="n">rows before / that day</th><th>state</th></tr>
{% for d in drifts %}<tr><td>{{ d.name }}</td><td class="n">{{ number(d.psi) }}</td>
<td class="n">{{ number(d.noise_floor) }}</td><td class="n">{{ number(d.limit) }}</td>
<td class="n">{{ d.num_reference }} / {{ d.num_current }}</td>
<td class="{{ 'bad' if d.drifted else 'ok' }}">{{ "MOVED" if d.drifted else "as before" }}</td></tr>
{% endfor %}</table>{% else %}<p class="none">Not measured: there is no traffic of the days before, or none of this
day.</p>{% endif %}
{% if verdict %}<h2>Gate: {{ verdict.status }} (release {{ verdict.release_id }})</h2>
<table><tr><th>rule</th><th>state</th><th>why</th></tr>
{% for c in verdict.checks %}<tr><td class="rule">{{ c.name }}</td>
<td class="{{ 'ok' if c.passed else 'bad' if c.blocking else 'none' }}">{{ "holds" if c.passed else "FAILS" if
c.blocking else "said, does not decide" }}</td><td>{{ c.reason }}</td></tr>{% endfor %}</table>{% endif %}
{% if quarantine %}<h2>Event rows put aside</h2><table><tr><th>reason</th><th class="n">rows</th></tr>
{% for reason, rows in quarantine.items() %}<tr><td>{{ reason }}</td><td class="n">{{ rows }}</td></tr>{% endfor %}
</table>{% endif %}
{% if most_served %}<h2>Most served items</h2><table><tr><th>item</th><th>title</th><th class="n">answers</th></tr>
{% for i in most_served %}<tr><td>{{ i.item_id }}</td><td>{{ i.title }}</td><td class="n">{{ i.num_served }}</td></tr>
{% endfor %}</table>{% endif %}
<h2>Other figures</h2><table>{% for r in others %}<tr><td>{{ r.name }}</td><td class="n">{{ r.value }}</td>
<td>{% if r.curve %}<svg viewBox="0 0 120 24"><polyline points="{{ r.curve }}"/></svg>{% endif %}</td></tr>
{% endfor %}</table>
<p><small>Over time: <code>plumline dashboards</code>. All alerts: <code>.plumline/alerts.jsonl</code>.</small></p>
</body></html>
"""


def write_page(reports: Path, day: Day, now: datetime) -> Path:
    """Write the page of a day into `<reports>/<day>/` and return the path of report.html; an older one is replaced."""
    from jinja2 import Environment

    folder = reports / day.day.isoformat()
    history = read_history(reports, day.day)
    gauges = day.gauges
    limited = [_row(name, gauges, history, day) for name in day.bounds]
    others = [_row(name, gauges, history, day) for name in sorted(gauges.keys() - day.bounds.keys())]
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    html = template.render(
        day=day.day.isoformat(),
        now=now.isoformat(timespec="minutes"),
        quality=day.quality,
        alerts=day.alerts,
        limited=limited,
        others=others,
        drifts=day.drifts,
        verdict=day.verdict,
        quarantine=day.quarantine,
        most_served=day.most_served,
        num_curve_days=NUM_CURVE_DAYS,
        number=_number,
        percent=lambda share: "–" if share is None else f"{100 * share:.1f}%",
        pm=_plus_minus,
        minus=_minus,
        names=_names,
        gains_in_words=_gains_in_words,
        protocols=PROTOCOL_WORDS,
        legend=LEGEND if day.quality.next_days.served == SERVED else "",
    )
    artifact.replace_file(folder / GAUGES, json.dumps(gauges, sort_keys=True, indent=2) + "\n")
    artifact.replace_file(folder / MARKDOWN, _markdown(day, limited, others))
    artifact.replace_file(folder / HTML, html)
    return folder / HTML


def read_history(reports: Path, last: date, num_days: int = NUM_CURVE_DAYS) -> dict[date, dict[str, float]]:
    """Gauges of the last `num_days` reported days before `last`, oldest first. Unreadable days are left out."""
    days = sorted(path.parent.name for path in reports.glob(f"*/{GAUGES}") if path.parent.name < last.isoformat())
    found = {}
    for day in days[-num_days:]:
        try:
            found[date.fromisoformat(day)] = artifact.read_json(reports / day / GAUGES)
        except (CorruptArtifactError, ValueError):
            continue  # a curve with a gap is worth more than no report
    return found


def last_reported_day(reports: Path, before: date) -> date | None:
    """The last day before `before` that has a page."""
    days = read_history(reports, before, num_days=1)
    return max(days, default=None)


def _row(
    name: str, gauges: Mapping[str, float], history: Mapping[date, Mapping[str, float]], day: Day
) -> dict[str, Any]:
    value, limit = gauges.get(name), day.bounds.get(name)
    state = "none" if value is None else "ok" if limit is None or limit.holds(value) else "bad"
    values = [past[name] for past in history.values() if name in past] + ([] if value is None else [value])
    return {"name": name, "value": _number(value), "limit": str(limit or ""), "state": state, "curve": _curve(values)}


def _curve(values: Sequence[float]) -> str:
    """Points of a polyline in a box of 120 × 24."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    step = 116 / (len(values) - 1)
    span = (high - low) or 1.0
    return " ".join(f"{2 + i * step:.1f},{22 - 20 * (v - low) / span:.1f}" for i, v in enumerate(values))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10_000 else f"{value:.4g}"


def _plus_minus(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _minus(score: MethodScore) -> str:
    return "" if score.minus is None else f"{score.minus}{'' if score.minus.paired else ' *'}"


def _names(compared: Comparison) -> dict[str, str]:
    """Method → its name for people, in order."""
    return {score.method: score.name for score in compared.scores}


def _gains_in_words(compared: Comparison) -> list[str]:
    """What the language model adds, a sentence a protocol; nothing of a release without a ranker."""
    if compared.served != SERVED:
        return []
    said = (gain_in_words(compared.gains.get(protocol), protocol) for protocol in PROTOCOLS)
    return [f"{words[0].upper()}{words[1:]}." for words in said]


def _cell(text: str) -> str:
    """Text in a Markdown table: one line, no markup, no HTML."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in plain)


def _markdown(day: Day, limited: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    marks = {"ok": "holds", "bad": "**BEYOND**", "none": "not measured"}
    lines = [f"# Plumline, {day.day}", "", f"Release {day.quality.release_id}, as of {day.quality.as_of}.", ""]
    lines += [
        f"* **{alert.severity}: {_cell(alert.name)}**: {_cell(alert.summary)} ({alert.runbook})" for alert in day.alerts
    ] or ["Every check that could be made holds."]
    lines += ["", "| figure | value | limit | state |", "|---|---:|---|---|"]
    lines += [f"| {_cell(r['name'])} | {r['value']} | {r['limit']} | {marks[r['state']]} |" for r in limited]
    lines += ["", "| method | seen items | recall@10 | ndcg@10 | served − it |", "|---|---|---:|---:|---:|"]
    for score in day.quality.next_days.scores:
        recall, ndcg = _plus_minus(score.recall, score.recall_se), _plus_minus(score.ndcg, score.ndcg_se)
        where = PROTOCOL_WORDS[score.protocol]
        lines.append(f"| {_cell(score.name)} | {where} | {recall} | {ndcg} | {_cell(_minus(score))} |")
    lines += ["", *(f"* {_cell(words)}" for words in _gains_in_words(day.quality.next_days))]
    lines += ["", "| item | title | answers |", "|---|---|---:|"]
    lines += [f"| {_cell(i.item_id)} | {_cell(i.title)} | {i.num_served} |" for i in day.most_served]
    lines += ["", "| other figure | value |", "|---|---:|"]
    lines += [f"| {_cell(row['name'])} | {row['value']} |" for row in others]
    return "\n".join(lines) + "\n"
