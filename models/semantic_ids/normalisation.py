"""Vectors as a quantiser is trained on them: each modality centred and scaled as a whole, as torch tensors.

Beside `vectors.py` and not in it, so that who reads vectors (the stage `embeddings`, a frozen quantiser) needs no
torch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from models.semantic_ids.vectors import Vectors


@dataclass(frozen=True)
class Corpus:
    """What is trained on. N items, M modalities.

    inputs: M × (N, D) float32, centred and scaled to mean squared length 1. masks: M × (N,) bool. means, scales: M ×
    what made them so. neighbours: (N, N) sparse similarities by co-occurrence, symmetric.
    """

    inputs: list[Tensor]
    masks: list[Tensor]
    means: list[np.ndarray]
    scales: list[float]
    neighbours: sparse.csr_array

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.masks[0])

    def batch(self, rows: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and masks of some rows."""
        index = torch.from_numpy(rows)
        return [values[index] for values in self.inputs], [mask[index] for mask in self.masks]


def normalise(vectors: Vectors, neighbours: sparse.csr_array) -> Corpus:
    """Centre each modality and scale it as a whole: its strong dimensions stay strong."""
    inputs, masks, means, scales = [], [], [], []
    for name, values in vectors.modalities.items():
        mask = vectors.masks[name]
        num_there = max(int(mask.sum()), 1)
        mean = (values.sum(axis=0, dtype=np.float64) / num_there).astype(np.float32)  # what is missing holds zeros
        there = values - mean
        there *= mask[:, None]
        variance = float(np.einsum("nd,nd->", there, there, dtype=np.float64)) / num_there
        scale = float(np.float32(1 / np.sqrt(variance) if variance > 1e-12 else 1.0))
        there *= np.float32(scale)
        inputs.append(torch.from_numpy(there))
        masks.append(torch.from_numpy(mask))
        means.append(mean)
        scales.append(scale)
    return Corpus(inputs, masks, means, scales, neighbours)
