"""Dropout for models that have none: on the embeddings, and on what every attention and feed-forward block adds.

Llama-like architectures know dropout of attention weights only. The residual dropout of the first Transformer (Vaswani
et al. 2017, section 5.4) is put on from outside, by hooks, for the time of the training; the model's code, its
configuration and what is saved stay as they are. torch from the first line: import it late.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from models.language.item_model import ItemModel
from plumline.errors import InputError

_ATTENTION = ("self_attn", "attn", "attention")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn")


@contextmanager
def dropout(model: Any, share: float) -> Iterator[None]:
    """Zero `share` of those outputs while inside and in training mode, and scale the others by 1 / (1 - share).

    The random numbers are torch's own, so that its seed decides. Raises InputError if the model has no blocks of a
    known name.
    """
    if share == 0.0:
        yield
        return

    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        def drop(value: Tensor) -> Tensor:
            return functional.dropout(value, share, training=module.training)

        return (drop(output[0]), *output[1:]) if isinstance(output, tuple) else drop(output)

    handles = [module.register_forward_hook(hook) for module in blocks(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks(model: Any) -> list[nn.Module]:
    """The embedding, and every attention and feed-forward block, of a causal LM."""
    found: list[list[nn.Module]] = []
    for names in (_ATTENTION, _FEED_FORWARD):
        found.append([m for name, m in model.base_model.named_modules() if name.rpartition(".")[2] in names])
    if not all(found):
        raise InputError(
            f"loop.dropout: {type(model).__name__} has no blocks called {'/'.join(_ATTENTION)} and "
            f"{'/'.join(_FEED_FORWARD)}; set it to 0"
        )
    read = model.bag if isinstance(model, ItemModel) else model.get_input_embeddings()
    return [read, *found[0], *found[1]]
