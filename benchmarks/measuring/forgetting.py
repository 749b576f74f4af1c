"""How far weights have gone from others, and what they still know: what ORBIT holds against retrieval."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.examples import Examples
from models.language import load_language_model
from models.packing import Cursor, Rows
from models.training import TargetLoss


def mean_loss(model: Any, examples: Examples, rows: np.ndarray, row_tokens: int) -> float:
    """Cross-entropy in nats, a target token. rows: of the examples."""
    packed, loss = Rows(examples, rows, row_tokens, seed=0, pad=0), TargetLoss(model.eval())
    cursor, total, count = Cursor(), 0.0, 0
    with torch.no_grad():
        while cursor.epoch == 0:
            taken, cursor = packed.take(cursor, 1)
            batch = packed.batch(taken)
            arrays = (batch.tokens, batch.mask, batch.positions, batch.source, batch.target)
            total += float(loss(*(torch.from_numpy(array) for array in arrays)))
            count += len(batch.target)
    return round(total / count, 6)


def distance(weights: Path, anchor: Path) -> float:
    """Euclidean distance of two checkpoints, relative to the length of the second."""
    one, other = (dict(load_language_model(folder).named_parameters()) for folder in (weights, anchor))
    with torch.no_grad():
        moved = sum(float((one[name] - other[name]).square().sum()) for name in other)
        return round((moved / sum(float(p.square().sum()) for p in other.values())) ** 0.5, 6)
