"""A verdict is of one release, says one word, and survives the disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from monitoring.verdict import Check, Verdict
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
