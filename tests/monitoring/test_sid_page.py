"""The page of the SIDs stands alone, is bounded, trusts no title and draws what there is."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from monitoring.sid_page import MAX_BUCKETS, MAX_CHILDREN, MAX_PREFIXES, percent, short, times, write_sid_page
from monitoring.sid_report import SidReport
from plumline.sid import SidSpace

NASTY = '<script>alert(1)</script> "x" \x1b[31m\u202e'
VOID = {"meta", "br", "line", "rect", "polygon", "polyline"}


class _Page(HTMLParser):
    """Tags, attributes and text; every element that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def plain(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def _item(number: int = 0, title: str | None = "a lamp") -> dict[str, Any]:
    return {"item_id": f"i{number}", "title": title, "retired": number == 1}


def _levels(*shares: float | None) -> list[dict[str, Any]]:
    rows = [{"level": n, "share": s, "by_chance": s and s / 4, "lift": s and 4.0} for n, s in enumerate(shares, 1)]
    return [{**row, "num": 3} for row in rows]


def make_report(**changes: Any) -> SidReport:
    """A report of two levels and a tie-break digit with everything in it."""
    level = {"size": 8, "used": 6, "usage": 0.75, "perplexity": 5.5, "gini": 0.25}
    moved = [{"level": n, "items": 0.125 * n, "traffic": 0.0625 * n} for n in (1, 2)]
    child = {"sid": "<a_3><b_1>", "num_items": 4, "words": ["shade"], "examples": [_item(2)]}
    prefix = {"sid": "<a_3>", "num_items": 9, "words": ["lamp", NASTY], "examples": [_item(0, NASTY)]}
    report = SidReport(
        release_id="2011-10-31-aaaaaaaa",
        as_of="2011-10-31",
        space=SidSpace((8, 8, 8)),
        tie_break=True,
        figures={
            "num_items": 20,
            "uniqueness": 0.8123,
            "uniqueness_with_tie_break": 0.99,
            "collisions": 2,
            "largest_bucket": 2,
        },
        levels=[{"level": n, **level} for n in (1, 2, 3)],
        churn={"num_known": 17, "before": [{**row, "items": 0.875} for row in moved], "after": moved},
        reconstruction={"text": 0.4375},
        co_occurrence={
            "levels": _levels(0.5, 0.25, 0.0125),
            "why": None,
            "num_pairs": 11,
            "weight": 1234,
            "as_of": "2011-10-30",
            "of_this_release": False,
        },
        purity={
            "kinds": {"channel": {"num_items": 19, "num_categories": 3, "levels": _levels(0.75, 0.8, None)}},
            "why": None,
        },
        curves=[[5, 5, 4, 3, 2, 1, 0, 0]] * 3,
        histogram={
            "sid": [{"size": 1, "buckets": 18}, {"size": 2, "buckets": 1}],
            "prefix": [{"size": 1, "buckets": 8}, {"size": 12, "buckets": 1}],
        },
        buckets={
            "sid": [{"sid": "<a_1><b_1><c_1>", "num_items": 30, "items": [_item(0, NASTY), _item(1)]}],
            "prefix": [{"sid": "<a_1><b_1>", "num_items": 2, "items": [_item(3, None)]}],
        },
        atlas={"num_prefixes": 1, "prefixes": [{**prefix, "num_children": 5, "children": [child]}]},
    )
    return replace(report, **changes)


def draw(tmp_path: Path, **changes: Any) -> _Page:
    return _Page(write_sid_page(tmp_path / "deep" / "page.html", make_report(**changes)).read_text())


def test_it_stands_alone_and_escapes(tmp_path: Path) -> None:
    page = draw(tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "xlink:href") or name.startswith("on")]
    policies = [value for name, value in page.attributes if name == "content" and "src" in (value or "")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    text = (tmp_path / "deep" / "page.html").read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)") == 3  # bucket, example, word
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_it_says_every_figure(tmp_path: Path) -> None:
    plain = draw(tmp_path).plain
    for words in (
        "20 items known on 2011-10-31; levels of 8 × 8 × 8 codes, the last one the tie-break digit",
        "81.23% unique before the tie-break",
        "99.00% unique with the tie-break",
        "6 of 8 codes, perplexity 5.5",
        "50.0% (× 4.0)",
        "1.25% (× 4.0)",
        "11 pairs, seen 1,234 times, up to 2011-10-30; of another run than this release's.",
        "19 items of 3 channels",
        "43.8%",
        "17 items of both tables",
        "87.5%",
        "12.5%",
        "<a_1><b_1><c_1> 30 <script>",
        "and 28 more",
        "i1, retired",
        "(no title)",
        "<a_3><b_1> 4 shade",
        "4 smaller second codes left out",
    ):
        assert words in plain, words


