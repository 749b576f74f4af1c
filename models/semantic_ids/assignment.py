"""Codes of items from a frozen quantizer, bit-identical whatever the batch, its order, the threads or the machine.

Sums of floats depend on their order, and a BLAS chooses the order by batch size, thread count and processor. Sums of
integers do not. So weights, inputs and hidden values are rounded to integers of at most B bits, and a float64 matrix
product of them is exact however it is ordered, as long as 2B bits and the carries of the longest sum stay within the 53
of a float64: any BLAS, fast, gives the one true answer. Between layers values are scaled by a power of two and rounded
to B bits again, which is exact too.

The nearest code is searched in float32, which is twice as fast: where the two best scores lie closer than twice the
largest error that float32 can have made (Higham 2002, eq. 3.5: γ_n |a|·|b|, whatever the order), the row is decided
anew in exact arithmetic. NumPy only: daily runs and new items need no torch.

Shapes: N items, I and O widths of a layer, Z latent, K codes of a level, L levels, M modalities.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

Block = TypeVar("Block")
Result = TypeVar("Result")

MOST_BITS = 20
_CHUNK = 512
_UNIT_ROUNDOFF = 2.0**-24


def bits_for(width: int) -> int:
    """B: bits a factor may have so that a sum of `width` products, and a bias, stays exact in float64."""
    return min(MOST_BITS, (52 - math.ceil(math.log2(max(width, 2)))) // 2)


def exponent_for(largest: float, bits: int, headroom: float) -> int:
    """The largest e for which headroom · largest · 2^e still has at most `bits` bits; what exceeds it is clipped."""
    return bits - math.ceil(math.log2(headroom * largest)) if largest > 0 else bits


def to_fixed(values: np.ndarray, exponent: int, bits: int) -> np.ndarray:
    """round(values · 2^exponent), clipped to ±2^bits. values: float64. Returns float64 that holds integers."""
    limit = float(2**bits)
    scaled = values * 2.0**exponent  # exact: a power of two
    np.rint(scaled, out=scaled)
    np.maximum(scaled, -limit, out=scaled)
    return np.minimum(scaled, limit, out=scaled)


@dataclass(frozen=True)
class Layer:
    """y = W x + b in fixed point, a ReLU if wanted, rounded to `exponent` again.

    weight: (O, I) and bias: (O,) float64 that hold integers; shift: power of two from products to the output.
    """

    weight: np.ndarray
    bias: np.ndarray
    shift: int
    relu: bool
    bits: int

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray, *, entering: int, leaving: int, relu: bool, bits: int) -> "Layer":
        """Round float weights. entering, leaving: exponents of x and y."""
        exponent = exponent_for(float(np.abs(weight).max(initial=0.0)), bits, 1.0)
        products = exponent + entering
        return cls(to_fixed(weight, exponent, bits), to_fixed(bias, products, 2 * bits), leaving - products, relu, bits)

    def __call__(self, x_NI: np.ndarray) -> np.ndarray:
        out = x_NI @ self.weight.T
        out += self.bias
        if self.relu:
            np.maximum(out, 0, out=out)
        return to_fixed(out, self.shift, self.bits)


@dataclass(frozen=True)
class Assigner:
    """Vectors → latents → codes. Build it with `models.semantic_ids.quantizer.Quantizer.assigner`.

    means: M × (D,) and scales: M floats that normalise an input. encoders: M lists of layers, empty for none.
    project: concatenated modalities → z. codebooks: L, at z's exponent.
    """

    means: Sequence[np.ndarray]
    scales: Sequence[float]
    input_exponent: int
    bits: int
    encoders: Sequence[Sequence[Layer]]
    project: Layer
    codebooks: Sequence["Codebook"]
    latent_exponent: int

    def latents(self, inputs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """z · 2^latent_exponent of M × (N, D) floats with masks M × (N,). Returns (N, Z) float64 of integers."""
        parts = []
        for x, mask, mean, scale, layers in zip(inputs, masks, self.means, self.scales, self.encoders, strict=True):
            part = to_fixed((x - mean.astype(np.float64)) * scale, self.input_exponent, self.bits)
            for layer in layers:
                part = layer(part)
            parts.append(np.where(mask[:, None], part, 0.0))
        return self.project(np.concatenate(parts, axis=1))

    def codes(self, z_NZ: np.ndarray) -> np.ndarray:
        """Nearest code at every level, the lower one on a tie. z_NZ: as `latents` returns it. Returns (N, L) int64."""
        codes = np.empty((len(z_NZ), len(self.codebooks)), np.int64)
        residual = z_NZ
        for level, codebook in enumerate(self.codebooks):
            codes[:, level] = codebook.nearest(residual)
            if level + 1 < len(self.codebooks):
                residual = residual - codebook.codes[codes[:, level]]
        return codes

    def assign(self, inputs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """Codes of N items, chunk by chunk. Returns (N, L) int64."""
        rows = range(0, len(masks[0]), _CHUNK)
        parts = [
            self.codes(self.latents([x[i : i + _CHUNK] for x in inputs], [m[i : i + _CHUNK] for m in masks]))
            for i in rows
        ]
        return np.concatenate([np.zeros((0, len(self.codebooks)), np.int64), *parts])


@dataclass(frozen=True)
class Codebook:
    """codes: (K, Z) float64 that hold integers below 2^22."""

    codes: np.ndarray

    @cached_property
    def _half_squares(self) -> np.ndarray:
        return np.einsum("kz,kz->k", self.codes, self.codes) / 2

    @cached_property
    def _search(self) -> np.ndarray:
        """(Z + 1, K) float32: [r, 1] times it is the score of every code."""
        return np.concatenate([self.codes.T, -self._half_squares[None]]).astype(np.float32)

    def nearest(self, residual_NZ: np.ndarray) -> np.ndarray:
        """Index of the nearest code, the lower one on a tie, in exact arithmetic; residuals are integers below 2^24.

        ‖r − e‖² is smallest where r·e − ‖e‖²/2 is largest. Returns (N,) int64.
        """
        ones = np.ones((len(residual_NZ), 1), np.float32)
        score_NK = np.concatenate([residual_NZ, ones], axis=1, dtype=np.float32) @ self._search
        chosen = score_NK.argmax(axis=1)
        if len(self.codes) == 1 or not len(residual_NZ):
            return chosen
        rows = np.arange(len(chosen))
        best = score_NK[rows, chosen]
        score_NK[rows, chosen] = -np.inf
        gap = best.astype(np.float64) - score_NK.max(axis=1)
        num_terms = self.codes.shape[1] + 3  # one more for the norm, one for its own rounding, one to spare
        gamma = num_terms * _UNIT_ROUNDOFF / (1 - num_terms * _UNIT_ROUNDOFF)
        largest = self._half_squares.max()
        error = gamma * (np.sqrt(np.einsum("nz,nz->n", residual_NZ, residual_NZ)) * np.sqrt(2 * largest) + largest)
        unsure = np.flatnonzero(gap <= 2 * error + 1)
        if len(unsure):
            chosen[unsure] = (residual_NZ[unsure] @ self.codes.T - self._half_squares).argmax(axis=1)
        return chosen


def in_threads(work: Callable[[Block], Result], blocks: Iterable[Block], num_threads: int) -> Iterator[Result]:
    """Results of `work` on blocks, in order, on threads of one BLAS thread each; few blocks are held at once."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for block in blocks:
            waiting.append(pool.submit(work, block))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
