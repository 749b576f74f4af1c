"""The residual quantiser of SID-v2 as an nn.Module, and its losses (PLUM, He et al. 2025, section 2.1).

One encoder a modality → concatenation → projection z → residual quantisation over codebooks of falling resolution →
one decoder a modality. Nothing here knows files, items or schedules.

Shapes: B items of a batch, D width of a modality, H hidden, Z latent, K codes of a level, L levels, M modalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Quantised:
    """What the quantiser made of z_BZ.

    codes: (B, L) nearest code of each level. quantised: (B, Z) sum of the codes of the first r levels, with gradients
    passed straight through to z. residuals: the input of each level, L × (B, Z). loss: L_rq, scalar.
    """

    codes: Tensor
    quantised: Tensor
    residuals: list[Tensor]
    loss: Tensor


class Rqvae(nn.Module):
    """widths: D of each of the M modalities. codebooks: K of each level, e.g. (2048, 1024, 512) (section 2.1.2).

    The encoders and decoders are MLPs with one hidden layer and ReLU, so that the frozen model can be evaluated with
    nothing but exact additions and multiplications (`models.semantic_ids.assignment`). rotate: how gradients pass the
    quantiser, False: straight through, True: by the rotation that takes z to its quantised self (Fifty et al. 2024, eq.
    4).
    """

    def __init__(
        self,
        widths: Sequence[int],
        codebooks: Sequence[int],
        *,
        hidden: int,
        latent: int,
        beta: float,
        rotate: bool = False,
    ):
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, latent)) for width in widths
        )
        self.project = nn.Linear(len(widths) * latent, latent)
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width)) for width in widths
        )
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(size, latent)) for size in codebooks)
        self.beta, self.rotate = beta, rotate

    def encode(self, inputs: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """z_BZ of inputs, M × (B, D), with masks, M × (B,) bool; a missing modality enters the fusion as zeros."""
        latents = [
            encoder(values) * mask[:, None] for encoder, values, mask in zip(self.encoders, inputs, masks, strict=True)
        ]
        return self.project(torch.cat(latents, dim=1))

    def quantise(self, z_BZ: Tensor, num_levels_B: Tensor | None = None) -> Quantised:
        """Quantise z. num_levels_B: r of progressive masking, the levels of each item that enter the sum; None: all L.

        L_rq = Σ_l β ‖r_l − sg[e_l]‖² + ‖sg[r_l] − e_l‖² runs over all levels (section 2.1.4), averaged over the batch.
        """
        residual, total, loss = z_BZ, torch.zeros_like(z_BZ), z_BZ.new_zeros(())
        codes, residuals = [], []
        for level, codebook_KZ in enumerate(self.codebooks):
            residuals.append(residual)
            code_B = nearest_codes(residual.detach(), codebook_KZ.detach())
            chosen_BZ = F.embedding(code_B, codebook_KZ)
            loss = loss + self.beta * (residual - chosen_BZ.detach()).square().sum(1).mean()
            loss = loss + (residual.detach() - chosen_BZ).square().sum(1).mean()
            kept_B = 1.0 if num_levels_B is None else (level < num_levels_B)[:, None]
            total = total + chosen_BZ * kept_B
            residual = residual - chosen_BZ.detach()
            codes.append(code_B)
        passed = rotated(z_BZ, total.detach()) if self.rotate else z_BZ + (total - z_BZ).detach()
        return Quantised(torch.stack(codes, dim=1), passed, residuals, loss)

    def decode(self, quantised_BZ: Tensor) -> list[Tensor]:
        """Reconstructions of the modalities, M × (B, D)."""
        return [decoder(quantised_BZ) for decoder in self.decoders]


def nearest_codes(residual_BZ: Tensor, codebook_KZ: Tensor) -> Tensor:
    """Index of the nearest code of each row, (B,) int64: ‖r − e‖² is smallest where r·e − ‖e‖²/2 is largest."""
    return torch.addmm(codebook_KZ.square().sum(1) / -2, residual_BZ, codebook_KZ.T).argmax(dim=1)


def rotated(z_BZ: Tensor, quantised_BZ: Tensor) -> Tensor:
    """quantised, written as a constant rotation and scaling of z, so that gradients keep their angle to z.

    R = I − 2 r rᵀ + 2 q̂ ẑᵀ with r the unit vector between ẑ and q̂ (Fifty et al. 2024, eq. 4).
    """
    z, q = z_BZ.detach(), quantised_BZ.detach()
    z_norm, q_norm = z.norm(dim=1, keepdim=True).clamp(min=1e-6), q.norm(dim=1, keepdim=True)
    z_unit, q_unit = z / z_norm, q / q_norm.clamp(min=1e-6)
    between = F.normalize(z_unit + q_unit, dim=1, eps=1e-6)
    turned = (
        z_BZ - 2 * (z_BZ * between).sum(1, keepdim=True) * between + 2 * (z_BZ * z_unit).sum(1, keepdim=True) * q_unit
    )
    return q_norm / z_norm * turned


def reconstruction_losses(
    inputs: Sequence[Tensor], masks: Sequence[Tensor], reconstructions: Sequence[Tensor]
) -> list[Tensor]:
    """‖x_m − x̂_m‖² of each modality (L_recon is their sum), mean over the items that have it; 0 if none has."""
    return [
        ((x - y).square().sum(1) * mask).sum() / mask.sum().clamp(min=1)
        for x, mask, y in zip(inputs, masks, reconstructions, strict=True)
    ]


def contrastive_loss(anchors_BZ: Tensor, partners_BZ: Tensor, allowed_2B2B: Tensor, temperature: float) -> Tensor:
    """Co-occurrence loss, eq. 1: among the 2B items of a batch, each must find the one it occurred with.

    anchors_BZ, partners_BZ: row i of one co-occurred with row i of the other. allowed_2B2B: bool, True where column j
    is a fair negative of row i (another item that does not co-occur with i); the positive itself always counts.
    Two departures from the printed formula: the logarithm of the softmax is taken (InfoNCE), and the dot products are
    those of unit vectors over a temperature, so that the loss cannot be lowered by growing the latents.
    """
    points = F.normalize(torch.cat([anchors_BZ, partners_BZ]), dim=1, eps=1e-6)
    num = len(anchors_BZ)
    positive_2B = torch.arange(2 * num, device=points.device).roll(num)
    similarity = points @ points.T / temperature
    counts = allowed_2B2B | F.one_hot(positive_2B, 2 * num).bool()
    return F.cross_entropy(similarity.masked_fill(~counts, float("-inf")), positive_2B)
