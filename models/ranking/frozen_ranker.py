"""A ranker that is learned: candidates in, an order out, and what each part had to do with it.

Not a stage: made by the stage `ranker`, read by whatever makes lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.ranking import lambdarank, why
from models.ranking.candidates import CandidateParams, Candidates
from models.ranking.features import FEATURES
from models.ranking.lambdarank import ALL
from plumline import artifact
from plumline.stage import say

if TYPE_CHECKING:
    from lightgbm import Booster


@dataclass(frozen=True, eq=False)
class Ranker:
    """Orders candidates. booster: None where places are fused. columns: features that it reads.

    verb, prefix_words: see `models.ranking.why.Teller`.
    """

    candidates: CandidateParams
    booster: Booster | None = None
    columns: Sequence[int] = ALL
    verb: str = "taken"
    prefix_words: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> Ranker:
        """Read a `ranker` artifact; what it read of a candidate is found by name, so that older ones go on ordering.

        Where a feature of it is known no more, places are fused, which is said. Raises MissingArtifactError.
        """
        about = artifact.read_json(folder / "config.json")
        booster = None
        unknown = [name for name in about["features"] if name not in FEATURES]
        if unknown:
            say(f"{folder}: a ranker that reads {unknown[0]}, which this version does not know; places are fused")
        elif about["kind"] == "lambdarank":
            import lightgbm

            booster = lightgbm.Booster(model_file=folder / "model.txt")
        return Ranker(
            CandidateParams.model_validate(about["candidates"]),
            booster,
            columns=ALL if unknown else tuple(FEATURES.index(name) for name in about["features"]),
            verb=about["verb"],
            prefix_words=artifact.read_json(folder / "words.json"),
        )

    def scores(self, candidates: Candidates, table: np.ndarray) -> np.ndarray:
        """(n,) float64, higher is better. table: `features` of the candidates."""
        if not len(candidates):
            return np.zeros(0)
        if self.booster is None:
            return lambdarank.fuse(candidates)
        return np.asarray(self.booster.predict(table[:, list(self.columns)], num_threads=1))

    def shares(self, candidates: Candidates, table: np.ndarray, rows: np.ndarray) -> list[dict[str, float]]:
        """Part → share of each row's score; see `models.ranking.why.shares`."""
        if not len(rows):
            return []
        if self.booster is None:
            return why.fusion_shares(candidates, rows)
        parts = self.booster.predict(table[rows][:, list(self.columns)], pred_contrib=True, num_threads=1)
        return why.shares(np.asarray(parts), self.columns, candidates, rows)
