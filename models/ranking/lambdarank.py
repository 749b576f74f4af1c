"""What orders candidates: LambdaMART (Burges 2010) by LightGBM; reciprocal-rank fusion where nothing is learned.

Not a stage. A model is LightGBM's text format: no pickle. Equal labels give equal bytes: one thread, all seeds set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from models.ranking.candidates import SOURCES, Candidates
from models.ranking.features import FEATURES, MODEL, group_of
from models.ranking.trees import MAX_LEAVES
from plumline.stage import Params

if TYPE_CHECKING:
    from lightgbm import Booster

    from models.ranking.labels import Labels

ALL = tuple(range(len(FEATURES)))
WITHOUT_MODEL = tuple(place for place in ALL if group_of(FEATURES[place]) not in MODEL)
"""Columns of the features that are left when the model is not asked."""
_TRUNCATION = 30  # places that a swap is counted for: three times what is shown
_FUSION = 60.0  # of Cormack, Clarke, Büttcher 2009


class LambdarankParams(Params):
    """The trees. Few and small: 300 candidates are ordered, and explained, while a request waits."""

    rounds: int = Field(default=120, ge=1)
    """Trees."""
    leaves: int = Field(default=8, ge=2, le=MAX_LEAVES)
    """Leaves of a tree; with at most 8 its answers can be looked up (`models/ranking/trees.py`)."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Shrinkage."""
    shrink_leaves: float = Field(default=10.0, ge=0)
    """L2 penalty of a leaf's value."""
    min_leaf: int = Field(default=150, ge=1)
    """Rows of a leaf, at least."""
    feature_fraction: float = Field(default=0.3, gt=0, le=1)
    """Features that a tree may look at."""
    row_fraction: float = Field(default=0.8, gt=0, le=1)
    """Rows that a tree is grown on."""


def train(labels: Labels, columns: Sequence[int], params: LambdarankParams, seed: int) -> Booster:
    """Learn to put what was taken first, and of that what was worth most (NDCG at 30).

    columns: of the features; the others are not seen.
    """
    import lightgbm

    settings = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": _TRUNCATION,
        "lambda_l2": params.shrink_leaves,
        "num_leaves": params.leaves,
        "learning_rate": params.learning_rate,
        "min_data_in_leaf": params.min_leaf,
        "feature_fraction": params.feature_fraction,
        "bagging_fraction": params.row_fraction,
        "bagging_freq": 1,
        "seed": seed % 2**31,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(
        labels.features[:, list(columns)],
        labels.gains,
        group=labels.sizes,
        feature_name=[FEATURES[column] for column in columns],
        params={"verbosity": -1},
        free_raw_data=True,
    )
    return lightgbm.train(settings, data, params.rounds)


def fuse(candidates: Candidates, sources: Sequence[str] = SOURCES) -> np.ndarray:
    """(n,) float64: Σ 1 / (60 + place), places from 1, over the sources that name a candidate."""
    columns = [SOURCES.index(name) for name in sources]
    worth: np.ndarray = np.nan_to_num(1 / (_FUSION + 1 + candidates.places[:, columns].astype(np.float64))).sum(axis=1)
    return worth
