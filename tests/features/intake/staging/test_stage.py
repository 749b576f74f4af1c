"""Inputs of every kind, in whatever number and wherever they lie; and files that are broken in any way."""

import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.intake.staged import FILE, LINE, Staged
from plumline.errors import InputError

N = int(os.environ.get("N", "300"))
"""Mutated files; 100000 for a long look."""
CSV = "user_id,item_id\nu1,007\nu2,8\n"
ROWS = [{"user_id": "u1", "item_id": "007", LINE: 2}, {"user_id": "u2", "item_id": "8", LINE: 3}]


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a", "a.csv.gz", "a.gz", "a.zst", "a.csv.bz2", "a.csv.zip"])
def test_a_file_by_its_content(write: Callable[..., Path], read: Callable[..., Any], name: str) -> None:
    assert read(write(name, CSV)) == ROWS


def test_names_that_lie(write: Callable[..., Path], read: Callable[..., Any], tmp_path: Path) -> None:
    packed = write("a.csv.gz", CSV).read_bytes()
    assert read(write("plain.csv", packed)) == ROWS
    assert read(write("twice.csv.gz", packed)) == ROWS
    lines = '{"user_id": "u1", "item_id": "007"}\n{"user_id": "u2", "item_id": "8"}\n'
    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet"):
        assert [row["item_id"] for row in read(write(name, lines))] == ["007", "8"]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p.csv")
    assert read(tmp_path / "p.csv") == [{"a": 1, LINE: 1}]
    assert read(write("c.json", CSV)) == ROWS
    assert read(write("c.parquet", CSV)) == ROWS


def test_several_files_are_one_table(write: Callable[..., Path], staged: Callable[..., Staged], tmp_path: Path) -> None:
    first = write("oct.csv", "user_id,n\nu1,1\n")
    second = write("nov.jsonl", '{"user_id": "u2", "m": 2}\n{"n": null, "user_id": 3}\n')
    pq.write_table(pa.table({"user_id": [4], "m": [0.5]}), tmp_path / "dec.parquet")
    rows = staged(first, second, tmp_path / "dec.parquet")
    assert rows.files == (str(first), str(second), str(tmp_path / "dec.parquet"))
    assert rows.unit == ("line", "line", "row")
    assert rows.columns == ("user_id", "n", "m")
    whole = pa.concat_tables(rows.blocks())
    assert whole.schema.names == ["user_id", "n", "m", FILE, LINE]
    assert whole.to_pylist() == [
        {"user_id": "u1", "n": "1", "m": None, FILE: 0, LINE: 2},
        {"user_id": "u2", "n": None, "m": "2", FILE: 1, LINE: 1},
        {"user_id": "3", "n": None, "m": None, FILE: 1, LINE: 2},
        {"user_id": "4", "n": None, "m": "0.5", FILE: 2, LINE: 1},
    ]
    assert whole.equals(pa.concat_tables(rows.blocks()))  # as often as wanted
    assert rows.place(1, 2) == f"{second}: line 2"


def test_a_folder_gives_its_data_files_and_what_its_folders_say(
    write: Callable[..., Path], staged: Callable[..., Staged], tmp_path: Path
) -> None:
    for day in ("2024-01-02", "2024-01-01"):
        path = write(f"log/day={day}/part.parquet", "")
        pq.write_table(pa.table({"user_id": [day[-1]]}), path)
    write("log/day=__HIVE_DEFAULT_PARTITION__/part.csv", "user_id\n3\n")
    write("log/_SUCCESS", "")
    write("log/.part.parquet.crc", "x")
    write("log/README.md", "hello")
    write("log/day=4/part.csv", "user_id,day\n5,own\n")
    rows = staged(f"{tmp_path}/log")
    days = [row["day"] for block in rows.blocks() for row in block.to_pylist()]
    assert days == ["2024-01-01", "2024-01-02", "own", None]
    assert [Path(name).parent.name for name in rows.files][:2] == ["day=2024-01-01", "day=2024-01-02"]
    assert rows.notes == (
        f"{tmp_path}/log: left out, no data files by their names: README.md",
        f"{rows.files[0]} and 2 more: column day is what its folder says",
        f"{rows.files[2]}: column day is its own, not what its folder says",
    )


def test_globs_and_what_is_named_twice(
    write: Callable[..., Path], staged: Callable[..., Staged], refusal: Callable[..., str], tmp_path: Path
) -> None:
    for month in ("oct", "nov"):
        write(f"{month}.csv", CSV)
    write("empty.csv", "")
    write("[x].csv", CSV)
    rows = staged(f"{tmp_path}/*[tv].csv", tmp_path / "oct.csv")
    assert [Path(name).name for name in rows.files] == ["nov.csv", "oct.csv"]
    assert rows.notes == (f"{tmp_path}/oct.csv: is given twice and read once",)
    assert staged(f"{tmp_path}/[x].csv").files == (f"{tmp_path}/[x].csv",)  # a file of that name goes before a glob
    assert staged(f"{tmp_path}/*").notes == (f"{tmp_path}/empty.csv: is empty and passed over",)
    assert refusal(f"{tmp_path}/*.tsv").startswith(f"no file fits; {tmp_path} holds [x].csv, empty.csv, nov.csv")


