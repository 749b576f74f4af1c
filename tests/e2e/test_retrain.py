"""Retraining the SIDs by hand: names survive, what moved is said, a killed run ends in the same bytes, the budget."""

import json
import shutil

import numpy as np
import pytest
import yaml

from flows.steps.registry import Registry
from models.semantic_ids.table import SidTable
from plumline import artifact
from serving.release import Release

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(2400)]


def copy_of(company, folder):
    """Another home in the same state."""
    shutil.copytree(company.home, folder, symlinks=True)
    return type(company)(folder, {**company.environment, "PLUMLINE_HOME": str(folder)})


def set_gate(company, **limits):
    path = company.home / "recipes" / "tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["gate"] |= limits
    path.write_text(yaml.safe_dump(recipe))


def test_a_retraining_follows_the_champion_and_ends_in_the_same_bytes_whatever_happens(new_company, tmp_path):
    set_gate(new_company, max_churn=1.0)
    first = new_company.json("bootstrap", "--as-of", "2024-01-12")[0]["release_id"]
    calm = copy_of(new_company, tmp_path / "calm")
    made = calm.json("retrain-sids")[0]
    assert (made["promoted"], made["kind"], made["as_of"]) == (True, "retrain", "2024-01-15")
    refused = copy_of(calm, tmp_path / "refused")

    # killed, a day promoted meanwhile, killed again, started again: the same release
    killed = new_company.run("retrain-sids", exit_code=1, PLUMLINE_CRASH_AT="sids:sealed")
    assert "SIGKILL" in killed.stderr
    assert new_company.json("daily")[0]["promoted"]
    new_company.run("retrain-sids", exit_code=1, PLUMLINE_CRASH_AT="sft:step:2")
    again = new_company.json("retrain-sids")[0]
    assert (again["release_id"], again["promoted"]) == (made["release_id"], True)
    digests = {artifact.read_manifest(Registry(c.home).sealed(made["release_id"])).digest for c in (calm, new_company)}
    assert len(digests) == 1

    # and nothing is redone, nor followed further
    before = {p: p.stat().st_mtime_ns for p in (calm.home / "artifacts").glob("*/manifest.json")}
    assert "already published" in calm.run("retrain-sids").stderr
    assert {p: p.stat().st_mtime_ns for p in (calm.home / "artifacts").glob("*/manifest.json")} == before
    status = calm.json("status")
    assert [(r["kind"], r["previous"]) for r in status["releases"]] == [("bootstrap", ""), ("retrain", first)]
    assert status["champion"] == made["release_id"]
    assert status["releases"][-1]["tag"] == "release@v2.20240115.0"

    check_names(calm, first, made["release_id"])
    check_refusal(refused)


def check_names(company, first, second):
    """The sealed release says whom it follows, how codes were renamed, and what moved; names mean the same items."""
    old, new = (Release.load(Registry(company.home).sealed(release_id)) for release_id in (first, second))
    for name in ("quantizer", "sids"):
        assert artifact.read_manifest(new.path(name)).parents["previous"] == artifact.read_manifest(old.folder).digest
    names = artifact.read_json(new.path("quantizer") / "alignment.json")["names"]
    sizes = artifact.read_json(new.path("quantizer") / "config.json")["codebooks"]
    assert [sorted(level) for level in names] == [list(range(size)) for size in sizes]
    churn = artifact.read_json(new.path("sids") / "report.json")["churn"]
    tables = [SidTable.load(release.path("sids")) for release in (old, new)]
    known = sorted(tables[0].codes_of.keys() & tables[1].codes_of.keys())
    assert churn["num_known"] == len(known) > 50
    for level, (before, after) in enumerate(zip(churn["before"], churn["after"], strict=True), start=1):
        rows = [np.array([table.codes_of[item][:level] for item in known]) for table in tables]
        assert after["items"] == pytest.approx((rows[0] != rows[1]).any(axis=1).mean())
        assert after["items"] <= before["items"]
    # by how much is asked in tests/models/semantic_ids/test_alignment.py: 90 items and sixty steps have no clusters to
    # find
    assert churn["after"][0]["items"] < churn["before"][0]["items"]
    gauges = json.loads(next((company.home / ".plumline" / "reports").glob("2024-01-15/gauges.json")).read_text())
    assert gauges["sid_churn_level1_percent"] == pytest.approx(100 * churn["after"][0]["traffic"])
    checks = artifact.read_json(company.home / "releases" / "verdicts" / f"{second}.json")["checks"]
    assert [check["passed"] for check in checks if check["name"] == "churn"] == [True]


def check_refusal(company):
    """Over the budget and unpaid: exit 2 and the reason, as often as it is asked; the champion stays."""
    set_gate(company, max_churn=0.0, min_churn_recall_gain=1000.0)
    params = company.home / "params.yaml"
    params.write_text(params.read_text().replace("seed: 17", "seed: 18"))
    champion = company.json("status")["champion"]
    for _ in range(2):
        made = company.json("retrain-sids", exit_code=2)[0]
        assert not made["promoted"]
        assert any("the budget is 0.0%; recall@10" in reason for reason in made["reasons"])
        assert company.json("status")["champion"] == champion
    company.run("promote", made["release_id"], exit_code=2)
    company.run("promote", made["release_id"], "--override", "the new text encoder is worth it")
    assert company.json("status")["champion"] == made["release_id"]
