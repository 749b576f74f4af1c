"""The page of a day stands alone, says what is wrong, and trusts no title."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

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


def _write(example: ModuleType, home: Path, day: date) -> Path:
    release = example.make_release(home / "r" / day.isoformat(), day - timedelta(days=1))
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
    assert "0.2000" not in section


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
