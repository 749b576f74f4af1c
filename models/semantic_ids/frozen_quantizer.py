"""A frozen quantiser: vectors in, codes out, bit-identical everywhere. Trained by the stage `quantizer`, read by many.

Not a stage, and without torch: who only gives codes (the stage `sids`, whoever takes in new items) needs NumPy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from models.semantic_ids.assignment import Assigner, Codebook, Layer, bits_for, exponent_for, in_threads, to_fixed
from models.semantic_ids.vectors import Vectors
from plumline import artifact
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError
from plumline.stage import Params, num_cores

_HEADROOM = 4.0
"""How much further than on the training corpus a value may reach before it is clipped."""


class QuantizerParams(Params):
    """How vectors become codes. What is marked (rqvae) has no part in `rq_kmeans`."""

    kind: Literal["rqvae", "rq_kmeans"] = "rqvae"
    """`rqvae`: trained encoders, one a modality; `rq_kmeans`: principal components and k-means of the residuals."""
    modalities: tuple[str, ...] | None = None
    """Modalities that are fused; null: all that the embeddings have. One alone is TIGER's single embedding."""
    codebooks: tuple[int, ...] | Literal["auto"] = (2048, 1024, 512)
    """Codes of each level; falling (PLUM 2.1.2: 2048 / 2^(level-1)) or all alike (TIGER). `auto`: by the number of
    contents in the catalogue (`models.semantic_ids.codebook_sizes`); a retraining keeps those of the release it
    follows until the catalogue has outgrown them."""
    latent_dimensions: int = Field(default=64, ge=1)
    """Width of z and of a code."""
    hidden: int = Field(default=256, ge=1)
    """(rqvae) Width of the hidden layer of each encoder and decoder."""
    steps: int = Field(default=1500, ge=0)
    """(rqvae) Optimizer steps with quantisation; with warmup_steps the only knobs that change cost."""
    warmup_steps: int = Field(default=300, ge=0)
    """(rqvae) Steps before them without quantisation, so that k-means starts on latents that mean something."""
    batch_size: int = Field(default=256, ge=1)
    """(rqvae) Items a step; their co-occurring partners come on top."""
    max_items: int = Field(default=262_144, ge=1)
    """Items that are trained on; of a larger catalogue half are drawn at random and half are their partners."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """(rqvae) Peak rate of Adam; it falls to zero along a cosine."""
    beta: float = Field(default=0.25, ge=0)
    """(rqvae) Commitment weight in L_rq."""
    contrastive_weight: float = Field(default=1.0, ge=0)
    """(rqvae) Weight of the co-occurrence loss; 0: SIDs from content alone."""
    temperature: float = Field(default=0.1, gt=0)
    """(rqvae) Temperature of the co-occurrence loss."""
    neighbours: int = Field(default=32, ge=1)
    """(rqvae) Partners kept of each item, those it co-occurs with most beyond their popularity: its positives, and
    never its negatives."""
    progressive_masking: bool = True
    """(rqvae) Reconstruct from the first r levels, r drawn at random for every item of a batch and shared with its
    co-occurring partner (one r a batch was worse: docs/experiments.md); False: always from all."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """(rqvae) How gradients pass the quantiser: copied, or turned by the angle between z and its code."""
    codebook_update: Literal["gradient", "ema"] = "gradient"
    """(rqvae) Codes learn by L_rq, or are moving averages of the residuals that chose them."""
    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    """(rqvae) What a moving average keeps of itself a step."""
    retraining_start: Literal["kmeans", "previous"] = "kmeans"
    """Where the codebooks of a retraining start. `previous`: from the means of the items that carried each code, so
    that codes are inherited and fewer items move; `kmeans`: anew, so nothing worn out is kept."""
    revive_every: int = Field(default=100, ge=1)
    """(rqvae) Steps after which codes that no item chose move onto items that are badly quantised."""
    usage_floor: float = Field(default=0.5, ge=0, le=1)
    """Least share of codes of each level in use; less is a collapse and refused."""
    perplexity_floor: float = Field(default=0.2, ge=0, le=1)
    """Least perplexity of each level as a share of its codes; less is a collapse and refused."""

    @field_validator("codebooks", mode="before")
    @classmethod
    def _sizes_or_auto(cls, value: Any) -> Any:
        sizes = list(value) if isinstance(value, list | tuple) else []
        if value == "auto" or (sizes and all(type(size) is int and size >= 1 for size in sizes)):
            return value
        raise ValueError("give auto, or the number of codes of each level, such as [256, 256]")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level, where they are numbers; a quantiser that is trained has them."""
        assert self.codebooks != "auto", "models.semantic_ids.quantizer.sized comes first"
        return self.codebooks


