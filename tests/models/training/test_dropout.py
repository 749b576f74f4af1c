"""Dropout from outside: where it falls, that it is scaled, and that nothing of it stays."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.training.dropout import blocks, dropout
from plumline.errors import InputError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def make_model(architecture: str = "llama") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SIZES))


def logits(model: Any, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 20)[None]).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_it_follows_the_seed_and_is_gone_afterwards(architecture: str) -> None:
    model = make_model(architecture)
    plain = logits(model.eval())
    with dropout(model.train(), 0.2):
        first, again, other = logits(model), logits(model), logits(model, seed=2)
        still = logits(model.eval())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    assert torch.equal(still, plain)  # not in evaluation mode
    assert torch.equal(logits(model.train()), plain)
    assert not any(module._forward_hooks for module in model.modules())


def test_it_zeroes_the_share_it_was_told_and_scales_the_rest() -> None:
    model = make_model().train()
    seen: dict[int, torch.Tensor] = {}
    places = blocks(model)
    assert len(places) == 1 + 2 + 2
    with dropout(model, 0.25):
        handles = [
            module.register_forward_hook(
                lambda m, _, out: seen.update({id(m): out[0] if isinstance(out, tuple) else out})
            )
            for module in places
        ]
        torch.manual_seed(0)
        tokens = torch.randint(1, 40, (8, 64))
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    for module in places:
        assert float((seen[id(module)] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    embedded = seen[id(places[0])]
    kept = embedded != 0
    assert torch.allclose(embedded[kept], model.get_input_embeddings().weight[tokens][kept] / 0.75)


def test_a_model_without_such_blocks_is_refused() -> None:
    class Odd(torch.nn.Module):
        @property
        def base_model(self) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    with pytest.raises(InputError, match="loop.dropout: Odd"), dropout(Odd(), 0.1):
        pass
