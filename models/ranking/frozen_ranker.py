"""A ranker that is learned: candidates in, an order out, and what each part had to do with it.

Not a stage: made by the stage `ranker`, read by whatever makes lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.ranking import lambdarank, why
from models.ranking.candidates import CandidateParams, Candidates
from models.ranking.features import FEATURES
from models.ranking.trees import Answers, Trees
from plumline import artifact
from plumline.errors import MissingArtifactError
from plumline.stage import say


@dataclass(frozen=True, eq=False)
class Ranker:
    """Orders candidates. trees: over FEATURES; None where places are fused.

    verb, prefix_words: see `models.ranking.why.Teller`.
    """

    candidates: CandidateParams
    trees: Trees | None = None
    verb: str = "taken"
    prefix_words: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> Ranker:
        """Read a `ranker` artifact; what it read of a candidate is found by name, so that older ones go on ordering.

        Where a feature of it is known no more, places are fused, which is said. Raises MissingArtifactError,
        CorruptArtifactError.
        """
        about = artifact.read_json(folder / "config.json")
        trees = None
        unknown = [name for name in about["features"] if name not in FEATURES]
        if unknown:
            say(f"{folder}: a ranker that reads {unknown[0]}, which this version does not know; places are fused")
        elif about["kind"] == "lambdarank":
            if not (folder / "model.txt").is_file():
                raise MissingArtifactError(f"{folder / 'model.txt'}: no such file; run the stage ranker again")
            trees = Trees.parse((folder / "model.txt").read_text(encoding="utf-8"), FEATURES)
        return Ranker(
            CandidateParams.model_validate(about["candidates"]),
            trees,
            verb=about["verb"],
            prefix_words=artifact.read_json(folder / "words.json"),
        )

    def scores(self, candidates: Candidates, table: np.ndarray) -> np.ndarray:
        """(n,) float64, higher is better. table: `features` of the candidates, of any number of requests."""
        return lambdarank.fuse(candidates) if self.trees is None else self.trees.scores(table)

    def judge(self, candidates: Candidates, table: np.ndarray) -> Judged:
        """The same of one request, and why."""
        if self.trees is None:
            return Judged(candidates, lambdarank.fuse(candidates))
        answers = self.trees.ask(table)
        return Judged(candidates, answers.scores(), answers)


@dataclass(frozen=True, eq=False)
class Judged:
    """What a ranker says of candidates. scores: (n,) float64, higher is better. answers: of the trees; None where
    places are fused."""

    candidates: Candidates
    scores: np.ndarray
    answers: Answers | None = None

    def shares(self, rows: np.ndarray) -> list[dict[str, float]]:
        """Part → share of each row's score; see `models.ranking.why.shares`."""
        if not len(rows):
            return []
        if self.answers is None:
            return why.fusion_shares(self.candidates, rows)
        return why.shares(self.answers.contributions(rows), self.candidates, rows)
