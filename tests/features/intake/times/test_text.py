import os
from datetime import UTC, date, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.intake.times.text import Moment, read_text, why_none

START = datetime(1970, 1, 1)

N = int(os.environ.get("N", "0"))  # more examples than usual


def say(micros: int | None) -> str:
    return str(START + timedelta(microseconds=micros or 0)).removesuffix(".000000")


@pytest.mark.parametrize(
    ("text", "moment", "is_local"),
    [
        ("2024-01-01", "2024-01-01 00:00:00", True),
        ("2024-1-5 3:04 pm", "2024-01-05 15:04:00", True),
        ("2024/12/31", "2024-12-31 00:00:00", True),
        ("2024.12.31 10", "2024-12-31 10:00:00", True),
        ("2024-01-01T10:00:00.123456789Z", "2024-01-01 10:00:00.123456", False),
        ("2024-01-01T10:00:00,5", "2024-01-01 10:00:00.500000", True),
        ("2024-01-01t10:00z", "2024-01-01 10:00:00", False),
        ("2024-01-01 10:00:00 UTC", "2024-01-01 10:00:00", False),
        ("2024-01-01 10:00:00+0130", "2024-01-01 08:30:00", False),
        ("2024-01-01 10:00:00-05", "2024-01-01 15:00:00", False),
        ("2024-01-01T10:00+01:00[Europe/Berlin]", "2024-01-01 09:00:00", False),
        ("20240101T101112", "2024-01-01 10:11:12", True),
        ("2024-W01-1", "2024-01-01 00:00:00", True),
        ("2020W537T10:00", "2021-01-03 10:00:00", True),
        ("2024-366", "2024-12-31 00:00:00", True),
        ("2024-01-01T24:00", "2024-01-02 00:00:00", True),
        ("2016-12-31 23:59:60", "2017-01-01 00:00:00", True),
        ("0001-01-01", "0001-01-01 00:00:00", True),
        ("Mon, 01 Jan 2024 10:00:00 +0000", "2024-01-01 10:00:00", False),
        ("1 Jan 2024 10:00 GMT", "2024-01-01 10:00:00", False),
        ("01 Jan 2024", "2024-01-01 00:00:00", True),
        ("31-Jan-2024", "2024-01-31 00:00:00", True),
        ("10/Oct/2000:13:55:36 -0700", "2000-10-10 20:55:36", False),
        ("Monday, January 1, 2024", "2024-01-01 00:00:00", True),
        ("Mon 2024-01-01 10:00", "2024-01-01 10:00:00", True),
        ("Jan 1, 2024", "2024-01-01 00:00:00", True),
        ("September 3rd, 2001 4 AM", "2001-09-03 04:00:00", True),
        ("Sept. 3 2001, 12:30 a.m.", "2001-09-03 00:30:00", True),
        ("Mon Aug 01 13:41:46 -0700 2011", "2011-08-01 20:41:46", False),
        ("Wed Oct 10 20:19:24 UTC 2018", "2018-10-10 20:19:24", False),
        ("Wed Oct 10 20:19:24 2018", "2018-10-10 20:19:24", True),
        ("Mon Jan 01 2024 10:00:00 GMT+0100 (Central European Standard Time)", "2024-01-01 09:00:00", False),
        ("12:00 2024-01-01", None, True),
    ],
)
def test_a_time_with_one_reading(text: str, moment: str | None, is_local: bool) -> None:
    found = read_text(text)
    if moment is None:
        assert found is None
        return
    assert found is not None
    assert (say(found.micros), found.is_local) == (moment, is_local)
    assert found[3:] == (False, False, False)


