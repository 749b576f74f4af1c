"""Every row arrives once, in its day, and a reader never sees half a file."""

import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import ParquetFile

from plumline.schema import TRAFFIC
from plumline.tables import write_parquet
from serving.traffic import SERVED, TrafficRow, TrafficWriter, read_traffic, rows_to_table

DAY = date(2011, 11, 1)
NOON = int(datetime(2011, 11, 1, 12, tzinfo=UTC).timestamp() * 1000)


def row(number: int, timestamp_ms: int = NOON) -> TrafficRow:
    return TrafficRow(
        request_id=f"r{number:05d}",
        timestamp_ms=timestamp_ms,
        user_id=None if number % 3 == 0 else f"u{number}",
        release_id="2011-10-31-00000000",
        action=SERVED,
        item_ids=("a", "b"),
        sids=("<a_1>", "<a_2>"),
        scores=(-0.5, -1.5),
        why=('[["own",1.0,["a"]]]', "[]"),
        history_length=number,
        latency_ms=3.5,
    )


def test_rows_come_back_as_the_contract_says(tmp_path: Path) -> None:
    writer = TrafficWriter(tmp_path, "w")
    writer.append(row(1), at=0.0)
    assert writer.flush() == 1
    table = read_traffic(tmp_path, DAY, DAY)
    assert table.schema.equals(TRAFFIC.schema)
    assert table.to_pylist() == [
        {
            "request_id": "r00001",
            "timestamp": datetime(2011, 11, 1, 12, tzinfo=UTC),
            "user_id": "u1",
            "release_id": "2011-10-31-00000000",
            "action": "served",
            "history_length": 1,
            "item_ids": ["a", "b"],
            "sids": ["<a_1>", "<a_2>"],
            "scores": [-0.5, -1.5],
            "why": ['[["own",1.0,["a"]]]', "[]"],
            "num_invalid": 0,
            "degraded": False,
            "latency_ms": 3.5,
            "watch_ratio": None,
            "watch_time_s": None,
            "rating": None,
        }
    ]


@settings(max_examples=20, deadline=None)
@given(hours=st.lists(st.integers(0, 95), max_size=40), cut=st.integers(0, 40))
def test_every_row_lands_once_in_its_day(tmp_path_factory: pytest.TempPathFactory, hours: list[int], cut: int) -> None:
    folder = tmp_path_factory.mktemp("traffic")
    writer = TrafficWriter(folder, "w")
    for number, hour in enumerate(hours):
        writer.append(row(number, NOON + hour * 3_600_000), at=0.0)
        if number == cut:
            writer.flush()
    writer.flush()
    assert writer.flush() == 0
    found = []
    for offset in range(6):
        day = DAY + timedelta(days=offset)
        of_day = read_traffic(folder, day, day)
        assert all(at.date() == day for at in of_day.column("timestamp").to_pylist())
        found += of_day.column("request_id").to_pylist()
    assert sorted(found) == [f"r{number:05d}" for number in range(len(hours))]
    assert read_traffic(folder, DAY, DAY + timedelta(days=9)).num_rows == len(hours)


def test_due_by_count_or_by_age(tmp_path: Path) -> None:
    writer = TrafficWriter(tmp_path, "w", flush_rows=2, flush_seconds=5.0)
    assert not writer.is_due(at=100.0)
    writer.append(row(1), at=100.0)
    assert not writer.is_due(at=104.9)
    assert writer.is_due(at=105.0)
    writer.append(row(2), at=101.0)
    assert writer.is_due(at=101.0)
    writer.flush()
    assert not writer.is_due(at=200.0)


def test_rows_wait_five_seconds_or_for_company(tmp_path: Path) -> None:
    writer = TrafficWriter(tmp_path, "w")
    writer.append(row(1), at=100.0)
    assert not writer.is_due(at=104.9)
    assert writer.is_due(at=105.1)
    for number in range(254):
        writer.append(row(number), at=100.0)
    assert not writer.is_due(at=100.0)
    writer.append(row(256), at=100.0)
    assert writer.is_due(at=100.0)


def test_a_hundred_thousand_rows_may_wait_and_the_oldest_go_first(tmp_path: Path) -> None:
    class Kept(TrafficWriter):
        """Where the disk is full until there is room."""

        rows: tuple[TrafficRow, ...] = ()
        full = True

        def _write(self, day: date, rows: list[TrafficRow]) -> None:
            if self.full:
                raise OSError("no space left")
            self.rows += tuple(rows)

    writer = Kept(tmp_path, "w")
    first, second, last = row(1), row(2), row(3)
    for one in (first, *[second] * 100_000):
        writer.append(one, at=0.0)
    assert writer.flush() == 0
    writer.append(last, at=0.0)
    writer.full = False
    assert writer.flush() == 100_000
    assert writer.rows.count(second) == 99_999
    assert (writer.rows[0], writer.rows[-1]) == (second, last)


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    writer = TrafficWriter(tmp_path, "w")

    def work(first: int) -> None:
        for number in range(first, first + 50):
            writer.append(row(number), at=0.0)
            if number % 20 == 0:
                writer.flush()

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    ids = read_traffic(tmp_path, DAY, DAY).column("request_id").to_pylist()
    assert len(ids) == len(set(ids)) == 200


def test_two_workers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for number in range(2):
        writer = TrafficWriter(tmp_path, "w")
        writer.append(row(number), at=0.0)
        writer.flush()
    assert read_traffic(tmp_path, DAY, DAY).num_rows == 2


def test_a_folder_that_cannot_be_written_keeps_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "traffic"
    folder.write_text("in the way")
    writer = TrafficWriter(folder, "w")
    writer.append(row(1), at=0.0)
    assert writer.flush() == 0
    assert "1 rows wait" in capsys.readouterr().err
    folder.unlink()
    assert writer.flush() == 1
    assert read_traffic(folder, DAY, DAY).num_rows == 1


def test_scratch_is_no_traffic_and_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = TrafficWriter(tmp_path, "w")
    writer.append(row(1), at=0.0)
    writer.flush()
    [path] = tmp_path.glob("day=*/*.parquet")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    content, chunk = bytearray(path.read_bytes()), ParquetFile(path).metadata.row_group(0).column(0)
    content[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1] ^= 16
    path.write_bytes(content)
    write_parquet(path.with_name("whole.parquet"), rows_to_table([row(2)]))
    assert read_traffic(tmp_path, DAY, DAY).column("request_id").to_pylist() == ["r00002"]
    assert f"{path.name} is left out, it cannot be read" in capsys.readouterr().err


def test_no_rows() -> None:
    assert rows_to_table([]).num_rows == 0


def test_answers_from_before_there_were_reasons_are_read(tmp_path: Path) -> None:
    path = tmp_path / f"day={DAY.isoformat()}" / "old-000000.parquet"
    write_parquet(path, rows_to_table([row(1)]).drop_columns("why"))
    assert read_traffic(tmp_path, DAY, DAY).column("why").to_pylist() == [None]
