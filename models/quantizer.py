"""Train the residual quantiser that turns vectors into SIDs.

reads   embeddings; histories: co-occurrence pairs; base: its quantizer, adopted as it is
writes  model.safetensors, config.json, report.json (per level usage, perplexity, gini; reconstruction per modality)
run     python -m models.quantizer --params recipes/cpu_tiny.yaml --embeddings … --histories … --base= --seed 17 --out …
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from models.embeddings import Vectors
from models.sid_table import describe_levels
from plumline import artifact
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, RefusedError
from plumline.stage import Params, main, say

if TYPE_CHECKING:
    from models.quantizer_training import Trained

_CHUNK = 512


class QuantizerParams(Params):
    codebooks: tuple[int, ...] = Field(default=(256, 128, 64), min_length=1)
    """Codes of each level, falling (PLUM: 2048 / 2^(level-1))."""
    latent_dimensions: int = Field(default=64, ge=1)
    """Width of z and of a code."""
    hidden: int = Field(default=256, ge=1)
    """Width of the hidden layer of each encoder and decoder."""
    steps: int = Field(default=600, ge=0)
    """Optimizer steps with quantisation; with warmup_steps the only knobs that change cost."""
    warmup_steps: int = Field(default=200, ge=0)
    """Steps before them without quantisation, so that k-means starts the codebooks on latents that mean something."""
    batch_size: int = Field(default=256, ge=1)
    """Items a step; their co-occurring partners come on top."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak rate of Adam; it falls to zero along a cosine."""
    beta: float = Field(default=0.25, ge=0)
    """Commitment weight in L_rq."""
    contrastive_weight: float = Field(default=0.3, ge=0)
    """Weight of the co-occurrence loss; 0: SIDs from content alone."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the co-occurrence loss."""
    neighbours: int = Field(default=32, ge=1)
    """Most frequent partners kept of each item: its positives, and never its negatives."""
    progressive_masking: bool = True
    """Reconstruct from the first r levels, r drawn for every batch; False: always from all."""
    revive_every: int = Field(default=100, ge=1)
    """Steps after which codes that no item of these steps chose move onto items that are badly quantised."""
    usage_floor: float = Field(default=0.5, ge=0, le=1)
    """Least share of codes of each level in use; less is a collapse and refused."""