def test_day_and_month_can_be_either_way_round() -> None:
    day = 86_400_000_000
    both = read_text("01/02/1970 12:00")
    assert both == Moment(31 * day + day // 2, day + day // 2, True, is_either=True)
    assert read_text("31-12-2024").other is None
    only = read_text("12/31/2024 11:59 PM")
    assert (only.micros, say(only.other)) == (None, "2024-12-31 23:59:00")
    assert read_text("01.02.1970").is_dotted
    assert read_text("32/13/2024") is None


def test_a_month_or_a_week_alone_is_coarse() -> None:
    assert read_text("1970-02") == Moment(31 * 86_400_000_000, None, True, is_coarse=True)
    assert read_text("2024-W02").is_coarse
    assert read_text("2024-01 10:00") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("now", "is no time of its own: only the clock of the reader knows it"),
        ("Today", "is no time of its own: only the clock of the reader knows it"),
        ("3 days ago", "is no time of its own: only the clock of the reader knows it"),
        ("31/12/24", "has a year of two digits"),
        ("2024-01-01 10:00:00 CST", "names a time zone that is not unique"),
        ("10:00", "is a time of day without a date"),
        ("10:00 AM", "is a time of day without a date"),
        ("soon", "is no time"),
        ("2024-02-30", "is no time"),
        ("2024-13-01", "is no time"),
        ("0000-01-01", "is no time"),
        ("2024-W60-1", "is no time"),
        ("2023-366", "is no time"),
        ("2024-000", "is no time"),
        ("2024-01-01T25:00", "is no time"),
        ("2024-01-01T24:01", "is no time"),
        ("2024-01-01 10:61", "is no time"),
        ("2024-01-01 10:00:61", "is no time"),
        ("2024-01-01 13:00 PM", "is no time"),
        ("2024-01-01 10:00+24:00", "is no time"),
        ("2024-01-01 -0500", "is no time"),
        ("20240101", "is no time"),
        ("٢٠٢٤-01-01", "is no time"),
        ("2024-01-01 x", "is no time"),
    ],
)
def test_what_is_no_time_and_why(text: str, why: str) -> None:
    assert read_text(text) is None
    assert why_none(text) == why


SPELLINGS = (
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S.%f",
    "%Y/%m/%d %H:%M:%S.%f",
    "%d %b %Y %H:%M:%S.%f",
    "%B %d, %Y %I:%M:%S.%f %p",
    "%a %b %d %H:%M:%S.%f %Y",
    "%G-W%V-%uT%H:%M:%S.%f",
    "%Y-%jT%H:%M:%S.%f",
    "%Y%m%dT%H%M%S.%f",
)


@settings(max_examples=max(150, N), deadline=None)
@given(
    st.datetimes(datetime(1000, 1, 4), datetime(9998, 12, 30)),
    st.sampled_from(SPELLINGS),
    st.one_of(st.none(), st.integers(-14 * 60, 14 * 60)),
)
def test_any_spelling_reads_back(moment: datetime, spelling: str, offset: int | None) -> None:
    zone = None if offset is None else timezone(timedelta(minutes=offset))
    text = moment.replace(tzinfo=zone).strftime(spelling + ("" if spelling.endswith("%Y") else "%z"))
    expected = (moment - START) // timedelta(microseconds=1)
    is_local = offset is None or spelling.endswith("%Y")
    found = read_text(text)
    assert found is not None, text
    assert found.micros == expected - (0 if is_local else (offset or 0) * 60_000_000), text
    assert found.is_local == is_local


@settings(max_examples=max(60, N), deadline=None)
@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_mail_s_and_python_s_own_spelling_read_back(moment: datetime) -> None:
    whole = moment.replace(microsecond=0)
    for text, written in ((format_datetime(whole), whole), (moment.isoformat(), moment), (str(moment), moment)):
        assert read_text(text).micros == (written.replace(tzinfo=None) - START) // timedelta(microseconds=1)


@settings(max_examples=max(60, N), deadline=None)
@given(st.dates(date(1000, 1, 1)), st.sampled_from("/-."))
def test_both_ways_round_hold_the_day_that_was_written(day: date, sign: str) -> None:
    expected = (day - date(1970, 1, 1)).days * 86_400_000_000
    assert read_text(day.strftime(f"%d{sign}%m{sign}%Y")).micros == expected
    assert read_text(day.strftime(f"%m{sign}%d{sign}%Y")).other == expected


@settings(max_examples=max(150, N), deadline=None)
@given(st.text("0123456789-/.:T Z+WAMpJan,", max_size=24))
def test_no_text_is_too_odd(text: str) -> None:
    found = read_text(text)
    assert found is None or found.micros is not None or found.other is not None
    assert why_none(text).startswith(("is ", "has ", "names "))
