"""The page of a day stands alone, says what is wrong, and trusts no title."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

from monitoring.day import gather
from monitoring.health import MonitorParams
from monitoring.page import last_reported_day, read_history, write_page

DAY = date(2011, 11, 1)
NOW = datetime(2011, 11, 2, 6, tzinfo=UTC)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def _write(example: ModuleType, home: Path, day: date, scores: dict[str, Any] | None = None) -> Path:
    release = example.make_release(home / "r" / day.isoformat(), day - timedelta(days=1), scores=scores)
    rows = [example.answer(day, n, ["item-00", example.RETIRED], release.release_id) for n in range(3)]
    example.put_traffic(home / "data" / "traffic", day, rows)
    found = gather(home, release, day=day, now=NOW, params=MonitorParams())
    return write_page(home / "reports", found, NOW)


def test_page_is_self_contained_and_escapes_titles(example: ModuleType, tmp_path: Path) -> None:
    path = _write(example, tmp_path, DAY)
    assert sorted(p.name for p in path.parent.iterdir()) == ["gauges.json", "report.html", "report.md"]
    parser = _Tags()
    parser.feed(path.read_text())
    assert "script" not in parser.tags
    assert parser.links == []
    assert "&lt;script&gt;alert(1)" in path.read_text()
    markdown = (path.parent / "report.md").read_text()
    assert "<script>" not in markdown
    assert r"\| \`x\`" in markdown  # a title cannot open a cell or a code span


def test_page_says_what_is_wrong(example: ModuleType, tmp_path: Path) -> None:
    path = _write(example, tmp_path, DAY)
    for text in (path.read_text(), (path.parent / "report.md").read_text()):
        plain = re.sub(r"<[^>]+>|\*|\\", "", text)
        assert "page: retired_served: 3 retired items served, at most 0" in plain
    assert json.loads((path.parent / "gauges.json").read_text())["retired_served"] == 3


def test_page_has_the_last_event_protocol_where_it_was_measured(example: ModuleType, tmp_path: Path) -> None:
    html = _write(example, tmp_path, DAY).read_text()
    section = html.split("asked for the last event of a user</h2>")[1].split("<h2>")[0]
    assert "77 users" in section
    assert section.count("0.0610") == section.count("0.0430") == 2  # seen masked, and not
    assert section.count("model_gain +0.0110 ± 0.0040") == 2
    assert "0.3000" not in section


def test_page_has_a_row_a_method_and_says_what_the_model_adds(example: ModuleType, tmp_path: Path) -> None:
    scores = example.make_scores(DAY - timedelta(days=1))
    scores["served_minus"]["memory"]["not_masked"]["recall@10"] = -0.02
    scores["model_gain"]["not_masked"]["recall@10"] = -0.001
    path = _write(example, tmp_path, DAY, scores)
    section = path.read_text().split("<h2>Held-out recall and NDCG</h2>")[1].split("<h2>")[0]
    rows = [re.sub(r"<[^>]+>", "|", row) for row in section.split("<tr>")[3:]]
    names = ["served", "without model", "model", "memory", "own", "popularity", "item-kNN", "SASRec of 2011-10-01"]
    assert [row.split("|")[1] for row in rows] == names
    assert section.count('class="n bad"') == 1
    assert '<td class="n bad">−0.0200 ± 0.0040</td>' in section
    assert section.count("+0.1500 ± 0.0141 *") == 2  # not paired
    assert "without model: the same ranker" in section
    words = "The language model adds nothing measurable: model_gain −0.0010 ± 0.0040 in recall@10, not masked"
    assert f"<li>{words}; docs/training.md.</li>" in section
    assert "<li>The language model adds to what is served: model_gain +0.0200" in section
    markdown = (path.parent / "report.md").read_text().replace("\\", "")
    assert words in markdown
    assert "| memory | not masked | 0.2700 ± 0.0100 | 0.1350 ± 0.0050 | −0.0200 ± 0.0040 |" in markdown
    assert "| served | seen masked | 0.3000 ± 0.0100 | 0.1500 ± 0.0050 |  |" in markdown
    plain = re.sub(r"<[^>]+>", "", path.read_text())
    assert "ticket: simple_methods_ahead: 1 simple methods ahead of what is served, at most 0" in plain


def test_page_of_a_release_of_before_the_ranker(example: ModuleType, tmp_path: Path) -> None:
    html = _write(example, tmp_path, DAY, example.make_old_scores(DAY - timedelta(days=1))).read_text()
    assert "<td>model (served)</td>" in html
    assert "without model" not in html
    assert "The language model" not in html


def test_page_of_a_protocol_that_nobody_was_asked_under(example: ModuleType, tmp_path: Path) -> None:
    scores = example.make_scores(DAY - timedelta(days=1))
    for figures in scores["methods"].values():
        figures["seen_masked"] = {"num_queries": 0}
    for entry in (*scores["served_minus"].values(), scores["model_gain"]):
        del entry["seen_masked"]
    html = _write(example, tmp_path, DAY, scores).read_text()
    section = html.split("<h2>Held-out recall and NDCG</h2>")[1].split("<h2>")[0]
    assert section.count(">–</td>") == 3 * 8
    assert "Nothing says what the language model adds: model_gain (no figure) in recall@10, seen masked." in section


def test_page_lists_what_beams_miss_beside_its_limit(example: ModuleType, tmp_path: Path) -> None:
    markdown = (_write(example, tmp_path, DAY).parent / "report.md").read_text()
    plain = markdown.replace("\\", "")
    assert "| beam_missed_items_percent | 3 | at most 10 | holds |" in plain
    assert "| beam_false | 0 | at most 0 | holds |" in plain
    assert "| beam_missed_mass_percent | 0.5 |" in plain


def test_same_day_same_bytes_and_history_of_the_days_before(example: ModuleType, tmp_path: Path) -> None:
    days = [DAY + timedelta(days=n) for n in range(3)]
    pages = [_write(example, tmp_path, day) for day in days]
    before = pages[2].read_bytes()
    assert before.count(b"<polyline") > 5
    assert _write(example, tmp_path, days[2]).read_bytes() == before
    assert list(read_history(tmp_path / "reports", days[2])) == days[:2]
    assert last_reported_day(tmp_path / "reports", days[2]) == days[1]
    assert last_reported_day(tmp_path / "reports", days[0]) is None
    (pages[1].parent / "gauges.json").write_text("{")
    assert list(read_history(tmp_path / "reports", days[2])) == days[:1]