def test_standard_input_is_any_file(staged: Callable[..., Staged], read: Callable[..., Any], write: Any) -> None:
    assert staged("-", stdin=BytesIO(CSV.encode())).files == ("-",)
    assert read("-", stdin=BytesIO(CSV.encode())) == ROWS
    assert read("-", stdin=BytesIO(write("a.csv.zip", CSV).read_bytes())) == ROWS
    assert [row["a"] for row in read("-", stdin=BytesIO(b'[{"a": 1}]'))] == ["1"]


def test_a_pipe_is_read_once(read: Callable[..., Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["sh", "-c", f"printf 'user_id,item_id\\nu1,007\\nu2,8\\n' > {tmp_path}/pipe"]) as writer:
        assert read(tmp_path / "pipe") == ROWS
    assert writer.returncode == 0


def test_archives(
    write: Callable[..., Path], read: Callable[..., Any], refusal: Callable[..., str], tmp_path: Path
) -> None:
    def archive(members: dict[str, str]) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
        return tmp_path / "a.zip"

    held = {"oct.csv": CSV, "nov.csv": CSV, "README.md": "x", "__MACOSX/._oct.csv": "x", "empty.csv": ""}
    assert read(archive(held)) == ROWS + ROWS
    ratings, films = "userId,movieId,rating\n1,2,3\n", "movieId,title,genres\n2,x,y\n"
    movies = archive({"ml/ratings.csv": ratings, "ml/movies.csv": films})
    text = refusal(movies)
    assert "ratings.csv ['userId', 'movieId', 'rating'] and" in text
    assert text.endswith("are tables of different columns; name the files that are meant")
    assert read(f"{movies}/ml/movies.csv") == [{"movieId": "2", "title": "x", "genres": "y", LINE: 2}]
    assert refusal(f"{movies}/ml/tags.csv") == "is not in the archive; it holds ml/ratings.csv, ml/movies.csv"
    assert "holds several kinds" in refusal(archive({"a.csv": CSV, "b.json": "[]"}))
    text = refusal(archive({"README.md": "x", "b.pdf": "x"}))
    assert text.startswith("no data file in the archive; it holds README.md, b.pdf")
    assert "the zip archive is broken" in refusal(write("broken.csv", archive({"a.csv": CSV}).read_bytes()[:40]))
    assert "save the sheet as CSV" in refusal(archive({"xl/workbook.xml": "x"}))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"ORC\x00", "is an ORC file; write it as parquet"),
        ("a.csv", b"SQLite format 3\0", "is an SQLite database"),
        ("a.csv", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git LFS pointer"),
        ("a.tar", b"\0" * 257 + b"ustar", "is a tar archive"),
        ("a.xz", b"\xfd7zXZ\0\0", "is packed with xz"),
        ("a.csv", bytes(range(256)) * 4, "holds bytes that are no text"),
        ("a.json", b"hello", "line 1: no JSON ('hello' begins neither an object nor a list)"),
        ("a.gz", b"\x1f\x8b\x08\x00zz", "its gzip is broken after 0 bytes"),
    ],
)
def test_what_is_no_data(
    write: Callable[..., Path], refusal: Callable[..., str], name: str, content: bytes, expected: str
) -> None:
    path = write("plain", content)
    assert refusal(path.rename(path.with_name(name))).startswith(expected)


def test_what_is_not_there(
    write: Callable[..., Path], refusal: Callable[..., str], staged: Callable[..., Staged], tmp_path: Path
) -> None:
    write("items.csv", CSV)
    (tmp_path / "none").mkdir()
    assert refusal(tmp_path / "item.csv") == f"there is no such file; {tmp_path} holds items.csv, none"
    assert refusal(tmp_path / "none").startswith("is a folder without data files; it holds nothing; wanted are .csv")
    assert refusal(f"{tmp_path}/a\nb") == f"{tmp_path}/a\\nb: there is no such file; {tmp_path} holds items.csv, none"
    write("delta/_delta_log/0.json", "{}")
    assert "is a Delta table" in refusal(tmp_path / "delta")
    assert refusal("-") == "-: there is no standard input here; give a file".removeprefix("-: ")
    with pytest.raises(InputError, match="items: no file was given"):
        staged()


def test_options_without_an_effect_are_refused(
    write: Callable[..., Path], refusal: Callable[..., str], read: Callable[..., Any], tmp_path: Path
) -> None:
    lines = write("a.jsonl", '{"a": 1}\n')
    assert refusal(lines, columns=("a",)) == "items: --columns is for separated cells, and there is only json"
    assert refusal(lines, separator=";") == "items: --separator is for separated cells, and there is only json"
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p.parquet")
    assert refusal(tmp_path / "p.parquet", encoding="latin-1").startswith("items: --encoding is for text")
    assert refusal(tmp_path / "p.parquet", format="csv") == "is parquet, though --format says csv; leave --format out"
    assert refusal(lines, format="parquet").startswith("is no parquet, though --format says parquet")
    assert read(write("b.txt", '{"a": 1}\n'), format="csv", columns=("x",)) == [{"x": '{"a": 1}', LINE: 1}]


