"""The whole loop on a synthetic company: init, bootstrap, daily, recommend, serve, promote, rollback, doctor."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from flows.steps.registry import Registry
from plumline import artifact
from serving.deploy import serve_process
from serving.release import Release

pytestmark = pytest.mark.timeout(1200)


def champion(company):
    return company.json("status")["champion"]


def live_items(company):
    table = pq.read_table(company.home / "releases" / "sealed" / champion(company) / "catalog" / "items.parquet")
    return {row["item_id"] for row in table.to_pylist() if not row["retired"]}


def test_the_loop_left_two_releases_and_everything_that_hangs_on_them(company):
    status = company.json("status")
    assert [release["kind"] for release in status["releases"]] == ["bootstrap", "daily"]
    assert [release["as_of"] for release in status["releases"]] == ["2024-01-12", "2024-01-13"]
    assert status["champion"] == status["releases"][-1]["release_id"]
    assert [release["tag"] for release in status["releases"]] == ["release@v1.20240112.0", "release@v1.20240113.0"]
    assert status["waiting"] == ["2024-01-14", "2024-01-15"]
    online = artifact.read_json(company.home / "data" / "online" / "version.json")
    assert online["complete"]
    assert online["as_of"] == "2024-01-13"
    snapshots = list((company.home / ".plumline" / "evidently").rglob("snapshots/*.json"))
    assert len(snapshots) == 2
    for release in status["releases"]:
        assert (company.home / ".plumline" / "bentoml" / "bentos" / "plumline" / release["release_id"]).is_dir()


def test_a_day_adopts_what_a_lineage_keeps_and_known_items_keep_their_sids(company):
    first, second = (
        Release.load(Registry(company.home).sealed(e.release_id)) for e in Registry(company.home).entries()
    )
    for component in ("quantizer", "vocabulary", "cpt"):
        digests = {artifact.read_manifest(release.path(component)).digest for release in (first, second)}
        assert len(digests) == 1, component
    assert artifact.read_manifest(first.path("sft")).digest != artifact.read_manifest(second.path("sft")).digest
    tables = [
        {row["item_id"]: row["codes"] for row in pq.read_table(r.path("sids") / "sids.parquet").to_pylist()}
        for r in (first, second)
    ]
    assert tables[0].items() <= tables[1].items()
    assert len(tables[1]) > len(tables[0]), "the synthetic day brought no new item"


def test_running_again_redoes_nothing(company):
    before = {p: p.stat().st_mtime_ns for p in (company.home / "artifacts").glob("*/manifest.json")}
    again = company.run("bootstrap", "--as-of", "2024-01-12")
    assert "already published" in again.stderr
    company.run("daily", "--as-of", "2024-01-13")
    assert {p: p.stat().st_mtime_ns for p in (company.home / "artifacts").glob("*/manifest.json")} == before
    assert champion(company) == company.json("status")["releases"][-1]["release_id"]


def test_a_change_of_code_is_said_and_retrains_nothing_by_itself(company, root, tmp_path):
    """A comment in the training loop is other code: the bootstrap stays, and status says whose code it is not."""
    assert company.json("status")["other_code"] == []
    code = tmp_path / "code"
    for name in ("plumline", "features", "models", "serving", "monitoring", "flows"):
        shutil.copytree(root / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    loop = code / "models" / "training" / "loop.py"
    loop.write_text(loop.read_text() + "\n# a word\n")
    changed = type(company)(company.home, {**company.environment, "PYTHONPATH": str(code)})
    releases = company.json("status")["releases"]
    before = {p: p.stat().st_mtime_ns for p in (company.home / "artifacts").glob("*/manifest.json")}
    assert changed.json("status")["other_code"] == ["cpt", "sft"]
    assert "the champion's cpt, sft" in changed.run("status").stdout
    said = changed.run("bootstrap", "--as-of", "2024-01-12").stderr
    assert f"release {releases[0]['release_id']} of 2024-01-12 was made by other code" in said
    assert "plumline bootstrap --anew" in said
    assert {p: p.stat().st_mtime_ns for p in (company.home / "artifacts").glob("*/manifest.json")} == before
    assert changed.json("status")["releases"] == releases


def test_the_service_and_the_command_line_give_the_same_valid_items(company):
    table = pq.read_table(company.home / "artifacts" / "histories" / "histories.parquet").to_pylist()
    live = live_items(company)
    with serve_process(company.home) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for row in table[:3]:
            history = row["item_ids"][-20:]
            asked = client.post("/recommend", json={"history": history, "k": 7}).json()
            here = company.json("recommend", "--history", ",".join(history), "-k", "7")
            items = [item["item_id"] for item in asked["items"]]
            assert items == [item["item_id"] for item in here["items"]]
            assert len(items) == len(set(items)) == 7
            assert set(items) <= live
            assert asked["release_id"] == here["release_id"] == champion(company)
        by_user = client.post("/recommend", json={"user_id": table[0]["user_id"]}).json()
        assert not by_user["degraded"]
        assert by_user["reason"] == ""
        assert [i["item_id"] for i in by_user["items"]] == [
            i["item_id"] for i in company.json("recommend", "--user", table[0]["user_id"])["items"]
        ]
        for body in ({"k": 0}, {"k": 101}, {"histroy": ["a"]}, {"history": ["a"] * 5000}):
            refused = client.post("/recommend", json=body)
            assert refused.status_code == 400
            assert len(refused.json()["error"].splitlines()) == 1


def test_rules_hold_and_the_beams_are_certified(company):
    history = ",".join(sorted(live_items(company))[:5])
    unseen = company.json("recommend", "--history", history, "-k", "100", "--rule", "~seen")
    assert not {item["item_id"] for item in unseen["items"]} & set(history.split(","))
    said = "rule allows no item: price < -1 leaves 0 of"
    assert said in company.run("recommend", "--history", history, "--rule", "price < -1", exit_code=2).stderr
    certificate = company.json("beam-check", "--requests", "3", "--rule", "~seen")
    assert certificate["holds"]
    assert certificate["num_requests"] == 3
    assert company.run("beam-check", "--rule", "nonsense", exit_code=2).stderr.count("\n") == 1
    scores = json.loads((company.home / "artifacts" / "scores" / "scores.json").read_text())
    assert scores["beam"]["holds"]


def test_rollback_promote_and_retract_move_what_is_served(company):
    releases = [release["release_id"] for release in company.json("status")["releases"]]
    history = ",".join(sorted(live_items(company))[:5])
    with serve_process(company.home) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/release").json()["release_id"] == releases[1]
        assert company.json("rollback")["release_id"] == releases[0]
        assert company.run("rollback", exit_code=2).stderr.count("\n") == 1
        _wait(lambda: client.get("/release").json()["release_id"] == releases[0])
        gone = company.json("recommend", "--history", history, "-k", "1")["items"][0]["item_id"]
        company.run("retract", gone)
        assert company.json("promote", releases[1])["release_id"] == releases[1]
        _wait(lambda: client.get("/release").json()["release_id"] == releases[1])
        everything = client.post("/recommend", json={"history": history.split(","), "k": 100}).json()
        assert gone not in [item["item_id"] for item in everything["items"]]
    assert gone not in [i["item_id"] for i in company.json("recommend", "--history", history, "-k", "100")["items"]]
    refused = company.run("promote", "2024-01-01-00000000", exit_code=2)
    assert releases[0] in refused.stderr


def _wait(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_doctor_is_content_and_finds_a_flipped_bit(company, tmp_path):
    assert all(finding["passed"] for finding in company.json("doctor"))
    copy = tmp_path / "home"
    shutil.copytree(company.home, copy, symlinks=True)
    victim = next((copy / "releases" / "sealed").glob("*/sft/weights/model.safetensors"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    sick = type(company)(copy, {**company.environment, "PLUMLINE_HOME": str(copy)})
    findings = json.loads(sick.run("doctor", "--json", exit_code=1).stdout)
    assert any("model.safetensors" in finding["found"] for finding in findings if not finding["passed"])


def test_dvc_repro_runs_the_same_graph(company, tmp_path, root):
    """By hand, from the same landed data and parameters: the same bytes, hence the same release id."""
    home = tmp_path / "home"
    shutil.copytree(company.home / "data" / "landing", home / "data" / "landing")
    (home / "data" / "traffic").mkdir()
    for name in ("recipes", "plumline", "features", "models", "serving"):
        source = company.home if name == "recipes" else root
        shutil.copytree(source / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(root / name, home)
    (home / "params.yaml").write_text(
        'recipe: recipes/tiny.yaml\nas_of: "2024-01-12"\nbase: ""\nprevious: ""\nseed: 17\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PLUMLINE_THREADS": "1", "PATH": path}
    for arguments in (["init", "-q", "--no-scm"], ["repro", "-q", "release"]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    by_hand = artifact.read_json(home / "artifacts" / "release" / "release.json")["release_id"]
    assert by_hand == company.json("status")["releases"][0]["release_id"]
