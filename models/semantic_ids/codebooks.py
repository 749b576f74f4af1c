"""What keeps the codebooks of a residual quantiser alive: a k-means start, averages of what chose them, revival."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.semantic_ids.rqvae import Quantised, Rqvae, nearest_codes
from plumline.stage import hash_seed

_POINTS_A_CODE = 32
_LEAST_POINTS = 32_768
_STARTS_A_CODE = 4


def kmeans(points_NZ: np.ndarray, num_codes: int, seed: int) -> np.ndarray:
    """Centres (num_codes, Z) float32 of scikit-learn's k-means on one thread.

    k-means++ chooses the start among four points a code, because its cost grows with points × codes. With no more
    distinct points than codes these points are the centres, the last one repeated: a repeated code is never the first
    nearest.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_limits

    distinct = np.unique(points_NZ, axis=0)
    if len(distinct) <= num_codes:
        return distinct[np.minimum(np.arange(num_codes), len(distinct) - 1)].astype(np.float32)
    with threadpool_limits(limits=1):
        few = np.random.default_rng(seed).permutation(len(distinct))[: _STARTS_A_CODE * num_codes]
        start, _ = kmeans_plusplus(distinct[few], num_codes, random_state=seed)
        fitted = KMeans(num_codes, init=start, n_init=1, max_iter=25, random_state=seed).fit(points_NZ)
    return fitted.cluster_centers_.astype(np.float32)


def sample_points(num_items: int, num_codes: int, seed: int) -> np.ndarray:
    """Rows that k-means of `num_codes` codes looks at, ascending: 32 a code are enough for centres."""
    limit = max(_POINTS_A_CODE * num_codes, _LEAST_POINTS)
    return np.sort(np.random.default_rng(seed).permutation(num_items)[:limit])


def inherited(points_NZ: np.ndarray, codes_N: np.ndarray, num_codes: int, seed: int) -> np.ndarray:
    """Centres (num_codes, Z) float32: the means of the points that carried each code; -1 in codes_N: none.

    A code that no point carried starts on some point, so that new items find free codes.
    """
    known = (codes_N >= 0) & (codes_N < num_codes)
    counts = np.bincount(codes_N[known], minlength=num_codes)
    sums = np.zeros((num_codes, points_NZ.shape[1]))
    np.add.at(sums, codes_N[known], points_NZ[known])
    some = points_NZ[np.random.default_rng(seed).integers(0, len(points_NZ), num_codes)]
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], some).astype(np.float32)


def start_codebook(
    points_NZ: np.ndarray, level: int, num_codes: int, seed: int, old_codes_NL: np.ndarray | None
) -> np.ndarray:
    """Centres of one level: inherited where an older table has the level, else k-means. old_codes_NL: of the points."""
    if old_codes_NL is None or level >= old_codes_NL.shape[1] or not (old_codes_NL[:, level] >= 0).any():
        return kmeans(points_NZ, num_codes, seed)
    return inherited(points_NZ, old_codes_NL[:, level], num_codes, seed)


@torch.no_grad()
def start_codebooks(
    model: Rqvae,
    latents: Callable[[np.ndarray], Tensor],
    num_items: int,
    seed: int,
    old_codes_NL: np.ndarray | None = None,
) -> None:
    """`start_codebook` of the residuals, level after level. latents: rows (n,) → z (n, Z)."""
    random_state = hash_seed("kmeans", seed) % 2**32
    rows = sample_points(num_items, max(len(codebook) for codebook in model.codebooks), random_state)
    residual, old = latents(rows), None if old_codes_NL is None else old_codes_NL[rows]
    for level, codebook in enumerate(model.codebooks):
        centres = start_codebook(residual.numpy(), level, len(codebook), random_state, old)
        codebook.copy_(torch.from_numpy(centres))
        residual = residual - codebook[nearest_codes(residual, codebook)]


@torch.no_grad()
def revive_codes(
    model: Rqvae, residuals: list[Tensor], codes_BL: Tensor, chosen: list[np.ndarray], generator: np.random.Generator
) -> None:
    """Move codes that were never chosen onto residuals of this batch that lie far from theirs; resets `chosen`.

    residuals: L × (B, Z), codes_BL: their codes. chosen: L × (K,) how often each code was taken since the last time.
    """
    for level, (codebook, counts) in enumerate(zip(model.codebooks, chosen, strict=True)):
        dead = np.flatnonzero(counts == 0)
        error = (residuals[level] - codebook[codes_BL[:, level]]).square().sum(1).double().numpy()
        wanted = int(min(len(dead), (error > 0).sum()))
        if wanted:
            picked = generator.choice(len(error), wanted, replace=False, p=error / error.sum())
            codebook[torch.from_numpy(dead[:wanted])] = residuals[level][torch.from_numpy(picked)]
        counts[:] = 0


class ExponentialMovingAverage:
    """Codebooks as moving averages of the residuals that chose them (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self, model: Rqvae, decay: float) -> None:
        self._model, self._decay = model, decay
        self._counts = [torch.ones(len(codebook)) for codebook in model.codebooks]
        for codebook in model.codebooks:
            codebook.requires_grad_(False)

    @torch.no_grad()
    def update(self, result: Quantised) -> None:
        """Move every code that was chosen towards the mean of its residuals."""
        for level, codebook in enumerate(self._model.codebooks):
            codes, residual = result.codes[:, level], result.residuals[level]
            counts = torch.zeros(len(codebook)).index_add_(0, codes, torch.ones(len(codes)))
            sums = torch.zeros_like(codebook).index_add_(0, codes, residual)
            mass = self._decay * self._counts[level]
            moved = (mass[:, None] * codebook + (1 - self._decay) * sums) / (mass + (1 - self._decay) * counts)[:, None]
            codebook.copy_(torch.where(counts[:, None] > 0, moved, codebook))
            self._counts[level] = (mass + (1 - self._decay) * counts).clamp(min=1e-3)
