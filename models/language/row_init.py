"""Where the embeddings of reserved tokens start: at the mean of the text rows, and at what is known of the SIDs.

Not a stage: `build_language_model` calls it. R reserved tokens, H width of the model, L levels of K codes of width Z.

`codebook`: a code is a vector; two codes that are near mean items that are alike. So the row of a SID token starts at
the mean of the text rows plus its code, turned into the model's space by a random orthonormal map that keeps distances
(where Z ≤ H), and scaled to the spread of the text rows. Every level has a map of its own: rows of different levels are
(nearly) orthogonal.

`titles`: a code is a group of items, whose titles are words that a language model knows. So the row starts where the
text rows of these words are, weighted by how much they stand out (models/language/sid_text.py), about the mean of the
level and scaled likewise: to a pre-trained model a new token means from the first step what its titles say.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.language.sid_text import read_sid_text
from models.language.words import Vocabulary
from plumline.errors import MixedReleaseError

if TYPE_CHECKING:
    from torch import Tensor

RowStart = Literal["codebook", "titles", "mean", "noise"]

_JITTER = 0.1
"""Noise of rows that start at one place, as a share of the spread: they must differ to be told apart by gradients."""


def read_codebooks(quantizer: Path, vocabulary: Vocabulary) -> list[np.ndarray]:
    """Codebooks of a quantizer artifact, a (K, Z) float32 a level. A tie-break level has none.

    Raises MixedReleaseError if the vocabulary speaks SIDs of other levels.
    """
    from models.semantic_ids.frozen_quantizer import Quantizer

    found = Quantizer.load(quantizer)
    levels, sizes = len(found.codebooks), vocabulary.space.sizes
    if sizes[:levels] != found.codebooks or len(sizes) > levels + 1:
        raise MixedReleaseError(
            f"{quantizer}: codebooks {found.codebooks}, the vocabulary's levels are {sizes}; take both from one run"
        )
    return [found.weights[f"codebooks.{level}"] for level in range(levels)]


def read_titles(vocabulary: Vocabulary, text_rows: np.ndarray) -> list[np.ndarray]:
    """Mean of the text rows of each SID token's titles, a (K, H) float64 a level; NaN where there is no title.

    text_rows: (T, H). Raises MissingArtifactError if the vocabulary has no sid_text.npz.
    """
    weights = read_sid_text(vocabulary)
    rows = weights @ text_rows.astype(np.float64)
    rows[np.diff(weights.indptr) == 0] = np.nan
    return np.split(rows, vocabulary.space.offsets[1:])


def reserved_rows(
    vocabulary: Vocabulary,
    codes: Sequence[np.ndarray] | None,
    mean: np.ndarray,
    spread: float,
    rng: np.random.Generator,
    turned: bool = True,
) -> np.ndarray:
    """First values of the rows of all reserved tokens, (R, H) float32 in the order of their ids.

    codes: vectors of the codes of the first levels, NaN where nothing is known; None: all rows stay near the mean.
    turned: whether each level's vectors are mapped into the model's space; otherwise they are of it, as of titles.
    mean: (H,), of the text rows. spread: root mean square of what a text row differs from it, an element. What nothing
    is known of, and control tokens, are random; neighbouring buckets (gaps, numbers) are alike: they lie on an arc
    between two random ends.
    """
    num_rows, width = len(vocabulary.reserved), len(mean)
    unit = rng.standard_normal((num_rows, width))
    blocks = [(vocabulary.gap_base, len(vocabulary.gap_edges))]
    blocks += [(about.first_id, about.num_buckets) for about in vocabulary.numbers.values()]
    for first, size in blocks:
        unit[first - vocabulary.reserved_base :][:size] = _arc(size, width, rng)
    if codes is None:
        return (mean + _JITTER * spread * unit).astype(np.float32)
    maps = _orthonormal([level.shape[1] for level in codes], width, rng) if turned else [None] * len(codes)
    for level, turn, offset in zip(codes, maps, vocabulary.space.offsets, strict=False):
        known = np.flatnonzero(np.isfinite(level).all(axis=1))
        if not len(known):
            continue
        vectors = level[known].astype(np.float64)
        at = vocabulary.sid_base - vocabulary.reserved_base + offset + known
        unit[at] *= _JITTER  # a code that stands twice
        unit[at] += _standardised(vectors if turn is None else vectors @ turn)
    return (mean + spread * unit).astype(np.float32)


def start_rows(
    weight: "Tensor",
    vocabulary: Vocabulary,
    codebooks: Sequence[np.ndarray] | None,
    seed: int,
    text: tuple[float, float] | None = None,
    titles: bool = False,
) -> None:
    """Write `reserved_rows` into an embedding matrix or an output head, in place. weight: (V, H).

    text: (mean, spread) that the text rows were drawn with; None: measured on them. titles: start at the titles' text
    rows of this matrix instead of the codebooks.
    """
    import torch

    rows = weight.detach()[: vocabulary.reserved_base].double().numpy()
    if text is None:
        mean = rows.mean(axis=0)
        spread = float(np.sqrt(np.square(rows - mean).mean()))
    else:
        mean, spread = np.full(rows.shape[1], text[0]), text[1]
    codes = read_titles(vocabulary, rows) if titles else codebooks
    started = reserved_rows(vocabulary, codes, mean, spread, np.random.default_rng(seed), turned=not titles)
    with torch.no_grad():
        weight[vocabulary.reserved_base :] = torch.from_numpy(started)


def _arc(size: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(size, width): from one random row to another, of the same length all the way."""
    ends = rng.standard_normal((2, width))
    angles = np.linspace(0.0, np.pi / 2, size)
    return np.outer(np.cos(angles), ends[0]) + np.outer(np.sin(angles), ends[1])


def _orthonormal(widths: Sequence[int], width: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A map (Z, H) for every level. Rows orthonormal, also between levels where all of them find room in H.

    A code wider than the model is projected onto a random subspace instead: columns orthonormal.
    """
    joint = sum(widths) <= width
    groups = [list(widths)] if joint else [[one] for one in widths]
    maps: list[np.ndarray] = []
    for group in groups:
        drawn = rng.standard_normal((max(width, sum(group)), min(width, sum(group))))
        basis = np.linalg.qr(drawn)[0]
        turn = basis.T if sum(group) <= width else basis
        maps += np.split(turn, np.cumsum(group)[:-1])
    return maps


def _standardised(rows: np.ndarray) -> np.ndarray:
    """Rows about their mean, scaled to a root mean square of one an element; rows that are all alike become zeros."""
    centred = rows - rows.mean(axis=0)
    scale = float(np.sqrt(np.square(centred).mean()))
    return centred / scale if scale > 0 else centred
