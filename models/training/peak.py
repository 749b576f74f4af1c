"""Floating point operations: what a training needs, and what the device can do. torch only inside the functions.

Needed, forward and backward, after PaLM (Chowdhery et al. 2022, appendix B: 6N + 12 L H Q T a token):

    6 x parameters of matrix products x tokens
    + 6 x parameters of the output head x targets      the head runs at targets only
    + 12 x layers x heads x head size x seen           seen: pairs (token, token that it sees)

An embedding table is looked up and counts nothing, unless it is the output head too. PaLM lets a token see all T of its
row; here it counts what it sees, so that masked-out pairs, padding and recomputed activations are no achievement.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Flops:
    """Of one model: parameters in matrix products, parameters of the head, and layers x heads x head size."""

    body: int
    head: int
    attention: int

    @classmethod
    def of(cls, model: Any) -> "Flops":
        """Count a causal LM of transformers, or an ItemModel, whose head runs once a target: an L-th of it a code."""
        from torch import nn

        from models.language.item_model import ItemModel

        head = model.get_output_embeddings().weight
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head)}
        matrices = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in tables]
        body, num_head = sum(p.numel() for _, p in matrices), head.numel()
        if isinstance(model, ItemModel):
            once = sum(p.numel() for name, p in matrices if name.startswith("head."))
            body, num_head = body - once, once // len(model.head.sizes)
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(body, num_head, config.num_hidden_layers * config.num_attention_heads * size)

    def needed(self, tokens: int, targets: int, seen: int) -> int:
        """Operations of a training on so many tokens, targets and seen pairs."""
        return 6 * self.body * tokens + 6 * self.head * targets + 12 * self.attention * seen


@cache
def measure_peak(device: str, precision: str, threads: int, seconds: float = 0.25) -> float:
    """Operations a second of the best of some square matrix products, kept for this process.

    device: as torch names it. precision: `no` (float32) or `bf16`. threads: torch's, on a CPU; another number is
    another peak. seconds: about how long to look.
    """
    import torch

    on_cpu = torch.device(device).type == "cpu"
    size = 1024 if on_cpu else 8192
    generator = torch.Generator(device).manual_seed(0)  # the training's own random numbers stay as they are
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, generator=generator, device=device).to(kind)
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        began = time.perf_counter()
        a @ a
        if not on_cpu:
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