def test_a_file_that_changes_is_refused(write: Callable[..., Path], staged: Callable[..., Staged]) -> None:
    path = write("a.csv", CSV)
    rows = staged(path)
    path.write_text(CSV + "u3,9\n")
    with pytest.raises(InputError, match="has changed since it was first read"):
        list(rows.blocks())


def test_columns_of_ours_are_refused(write: Callable[..., Path], refusal: Callable[..., str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"__file": [1]}), tmp_path / "a.parquet")
    for path in (
        write("a.csv", "__line,b\n1,2\n"), write("a.jsonl", '{"__line": 1}\n'), tmp_path / "a.parquet"
    ):  # fmt: skip
        assert refusal(path).startswith("a column is called '__")


# --- broken in any way ---


def seeds(write: Callable[..., Path], folder: Path) -> dict[str, bytes]:
    """A file of every kind, by name."""
    rows = [
        {"user_id": f"u{n % 7}", "title": 'a "b",\nc é' if n % 3 else "ü", "n": n / 3, "tags": ["x"]} for n in range(40)
    ]
    table = pa.Table.from_pylist(rows)
    texts = {
        "a.csv": "user_id,title,n\n" + "".join(f'{r["user_id"]},"{r["title"]!r}",{r["n"]}\n' for r in rows),
        "b.tsv": "user_id\ttitle\n" + "".join(f"{r['user_id']}\té\n" for r in rows),
        "c.dat": "1::x::2024\n",
        "d.jsonl": "".join(pa_json(row) + "\n" for row in rows),
        "e.json": "[" + ",\n".join(map(pa_json, rows)) + "]",
        "f.json": '{"n": 1, "data": [' + ",\n".join(map(pa_json, rows)) + "]}",
    }
    data = {name: text.replace("'", "").encode() for name, text in texts.items()}
    data["g.csv"] = data["a.csv"].decode().encode("utf-16")
    data["h.csv"] = data["b.tsv"].decode().encode("latin-1")
    for packing in ("snappy", "zstd"):
        pq.write_table(table, folder / "seed", compression=packing, row_group_size=15)
        data[f"i_{packing}.parquet"] = (folder / "seed").read_bytes()
    for name, suffix in (("a.csv", "gz"), ("d.jsonl", "zst"), ("e.json", "bz2"), ("a.csv", "zip")):
        data[f"{name}.{suffix}"] = write(f"{name}.{suffix}", data[name]).read_bytes()
    return data


def pa_json(row: dict[str, Any]) -> str:
    import json

    return json.dumps(row, ensure_ascii=False)


def mutated(rng: random.Random, data: bytes) -> bytes:
    held = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, size = rng.randrange(len(held) + 1), rng.choice([1, 1, 2, 8, 40])
        some = [0, 10, 13, 34, 44, 91, 92, 123, 0xC3, 255, *(rng.randrange(256) for _ in range(8))]
        junk = bytes(rng.choice(some) for _ in range(size))
        way = rng.randrange(5)
        if way == 0:
            held[at : at + size] = junk
        elif way == 1:
            del held[at : at + size]
        elif way == 2:
            held[at:at] = junk
        elif way == 3:
            del held[at:]
        else:
            held[at:at] = held[: 4 * size]
    return bytes(held)


def test_broken_files_are_staged_or_one_line(
    write: Callable[..., Path], read: Callable[..., Any], tmp_path: Path, staged: Callable[..., Staged]
) -> None:
    """Never another exception, and no file left open (warnings are errors)."""
    rng = random.Random(17)
    kinds = seeds(write, tmp_path)
    outcomes = {"staged": 0, "refused": 0}
    for _ in range(N):
        name = rng.choice(sorted(kinds))
        path = tmp_path / name
        path.write_bytes(mutated(rng, kinds[name]))
        try:
            for block in staged(path).blocks():
                block.validate(full=True)
            outcomes["staged"] += 1
        except InputError as error:
            assert "\n" not in str(error), error
            assert str(error).startswith(str(path)), error
            outcomes["refused"] += 1
    assert min(outcomes.values()) > N / 50, outcomes


def test_an_early_refusal_ends_the_process_in_order(write: Callable[..., Path], tmp_path: Path) -> None:
    """Exit code 2 as asked, not 134: no thread of a reader outlives the interpreter."""
    path = write("a.csv", "a,b\n" + "1,2\n" * 300_000 + "3\n")
    code = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from features.intake.staging.stage import stage
from plumline.errors import InputError
try:
    stage([{str(path)!r}], SimpleNamespace(format=None, separator=None, encoding=None, columns=()), noun="items",
          into=Path({str(tmp_path)!r}))
except InputError as error:
    print(error)
    sys.exit(2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "line 300002: 1 cells" in done.stdout
