"""How far weights have gone from others, and what they still know: what ORBIT holds against retrieval."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.corpus.cpt_examples import cpt_examples
from models.corpus.examples import Examples
from models.corpus.material import CorpusParams, Material
from models.language.model import load_language_model
from models.training.loop import TargetLoss
from models.training.packing import Cursor, Rows

UNSEEN_SHARE = 0.05
MOST_ASKED = 400


@dataclass(frozen=True)
class Lessons:
    """What continued pre-training learns, and what may be asked of it later.

    examples, chosen: of the training, and the rows that take part. asked: name → examples and rows of them; `unseen`:
    metadata of items whose metadata takes no part, `trained`: as many that do.
    """

    examples: Examples
    chosen: np.ndarray
    asked: dict[str, tuple[Examples, np.ndarray]]

    @staticmethod
    def of(params: CorpusParams, material: Material, rng: np.random.Generator) -> "Lessons":
        """As the stage `corpus` makes them."""
        made = cpt_examples(params, material, rng)
        examples, chosen = made.train, np.arange(made.train.num_examples)
        unseen = made.heldout, made.heldout.of_kinds("naming", "title", "topics", "channel")
        trained = examples.of_kinds("metadata")
        size = min(MOST_ASKED, len(unseen[1]), len(trained))
        asked = {
            name: (of, _some(rows, size, rng))
            for name, (of, rows) in (("unseen", unseen), ("trained", (examples, trained)))
        }
        return Lessons(examples, chosen, asked)


def _some(rows: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(rows, size, replace=False))


def mean_loss(model: Any, examples: Examples, rows: np.ndarray, row_tokens: int) -> float:
    """Cross-entropy in nats, a target token. rows: of the examples."""
    packed, loss = Rows(examples, rows, row_tokens, seed=0, pad=0), TargetLoss(model.eval())
    cursor, total, count = Cursor(), 0.0, 0
    with torch.no_grad():
        while cursor.epoch == 0:
            taken, cursor = packed.take(cursor, 1)
            batch = packed.batch(taken)
            arrays = (batch.tokens, batch.span, batch.positions, batch.source, batch.target)
            total += float(loss(*(torch.from_numpy(array) for array in arrays)))
            count += len(batch.target)
    return round(total / count, 6)


def distance(weights: Path, anchor: Path) -> float:
    """Euclidean distance of two checkpoints, relative to the length of the second."""
    one, other = (dict(load_language_model(folder).named_parameters()) for folder in (weights, anchor))
    with torch.no_grad():
        moved = sum(float((one[name] - other[name]).square().sum()) for name in other)
        return round((moved / sum(float(p.square().sum()) for p in other.values())) ** 0.5, 6)
