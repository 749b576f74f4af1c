"""RQ-k-means: principal components of the fused modalities, then k-means of the residuals, level after level.

The strongest simple rival of an RQ-VAE, and a quantiser of its own right (`quantizer.kind: rq_kmeans`): nothing to
tune, minutes at a million items, and no co-occurrence.
"""

import numpy as np
import torch
from scipy import sparse

from models.semantic_ids.codebooks import sample_points, start_codebook
from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams, check_vectors
from models.semantic_ids.normalisation import normalise
from models.semantic_ids.rqvae import nearest_codes
from models.semantic_ids.vectors import Vectors
from plumline.errors import InputError
from plumline.stage import hash_seed


def train(vectors: Vectors, params: QuantizerParams, seed: int, old_codes_NL: np.ndarray | None = None) -> Quantizer:
    """Fit both steps. Deterministic for one machine and seed. Raises InputError as the RQ-VAE's training does.

    old_codes_NL: codes that the codebooks start from, -1 for none.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    if not vectors.item_ids:
        raise InputError("embeddings: no items to train a quantizer on; land items first")
    check_vectors(vectors, vectors.widths)
    random_state = hash_seed("kmeans", seed) % 2**32
    num_items = len(vectors.item_ids)
    corpus = normalise(vectors, sparse.csr_array((num_items, num_items)))
    rows = sample_points(num_items, max(params.sizes), random_state)
    x_ND = np.concatenate([values.numpy()[rows] for values in corpus.inputs], axis=1)
    with threadpool_limits(limits=1):
        num_components = min(params.latent_dimensions, *x_ND.shape)
        components_ZD = np.eye(1, x_ND.shape[1])
        if np.ptp(x_ND, axis=0).any():  # items that are all alike have no components
            components_ZD = PCA(num_components, svd_solver="covariance_eigh").fit(x_ND).components_
    old = None if old_codes_NL is None else old_codes_NL[rows]
    residual = z_NZ = (x_ND @ components_ZD.T).astype(np.float32)
    weights: dict[str, np.ndarray] = {
        "project.weight": components_ZD.astype(np.float32),
        "project.bias": np.zeros(len(components_ZD)),
    }
    for level, size in enumerate(params.sizes):
        centres = start_codebook(residual, level, size, random_state, old)
        weights[f"codebooks.{level}"] = centres
        chosen = nearest_codes(torch.from_numpy(residual), torch.from_numpy(centres))
        residual = residual - centres[chosen.numpy()]
    for place, (mean, scale) in enumerate(zip(corpus.means, corpus.scales, strict=True)):
        weights[f"mean.{place}"], weights[f"scale.{place}"] = mean, np.array([scale], np.float32)
    largest = {"input": float(np.abs(x_ND).max(initial=0)), "latent": float(np.abs(z_NZ).max(initial=0))}
    weights = {name: np.ascontiguousarray(values, np.float32) for name, values in weights.items()}
    return Quantizer.freeze("rq_kmeans", vectors.widths, params.sizes, weights, largest)
