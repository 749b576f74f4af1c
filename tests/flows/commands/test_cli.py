"""Verbs on an empty home: one line, the right exit code, what to do next."""

import json

import pytest
from click.testing import CliRunner

from flows.commands.cli import main


def run(home, *arguments):
    return CliRunner(env={"PLUMLINE_HOME": str(home)}).invoke(main, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bootstrap"], "plumline init"),
        (["daily"], "plumline bootstrap"),
        (["retrain-sids"], "plumline init"),
        (["recommend", "--history", "a"], "plumline bootstrap"),
        (["recommend"], "--user ID or --history"),
        (["recommend", "--user", "u", "--history", "a"], "one of the two"),
        (["recommend", "--history", "a", "--history", "@nofile"], "--history @nofile: cannot be read (No such file"),
        (["ask", "Item"], "plumline bootstrap"),
        (["ask", "Item", "--release", "2024-01-01-aa"], "2024-01-01-aa"),
        (["serve"], "plumline bootstrap"),
        (["rollback"], "nothing to roll back"),
        (["promote", "2024-01-01-aa"], "none yet"),
        (["promote", "../../etc"], "release"),
        (["bootstrap", "--as-of", "someday"], "2011-10-31"),
        (["init", "--items", "i", "--recipe", "a", "--recipe", "b"], "--recipe is given 2 times (a, b), and takes one"),
        (["land", "--items", "i", "--replace", "0", "--replace", "1"], "--replace is given 2 times (0, 1)"),
    ],
)
def test_refusals_are_one_line_and_exit_2(home, arguments, words):
    done = run(home, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("plumline: ")
    assert words in done.stderr


def test_status_and_doctor_answer_on_an_empty_home(home):
    status = json.loads(run(home, "status", "--json").stdout)
    assert status["landed"] is None
    assert status["releases"] == []
    assert "nothing yet" in run(home, "status").stdout
    findings = json.loads(run(home, "doctor", "--json").stdout)
    assert {"python", "git", "torch", "recipe", "graph"} <= {finding["name"] for finding in findings}


def test_retract_is_kept_outside_releases(home):
    done = run(home, "retract", "i1", "i2")
    assert done.exit_code == 0
    assert "no delivery and no release has an item 'i1'" in done.stderr
    assert "never served from this home: 2 items" in done.stdout
    assert json.loads(run(home, "retract", "i3", "--json").stdout) == ["i1", "i2", "i3"]
    assert (home / "releases" / "tombstones.json").exists()


def test_no_home_is_said(tmp_path):
    done = run(tmp_path, "status")
    assert done.exit_code == 2
    assert "PLUMLINE_HOME" in done.stderr
