"""A verdict is of one release, says one word, and survives the disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monitoring.verdict import Check, Verdict, show
from plumline.errors import CorruptArtifactError, RefusedError


def test_verdict_is_for_one_release_and_must_have_passed() -> None:
    good = Verdict(True, (Check("num_queries", 5, 1, True, "5 queries, at least 1"),)).named("r1", "d1")
    assert good.for_release("r1", "d1") is good
    with pytest.raises(RefusedError, match="not r2"):
        good.for_release("r2", "d1")
    with pytest.raises(RefusedError, match="not r1"):
        good.for_release("r1", "d2")
    bad = Verdict(False, (Check("num_invalid", 3, 0, False, "3, at most 0"),), "r1", "d1")
    with pytest.raises(RefusedError, match="gate failed: num_invalid: 3, at most 0"):
        bad.for_release("r1", "d1")


def test_verdict_survives_the_disk_and_a_forged_one_does_not(tmp_path: Path) -> None:
    bad = Verdict(False, (Check("num_queries", None, 1, False, "none", valid=False),), "r1", "d1")
    path = tmp_path / "verdict.json"
    bad.save(path)
    assert Verdict.load(path) == bad
    path.write_text(path.read_text().replace('"passed": false,\n  "release', '"passed": true,\n  "release'))
    with pytest.raises(CorruptArtifactError, match="against its own checks"):
        Verdict.load(path)
    path.write_text("[]")
    with pytest.raises(CorruptArtifactError, match="not a verdict"):
        Verdict.load(path)


def test_status_follows_blocking_checks_only() -> None:
    said = Check("seen_masked/sasrec", None, None, False, "x", blocking=False, valid=False)
    verdict = Verdict(True, (said,))
    assert verdict.status == "passed"
    assert replace(verdict, passed=False, checks=(replace(said, blocking=True),)).status == "invalid"


def test_failures_are_the_blocking_checks_that_failed() -> None:
    held, said = Check("a", 1, 0, True, "held"), Check("b", 0, 1, False, "said", blocking=False)
    failed = Check("c", 0, 1, False, "failed")
    assert Verdict(False, (held, said, failed)).failures == (failed,)


def test_a_refusal_names_whose_verdict_it_is_and_every_reason() -> None:
    checks = (Check("num_invalid", 3, 0, False, "3, at most 0"), Check("own", -0.1, -0.01, False, "own is better"))
    digest = "0123456789abcdef"
    refusals = {
        Verdict(True, ()): rf"names release \(none\) \(\), not r1 \({digest[:12]}\); judge",
        Verdict(True, (), "r2", digest[::-1]): rf"names release r2 \({digest[::-1][:12]}\), not r1 \({digest[:12]}\);",
        Verdict(False, checks, "r1", digest): r"failed: num_invalid: 3, at most 0; own: own is better; the champion",
    }
    for verdict, words in refusals.items():
        with pytest.raises(RefusedError, match=words):
            verdict.for_release("r1", digest)


def test_the_file_says_the_status_and_its_reasons_as_people_write_them(tmp_path: Path) -> None:
    verdict = Verdict(False, (Check("own", -0.1, -0.01, False, "−0.1000 ± 0.0040"),))
    verdict.save(tmp_path / "verdict.json")
    text = (tmp_path / "verdict.json").read_text()
    assert "−0.1000 ± 0.0040" in text
    assert json.loads(text)["status"] == "failed"
    assert (verdict.release_id, verdict.digest) == ("", "")


def test_a_figure_in_a_reason() -> None:
    assert [show(None), show(0.123456), show(12345.0)] == ["(no figure)", "0.1235", "1.234e+04"]
