"""The loss of a packed batch: block-diagonal attention, and the output head at targets only.

torch from the first line: import it late.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.block_attention import block_keywords


class TargetLoss(nn.Module):
    """Sum of the cross-entropy over a batch's targets; the output head runs at no other place."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # what FSDP may shard as one

    def forward(
        self, tokens_BT: Tensor, span_BT: Tensor, positions_BT: Tensor, source: Tensor, target: Tensor
    ) -> Tensor:
        """Arguments as in Batch. Returns a scalar, float32."""
        logits_nV = target_logits(self.model, tokens_BT, span_BT, positions_BT, source)
        return functional.cross_entropy(logits_nV, target, reduction="sum")


def target_logits(model: Any, tokens_BT: Tensor, span_BT: Tensor, positions_BT: Tensor, source: Tensor) -> Tensor:
    """What a model says at the targets of a packed batch, (n, V) float32. Arguments as in Batch."""
    hidden_BTD = model.base_model(
        input_ids=tokens_BT,
        attention_mask=masks(model.config, span_BT, positions_BT),
        position_ids=positions_BT,
        use_cache=False,
        **block_keywords(model, positions_BT),
    ).last_hidden_state
    hidden_nD = hidden_BTD.flatten(0, 1).index_select(0, source)
    logits_nV: Tensor = model.get_output_embeddings()(hidden_nD).float()
    softcap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2: the decoder caps them, so does this
    return logits_nV if softcap is None else torch.tanh(logits_nV / softcap) * softcap


def masks(config: Any, span_BT: Tensor, positions_BT: Tensor) -> Tensor | dict[str, Tensor]:
    """`visibility` for every layer, or one a kind of layer where some see a sliding window (Gemma).

    transformers takes a mask of four dimensions as it is, so the window must stand in it. It counts positions, which
    in a tree are not places, as the decoder's does.
    """
    seen = visibility(span_BT)
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return seen
    near_BTT = positions_BT[:, :, None] - positions_BT[:, None, :] < config.sliding_window
    return {"full_attention": seen, "sliding_attention": seen.masked_fill(~near_BTT[:, None], -torch.inf)}


def visibility(span_BT: Tensor) -> Tensor:
    """Who sees whom, (B, 1, T, T), as numbers to add: a mask of truths would be made numbers in every layer."""
    places = torch.arange(span_BT.shape[1], device=span_BT.device)
    seen_BTT = (places[:, None] < (places + span_BT)[:, None, :]) & (places <= places[:, None])
    kind = torch.get_autocast_dtype(span_BT.device.type) if torch.is_autocast_enabled(span_BT.device.type) else None
    hidden = torch.zeros(seen_BTT.shape, dtype=kind or torch.float32, device=span_BT.device)
    return hidden.masked_fill_(~seen_BTT, -torch.inf)[:, None]
