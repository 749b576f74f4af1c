"""What a model says at the targets of a packed batch is what it says after each target's own path."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.corpus.examples import Examples
from models.training.block_attention import block_attention
from models.training.packing import Rows
from models.training.target_loss import target_logits, visibility

WINDOWS: dict[str, Any] = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {**WINDOWS, "use_sliding_window": True},
    "gemma3_text": {**WINDOWS, "query_pre_attn_scalar": 8},
    "gemma2": {**WINDOWS, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5},
}


def make_model(family: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40, "pad_token_id": 0}
    config = AutoConfig.for_model(family, initializer_range=0.3, **sizes, **KINDS[family])
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("family", KINDS)
@torch.inference_mode()
def test_windows_and_caps_are_those_of_the_model(
    tree: tuple[Examples, list[list[int]]], family: str, blocks: bool
) -> None:
    """A window counts the tokens of a path, not the places between them in the row; capped logits are capped."""
    model, examples = make_model(family), tree[0]
    batch = Rows(examples, np.arange(2), row_tokens=64, seed=0, pad=0).batch([[1, 0]])
    arrays = [torch.from_numpy(a) for a in (batch.tokens, batch.span, batch.positions, batch.source)]
    seen = visibility(arrays[1])[0, 0] == 0
    expected = torch.stack([model(arrays[0][:, seen[place]]).logits[0, -1] for place in batch.source.tolist()])
    assert len(expected) == len(tree[1])
    if blocks:
        with block_attention(model):
            found = target_logits(model, *arrays)
    else:
        found = target_logits(model, *arrays)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