@dataclass(frozen=True)
class Quantizer:
    """A frozen quantiser. M modalities of widths D; H hidden, Z latent, L levels of K codes.

    kind: "rqvae" or "rq_kmeans". modalities: name → D, in the order of the encoders. codebooks: K of each level.
    exponents: fixed-point exponents of input, hidden, modality and latent values (`models.semantic_ids.assignment`).
    weights: the arrays of model.safetensors. digest: sha256 over both files; equal digests give equal SIDs.
    """

    kind: str
    modalities: dict[str, int]
    codebooks: tuple[int, ...]
    exponents: dict[str, int]
    weights: dict[str, np.ndarray]
    digest: str = ""

    @classmethod
    def freeze(
        cls,
        kind: str,
        modalities: dict[str, int],
        codebooks: tuple[int, ...],
        weights: dict[str, np.ndarray],
        largest: dict[str, float],
    ) -> "Quantizer":
        """Choose fixed-point exponents. largest: input, hidden, modality, latent → largest |value| on the corpus."""
        bits = cls._bits(weights)
        exponents = {name: exponent_for(value, bits, _HEADROOM) for name, value in largest.items()}
        return cls(kind, modalities, codebooks, exponents, weights)

    @staticmethod
    def _bits(weights: dict[str, np.ndarray]) -> int:
        # Residuals of later levels reach further than z, by less than 4.
        widths = [values.shape[1] for values in weights.values() if values.ndim == 2]
        return bits_for(4 * max(widths))

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
        try:
            modalities, codebooks = dict(config["modalities"]), tuple(config["codebooks"])
            return cls(config["kind"], modalities, codebooks, config["exponents"], weights, digest)
        except KeyError as error:
            raise CorruptArtifactError(
                f"{folder / 'config.json'}: no {error}; it is of another version of Plumline: run plumline retrain-sids"
            ) from None

    def save(self, folder: Path) -> None:
        """Write model.safetensors and config.json."""
        from safetensors.numpy import save_file

        save_file(self.weights, folder / "model.safetensors")
        about = {"kind": self.kind, "codebooks": list(self.codebooks), "exponents": self.exponents}
        artifact.write_json(folder / "config.json", {**about, "modalities": [list(m) for m in self.modalities.items()]})

    @cached_property
    def assigner(self) -> Assigner:
        """The arithmetic of this quantiser."""
        weights, bits, at = self.weights, self._bits(self.weights), self.exponents

        def layer(name: str, entering: str, leaving: str, relu: bool = False) -> Layer:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return Layer.of(weight, bias, entering=at[entering], leaving=at[leaving], relu=relu, bits=bits)

        places = range(len(self.modalities))
        encoders: list[list[Layer]] = [[] for _ in places]
        if self.kind == "rqvae":
            encoders = [
                [
                    layer(f"encoders.{place}.0", "input", "hidden", relu=True),
                    layer(f"encoders.{place}.2", "hidden", "modality"),
                ]
                for place in places
            ]
        return Assigner(
            means=[weights[f"mean.{place}"] for place in places],
            scales=[float(weights[f"scale.{place}"][0]) for place in places],
            input_exponent=at["input"],
            bits=bits,
            encoders=encoders,
            project=layer("project", "modality" if self.kind == "rqvae" else "input", "latent"),
            codebooks=[
                Codebook(to_fixed(weights[f"codebooks.{level}"].astype(np.float64), at["latent"], bits))
                for level in range(len(self.codebooks))
            ],
            latent_exponent=at["latent"],
        )

    def latents(self, vectors: Vectors) -> np.ndarray:
        """z of items. Returns (N, Z) float64. Raises InputError if the vectors are not what it was trained on."""
        inputs, masks = self._arrays(vectors)
        return np.ldexp(self.assigner.latents(inputs, masks), -self.exponents["latent"])

    def encode(self, vectors: Vectors) -> np.ndarray:
        """Codes of items, nearest code at every level, lower code on a tie. Returns (N, L) int64.

        Bit-identical whatever the batch, its order, the threads or the machine (`models.semantic_ids.assignment`).
        """
        return self.assigner.assign(*self._arrays(vectors))

    def encode_blocks(
        self, blocks: Iterable[Vectors], num_threads: int | None = None
    ) -> Iterator[tuple[Vectors, np.ndarray]]:
        """Blocks as they come and their codes, (n, L) int64 each, computed on threads (None: one a core)."""
        return in_threads(lambda block: (block, self.encode(block)), blocks, num_threads or num_cores())

    def quantised(self, codes: np.ndarray, num_levels: int | None = None) -> np.ndarray:
        """Sum of the codes of the first levels (None: all). codes: (N, L). Returns (N, Z) float32."""
        chosen = [self.weights[f"codebooks.{level}"][codes[:, level]] for level in range(codes.shape[1])]
        return np.sum(chosen[:num_levels], axis=0)

    def reconstruct(self, codes: np.ndarray, num_levels: int | None = None) -> dict[str, np.ndarray]:
        """Modality → (N, D) float32 in the normalised space. codes: (N, L)."""
        z, weights, out = self.quantised(codes, num_levels), self.weights, {}
        if self.kind == "rq_kmeans":
            joined, start = z @ weights["project.weight"], 0
            for name, width in self.modalities.items():
                out[name] = joined[:, start : start + width]
                start += width
            return out
        for place, name in enumerate(self.modalities):
            hidden = z @ weights[f"decoders.{place}.0.weight"].T + weights[f"decoders.{place}.0.bias"]
            np.maximum(hidden, 0, out=hidden)
            out[name] = hidden @ weights[f"decoders.{place}.2.weight"].T + weights[f"decoders.{place}.2.bias"]
        return out

    def squared_errors(self, vectors: Vectors, codes: np.ndarray, num_levels: int | None = None) -> dict[str, float]:
        """Modality → Σ ‖x − x̂‖² over the items that have it, inputs normalised (so 1 an item is its variance)."""
        sums, reconstructed = {}, self.reconstruct(codes, num_levels)
        for place, name in enumerate(self.modalities):
            mask = vectors.masks[name]
            x = (vectors.modalities[name][mask] - self.weights[f"mean.{place}"]) * self.weights[f"scale.{place}"]
            sums[name] = float(np.square(x - reconstructed[name][mask]).sum(dtype=np.float64))
        return sums

    def renamed(self, names: list[np.ndarray]) -> "Quantizer":
        """The same quantiser with code c of level l called names[l][c]. names: L permutations, (K,) integers."""
        weights = dict(self.weights)
        for level, new in enumerate(names):
            weights[f"codebooks.{level}"] = np.empty_like(weights[f"codebooks.{level}"])
            weights[f"codebooks.{level}"][new] = self.weights[f"codebooks.{level}"]
        return replace(self, weights=weights, digest="")

    def _arrays(self, vectors: Vectors) -> tuple[list[np.ndarray], list[np.ndarray]]:
        check_vectors(vectors, self.modalities)
        return [vectors.modalities[n] for n in self.modalities], [vectors.masks[n] for n in self.modalities]


def check_vectors(vectors: Vectors, modalities: dict[str, int]) -> None:
    """Raises InputError if `modalities` are not among the vectors, or naming the item whose vector is not finite."""
    found = vectors.widths
    if any(found.get(name) != width for name, width in modalities.items()):
        raise InputError(
            f"embeddings: modalities {found} where the quantizer knows {modalities}; "
            "embed with the encoders of its own release, or train a new quantizer"
        )
    for name in modalities:
        values = vectors.modalities[name]
        if np.isfinite(values.sum(dtype=np.float64)):  # one pass; a sum of finite float32 cannot overflow a float64
            continue
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise InputError(
            f"embeddings: item {vectors.item_ids[bad[0]]!r}: {name} is not finite ({len(bad)} such items); "
            "mend the column or the text encoder and embed again"
        )
