"""From a bad delivery to a daily by the commands that are named on the way; and what a refused day changes: nothing."""

import re

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def set_gate(company, **values):
    path = company.home / "recipes" / "tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["gate"] |= values
    path.write_text(yaml.safe_dump(recipe))


def write_events(company, name, *rows):
    (company.home / name).write_text("\n".join(["user_id,item_id,timestamp", *map(",".join, rows), ""]))
    return name


def test_from_a_bad_delivery_to_a_daily(new_company):
    company = new_company
    bad = write_events(company, "bad.csv", *((f"u{n}", "nosuch", f"2024-01-10 10:{n:02d}") for n in range(60)))
    company.run("land", "--events", bad)
    refused = company.run("bootstrap", "--as-of", "2024-01-12", exit_code=2).stderr.strip().splitlines()[-1]
    assert "item_id unknown" in refused
    company.run("unland", re.search(r"plumline unland (\w+)", refused)[1])
    assert company.json("bootstrap", "--as-of", "2024-01-12")[0]["promoted"]

    # the case late.csv: of a day that is kept out nothing is known of its users; one of before is known as before
    known = company.json("deliveries")[0]
    item = company.json("recommend", "--history", "nosuch")["items"][0]["item_id"]
    late = write_events(company, "late.csv", *(("late", item, f"2024-01-13 10:{n:02d}") for n in range(3)))
    company.run("land", "--events", late)
    set_gate(company, min_uniqueness=1.1)
    company.run("daily", exit_code=2)
    answer = company.json("recommend", "--user", "late")
    assert (answer["reason"], answer["degraded"]) == ("cold", False)
    assert "nobody knows user 'late'" in answer["note"]

    set_gate(company, min_uniqueness=0.0)
    (made,) = company.json("daily")
    assert made["promoted"]
    assert company.json("recommend", "--user", "late")["reason"] == ""

    # a release remembers its deliveries; without one of them the next day is made all the same
    told = company.json("unland", "1", "--dry-run")
    assert told["releases"] == [made["release_id"]]
    assert made["release_id"] in company.json("unland", known["id"], "--dry-run")["releases"]
    company.run("unland", "1")
    company.run("daily")
    assert len(company.json("status")["releases"]) == 3
