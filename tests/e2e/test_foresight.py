"""A release that the gate would turn down stops before its training: one line, exit code 2, nothing trained."""

import pytest
import yaml

from plumline import artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def set_recipe(company, section, **values):
    path = company.home / "recipes" / "tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe[section] |= values
    path.write_text(yaml.safe_dump(recipe))


def last_line(company, *arguments):
    return company.run(*arguments, exit_code=2).stderr.strip().splitlines()[-1]


def test_what_the_gate_will_refuse_is_said_before_anything_is_trained(new_company):
    artifacts = new_company.home / "artifacts"
    set_recipe(new_company, "gate", min_uniqueness=0.5)
    set_recipe(new_company, "quantizer", codebooks=[16, 2])  # 32 SIDs for some eighty items
    said = last_line(new_company, "bootstrap", "--as-of", "2024-01-12")
    assert said.startswith("plumline: uniqueness: 0.")
    assert "at least 0.5, and the gate would turn this release down, so nothing was trained" in said
    assert "set quantizer.codebooks: [64, 64] in the recipe (now [16, 2])" in said
    assert (artifacts / "sids" / "report.json").exists()
    assert not (artifacts / "cpt").exists()

    # what it says to do is enough
    set_recipe(new_company, "quantizer", codebooks=[64, 64])
    assert new_company.json("bootstrap", "--as-of", "2024-01-12")[0]["promoted"]
    report = artifact.read_json(artifacts / "sids" / "report.json")
    assert report["uniqueness"] >= 0.5 * report["content_uniqueness"]

    # a day and a retraining stop as a first release does, and the champion stays
    champion = new_company.json("status")["champion"]
    set_recipe(new_company, "gate", min_uniqueness=1.1)
    set_recipe(new_company, "quantizer", codebooks="auto")
    cpt = artifact.read_manifest(artifacts / "cpt").digest
    assert "a day has the codebooks of the release that it continues, [64, 64]" in last_line(new_company, "daily")
    assert "set quantizer.codebooks: [128, 64] in the recipe (now [64, 64])" in last_line(new_company, "retrain-sids")
    assert artifact.read_manifest(artifacts / "cpt").digest == cpt
    assert new_company.json("status")["champion"] == champion
    assert len(new_company.json("status")["releases"]) == 1

    # a day that nothing follows has nothing to be scored on
    said = last_line(new_company, "bootstrap", "--as-of", "2024-01-16")
    assert "as_of 2024-01-16: 0 queries, at least 1" in said
    assert "give an earlier --as-of, or land later days" in said
