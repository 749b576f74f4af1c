"""`plumline sids report` on a home with one small sealed release: JSON, words, page, refusals."""

import json
import shutil
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from flows.commands.cli import main
from models.semantic_ids.sids import describe_table
from models.semantic_ids.table import SidTable
from plumline import artifact
from plumline.sid import SidSpace
from plumline.tables import write_parquet
from serving.pointers import promote
from serving.release import EDGES, ReleaseParams, run

ITEMS = [f"i{number:02d}" for number in range(12)]
TITLES = [f"[red]desk lamp\x1b[31m {n}" if n < 6 else f"garden <script>chair {n}" for n in range(12)]


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """A home's releases/ with a champion, and the histories that its SIDs were made from."""
    root = tmp_path_factory.mktemp("sids")
    codes = np.array([(n // 6, min(n % 6, 4), 0) for n in range(12)], np.int32)
    table = SidTable(SidSpace((2, 6, 4)), True, ITEMS, codes)
    days = pa.nulls(12, pa.date32())
    items = {"item_id": ITEMS, "title": TITLES, "channel": ["lamps"] * 6 + ["chairs"] * 6}
    items |= {"retired": [False] * 12, "first_seen_day": days}
    pairs = {"item_a": ["i00", "i00"], "item_b": ["i01", "i06"], "count": [3, 1]}

    def fill(name, out):
        if name == "catalog":
            write_parquet(out / "items.parquet", pa.table(items))
            write_parquet(out / "users.parquet", pa.table({"user_id": ["u"]}))
        elif name == "histories":
            write_parquet(out / "pairs.parquet", pa.table(pairs))
        elif name == "embeddings":
            artifact.write_json(out / "encoder" / "title.json", {})
        elif name == "sids":
            table.save(out)
            artifact.write_json(out / "report.json", describe_table(table))
        else:
            artifact.write_json(out / "report.json", {"reconstruction": {"text": 0.25}})

    edges = {**EDGES, "sids": ("quantizer", "histories")}
    names = ("histories", "catalog", "embeddings", "quantizer", "sids", "vocabulary")
    for name in (*names, "corpus", "cpt", "sft", "index", "memory", "ranker", "scores"):
        parents = {parent: artifact.read_manifest(root / parent).digest for parent in edges.get(name, ())}
        with artifact.writing(root / name, stage=name, key=name, parents=parents) as out:
            fill(name, out)
    parts = {path.name: path for path in root.iterdir() if path.is_dir() and path.name not in (".scratch", "histories")}
    with artifact.writing(root / "release", stage="release", key="release") as out:
        run(ReleaseParams(), **parts, as_of=date(2011, 10, 31), out=out)
    release_id = artifact.read_json(root / "release" / "release.json")["release_id"]
    (root / "releases" / "sealed").mkdir(parents=True)
    (root / "release").rename(root / "releases" / "sealed" / release_id)
    promote(root / "releases", release_id, expected=0)
    return root, release_id


@pytest.fixture
def made(home, sealed):
    """A home of one's own with that release as champion."""
    root, release_id = sealed
    shutil.copytree(root / "releases", home / "releases")
    shutil.copytree(root / "histories", home / "artifacts" / "histories")
    return home, release_id


def report(home, *arguments):
    return CliRunner(env={"PLUMLINE_HOME": str(home)}).invoke(main, ["sids", "report", *arguments])


def test_json_has_every_figure_and_no_page(made):
    home, release_id = made
    done = report(home, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["release_id"] == release_id
    assert (found["num_items"], found["collisions"], found["largest_bucket"]) == (12, 4, 2)
    assert found["uniqueness"] == pytest.approx(8 / 12)
    assert all({"usage", "perplexity", "gini"} <= set(level) for level in found["levels"])
    assert found["reconstruction"] == {"text": 0.25}
    assert [level["share"] for level in found["co_occurrence"]["levels"]] == [0.75, 0.0, 0.0]
    assert found["co_occurrence"]["of_this_release"] is True
    assert found["purity"]["kinds"]["channel"]["levels"][0]["share"] == 1.0
    assert [prefix["num_items"] for prefix in found["atlas"]["prefixes"]] == [6, 6]
    assert found["atlas"]["prefixes"][0]["num_children"] == 5
    assert found["churn"] is None
    assert not (home / ".plumline").exists()


def test_words_and_the_page(made):
    home, release_id = made
    done = report(home)
    assert done.exit_code == 0, done.output
    page = home / ".plumline" / "reports" / "sids" / f"{release_id}.html"
    assert done.stdout.splitlines()[-1].split() == ["page", str(page)]
    assert "unique          66.7%, with the tie-break 66.7%" in done.stdout
    assert "4 items, at most 2 on a SID" in done.stdout
    assert "75.0%" in done.stdout
    assert "[red]desk lamp [31m 4; [red]desk lamp [31m 5" in done.stdout  # neither rich nor the terminal obeys a title
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    assert release_id in page.read_text()
    assert "<script" not in page.read_text()


def test_a_page_where_it_is_wanted(made, tmp_path):
    home, release_id = made
    for arguments in (["--json"], []):
        goal = tmp_path / f"page{len(arguments)}.html"
        done = report(home, "--release", release_id, "--html", str(goal), *arguments)
        assert done.exit_code == 0, done.output
        assert "Semantic IDs of" in goal.read_text()
    assert not (home / ".plumline").exists()
    assert report(home, "--html", str(tmp_path)).exit_code == 2


def test_without_histories_the_figure_is_left_out(made):
    home, _ = made
    shutil.rmtree(home / "artifacts")
    found = json.loads(report(home, "--json").stdout)
    assert found["co_occurrence"]["levels"] is None
    assert "artifacts/histories" in found["co_occurrence"]["why"]
    assert "left out" in report(home).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "plumline bootstrap"), (["--release", "2011-10-31-nope"], "none yet"), (["--release", "../x"], "release")],
)
def test_refusals_are_one_line(home, arguments, words):
    done = report(home, *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr


def test_a_damaged_release_is_not_measured(made):
    home, release_id = made
    path = home / "releases" / "sealed" / release_id / "sids" / "sids.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = report(home, "--json")
    assert done.exit_code == 1
    assert "sids.parquet" in done.stderr