def test_plots_are_there(tmp_path: Path) -> None:
    page = draw(tmp_path)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels == [
        "level 1",
        "level 2",
        "tie-break",
        "Items taken together share their first codes",
        "Items of one prefix are of one channel",
        "Variance that the codes leave unexplained",
        "Items that moved",
        "Moved, weighted by traffic",
        "Items by how many share",
    ]
    assert page.tags.count("polyline") == 3
    bins = ["alone", "2", "3", "4", "5 – 8", "9 – 12"]  # the last one ends at the largest bucket
    assert " ".join(bins) in page.plain


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    page = draw(
        tmp_path,
        co_occurrence={"levels": None, "why": "no pairs <here>"},
        purity={"kinds": None, "why": "no categories"},
        reconstruction=None,
        churn=None,
    )
    assert "not measured: no pairs <here>." in page.plain
    assert "not measured: no categories." in page.plain
    assert "Reconstruction is not known" in page.plain
    assert "What the last retraining moved" not in page.plain
    assert len([name for name, _ in page.attributes if name == "aria-label"]) == 4


def test_churn_of_two_tables_without_a_common_item_draws_nothing(tmp_path: Path) -> None:
    page = draw(tmp_path, churn={"num_known": 0, "before": [], "after": []})
    assert "What the last retraining moved" not in page.plain
    untouched = [{"level": 1, "items": 0.0, "traffic": None}]
    page = draw(tmp_path, churn={"num_known": 3, "before": untouched, "after": untouched})
    assert "What the last retraining moved" in page.plain


def test_an_empty_catalogue_is_a_page(tmp_path: Path) -> None:
    page = draw(
        tmp_path,
        figures=dict.fromkeys(make_report().figures, None),
        curves=[[0] * 8] * 3,
        histogram={"sid": [], "prefix": []},
        buckets={"sid": [], "prefix": []},
        atlas={"num_prefixes": 0, "prefixes": []},
        tie_break=False,
    )
    assert "There are no items." in page.plain
    assert "Every item has a full SID of its own." in page.plain
    assert "– unique SIDs" in page.plain


def test_the_page_is_bounded_whatever_the_atlas(tmp_path: Path) -> None:
    long = [_item(2, "x" * 5000)] * 10
    child = {"sid": "<a_1><b_2>", "num_items": 1, "words": ["y" * 5000] * 6, "examples": long[:3]}
    prefix = {**child, "sid": "<a_1>", "num_children": 900, "children": [child] * 900}
    bucket = {"sid": "<a_1>", "num_items": 10, "items": long}
    page = draw(
        tmp_path,
        atlas={"num_prefixes": 2000, "prefixes": [prefix] * 2000},
        buckets={"sid": [bucket] * 20, "prefix": [bucket] * 20},
        curves=[list(range(65536, 0, -1))] * 3,
    )
    assert (tmp_path / "deep" / "page.html").stat().st_size < 1_000_000
    assert page.tags.count("details") == MAX_PREFIXES * (1 + MAX_CHILDREN + 1)
    assert f"Shown are the {MAX_PREFIXES} largest of 2,000 first codes" in page.plain
    assert page.plain.count("892 smaller second codes left out") == MAX_PREFIXES
    assert page.tags.count("br") == 2 * MAX_BUCKETS * 9


def test_equal_reports_give_equal_bytes_and_replace_the_page(tmp_path: Path) -> None:
    path = write_sid_page(tmp_path / "page.html", make_report(as_of="2010-01-01"))
    write_sid_page(path, make_report())
    first = path.read_bytes()
    assert b"2010-01-01" not in first
    assert write_sid_page(path, make_report()).read_bytes() == first


@pytest.mark.parametrize(
    ("share", "text"), [(None, "–"), (0.0, "0.0%"), (1.0, "100.0%"), (0.4567, "45.7%"), (0.0000123, "0.00123%")]
)
def test_percent(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_words_of_numbers() -> None:
    assert (times(None), times(3.14159), times(1234.5)) == ("", " (× 3.1)", " (× 1,234)")
    assert short("a\nb\x1b[2Jc\u202ed") == "a b [2Jc d"
    assert short("x" * 100, 10) == "x" * 9 + "…"
    assert short(None) == ""
