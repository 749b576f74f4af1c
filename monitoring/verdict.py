"""Verdict: what the gate says about one release, as checks with their reasons, in memory and on disk.

The rules are gates.py's and method_rules.py's; where verdicts lie is for the flows to say.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from plumline import artifact
from plumline.errors import CorruptArtifactError, RefusedError


@dataclass(frozen=True)
class Check:
    """One rule looked at. observed and limit are None where there is no such number.

    blocking: whether a failed check keeps the release out; the others are said and do not decide.
    valid: False if the rule had nothing to look at.
    """

    name: str
    observed: float | None
    limit: float | None
    passed: bool
    reason: str
    blocking: bool = True
    valid: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the gate says about one release, named by id and manifest digest."""

    passed: bool
    checks: tuple[Check, ...]
    release_id: str = ""
    digest: str = ""

    @property
    def valid(self) -> bool:
        """Whether every blocking rule had something to look at."""
        return all(check.valid for check in self.checks if check.blocking)

    @property
    def status(self) -> Literal["passed", "failed", "invalid"]:
        """One word for tables."""
        return "invalid" if not self.valid else "passed" if self.passed else "failed"

    @property
    def failures(self) -> tuple[Check, ...]:
        """The blocking checks that failed."""
        return tuple(check for check in self.checks if check.blocking and not check.passed)

    def named(self, release_id: str, digest: str) -> "Verdict":
        """The same verdict, bound to a release."""
        return replace(self, release_id=release_id, digest=digest)

    def for_release(self, release_id: str, digest: str) -> "Verdict":
        """This verdict, if it lets exactly this release pass; RefusedError if it is another's, failed or invalid."""
        if (self.release_id, self.digest) != (release_id, digest):
            raise RefusedError(
                f"verdict names release {self.release_id or '(none)'} ({self.digest[:12]}), not {release_id} "
                f"({digest[:12]}); judge this release and promote with its own verdict"
            )
        if self.status != "passed":
            said = "; ".join(f"{check.name}: {check.reason}" for check in self.failures)
            raise RefusedError(f"release {release_id}: gate {self.status}: {said}; the champion stays")
        return self

    def save(self, path: Path) -> None:
        """Put the verdict in place at once, as JSON."""
        value = {**asdict(self), "status": self.status}
        artifact.replace_file(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Verdict":
        """Read a saved verdict. Raises MissingArtifactError or CorruptArtifactError naming the file."""
        raw = artifact.read_json(path)
        try:
            checks = tuple(Check(**check) for check in raw["checks"])
            verdict = cls(bool(raw["passed"]), checks, str(raw["release_id"]), str(raw["digest"]))
        except (TypeError, KeyError) as error:
            raise CorruptArtifactError(f"{path}: not a verdict ({error}); judge the release again") from None
        if verdict.passed != passes(verdict.checks):
            raise CorruptArtifactError(f"{path}: says passed={verdict.passed} against its own checks; judge it again")
        return verdict


def passes(checks: tuple[Check, ...]) -> bool:
    """Whether every blocking check had something to look at and holds."""
    return all(check.passed and check.valid for check in checks if check.blocking)


def show(value: float | None) -> str:
    """A figure in the reason of a check."""
    return "(no figure)" if value is None else f"{value:.4g}"