@dataclass(frozen=True)
class Quantizer:
    """A frozen quantiser. M modalities of widths D; H hidden, Z latent, L levels of K codes.

    modalities: name → D, in the order of the encoders. codebooks: K of each level. weights: the arrays of
    model.safetensors. digest: sha256 over both files; equal digests give equal SIDs.
    """

    modalities: dict[str, int]
    codebooks: tuple[int, ...]
    weights: dict[str, np.ndarray]
    digest: str = ""

    @classmethod
    def load(cls, folder: Path) -> "Quantizer":
        """Read a quantizer artifact. Raises MissingArtifactError or CorruptArtifactError."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        config, path = artifact.read_json(folder / "config.json"), folder / "model.safetensors"
        if not path.is_file():
            raise MissingArtifactError(f"{path}: no such file; run the stage quantizer")
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CorruptArtifactError(f"{path}: unreadable ({error}); run the stage quantizer again") from None
        digest = artifact.sha256_json([config, artifact.sha256_file(path)])
        return cls(dict(config["modalities"]), tuple(config["codebooks"]), weights, digest)

    @cached_property
    def _exact(self) -> dict[str, np.ndarray]:
        return {name: values.astype(np.float64) for name, values in self.weights.items()}

    def latents(self, vectors: Vectors) -> np.ndarray:
        """z of items. Returns (N, Z) float64. Raises InputError if the vectors are not what it was trained on."""
        check_vectors(vectors, self.modalities)
        weights, num_items = self._exact, len(vectors.item_ids)
        out = np.empty((num_items, len(weights["project.bias"])))
        for start in range(0, num_items, _CHUNK):
            rows = slice(start, start + _CHUNK)
            parts = []
            for place, name in enumerate(self.modalities):
                x = (vectors.modalities[name][rows] - weights[f"mean.{place}"]) * weights[f"scale.{place}"]
                for layer in (0, 2):
                    x = _affine(
                        x, weights[f"encoders.{place}.{layer}.weight"], weights[f"encoders.{place}.{layer}.bias"]
                    )
                    x = np.maximum(x, 0) if layer == 0 else x
                parts.append(x * vectors.masks[name][rows, None])
            out[rows] = _affine(np.concatenate(parts, axis=1), weights["project.weight"], weights["project.bias"])
        return out

    def encode(self, vectors: Vectors) -> np.ndarray:
        """Codes of items, nearest code at every level, lower code on a tie. Returns (N, L) int64.

        Bit-identical whatever the batch, its order, the threads or the machine: everything is element-wise float64
        arithmetic in a fixed order, no BLAS and no reduction.
        """
        z_NZ = self.latents(vectors)
        codes = np.zeros((len(z_NZ), len(self.codebooks)), np.int64)
        for start in range(0, len(z_NZ), _CHUNK):
            residual = z_NZ[start : start + _CHUNK]
            for level in range(len(self.codebooks)):
                codebook_KZ = self._exact[f"codebooks.{level}"]
                distance = np.zeros((len(residual), len(codebook_KZ)))
                for axis in range(codebook_KZ.shape[1]):
                    distance += (residual[:, axis, None] - codebook_KZ[:, axis]) ** 2
                chosen = distance.argmin(axis=1)
                codes[start : start + _CHUNK, level] = chosen
                residual = residual - codebook_KZ[chosen]
        return codes


def _affine(x_NI: np.ndarray, weight_OI: np.ndarray, bias_O: np.ndarray) -> np.ndarray:
    out = np.tile(bias_O, (len(x_NI), 1))
    for column in range(weight_OI.shape[1]):
        out += x_NI[:, column, None] * weight_OI[:, column]
    return out


def check_vectors(vectors: Vectors, modalities: dict[str, int]) -> None:
    """Raises InputError if names or widths differ from `modalities`, or naming the item whose vector is not finite."""
    found = {name: values.shape[1] for name, values in vectors.modalities.items()}
    if found != modalities:
        raise InputError(
            f"embeddings: modalities {found} where the quantizer knows {modalities}; "
            "embed with the encoders of its own release, or train a new quantizer"
        )
    for name, values in vectors.modalities.items():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise InputError(
                f"embeddings: item {vectors.item_ids[bad[0]]!r}: {name} is not finite ({len(bad)} such items); "
                "mend the column or the text encoder and embed again"
            )


def run(params: QuantizerParams, *, embeddings: Path, histories: Path, base: Path | None, seed: int, out: Path) -> None:
    """Train on the vectors and pairs, or adopt the base's quantizer."""
    if base is not None:
        artifact.copy_payload(base / "quantizer", out)
        return
    from features.histories import read_pairs
    from models.quantizer_training import neighbours_of, train

    vectors = Vectors.load(embeddings)
    pairs = neighbours_of(read_pairs(histories), vectors.item_ids, params.neighbours)
    save(train(vectors, pairs, params, seed), params, vectors, out)


def save(trained: "Trained", params: QuantizerParams, vectors: Vectors, out: Path) -> None:
    """Write the artifact of a trained quantiser. Raises RefusedError if its codes on `vectors` have collapsed."""
    from safetensors.numpy import save_file

    save_file(trained.weights, out / "model.safetensors")
    modalities = [[name, values.shape[1]] for name, values in vectors.modalities.items()]
    artifact.write_json(out / "config.json", {"modalities": modalities, "codebooks": list(params.codebooks)})
    levels = describe_levels(Quantizer.load(out).encode(vectors), params.codebooks)
    report = {"num_items": len(vectors.item_ids), "levels": levels, "reconstruction": trained.reconstruction}
    artifact.write_json(out / "report.json", report)
    summary = ", ".join(f"{level['used']}/{level['size']}" for level in levels)
    say(f"quantizer: codes in use {summary}; unexplained variance {trained.reconstruction}")
    refuse_collapse(report, params)


def refuse_collapse(report: dict[str, Any], params: QuantizerParams) -> None:
    """Raises RefusedError with the numbers if a level uses less than usage_floor of its codes.

    A corpus of less than four items a code of the largest codebook is not judged: it cannot fill the codes.
    """
    if report["num_items"] < 4 * max(params.codebooks):
        return
    for number, level in enumerate(report["levels"], start=1):
        if level["usage"] < params.usage_floor:
            raise RefusedError(
                f"quantizer: level {number} uses {level['used']} of {level['size']} codes "
                f"(usage {level['usage']:.2f}, floor {params.usage_floor}; perplexity {level['perplexity']:.1f}) for "
                f"{report['num_items']} items; give items more to tell them apart, or try smaller quantizer.codebooks, "
                "a lower learning_rate, or a lower contrastive_weight"
            )


if __name__ == "__main__":
    main(run, section="quantizer")
