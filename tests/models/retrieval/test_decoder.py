"""The decoder's cache against forward passes without one."""

from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from models.retrieval.decoder import Decoder
from plumline.errors import InputError, PlumlineError

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}


def make(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "head_dim": 8}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **layers)).double().eval()


def alone(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], dim=-1)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_each_token_of_a_tree_sees_its_own_path_only(kind: str) -> None:
    model, prompts = make(kind), [[3, 4, 5, 6, 7, 8], [9, 10]]
    with torch.inference_mode():
        decoder = Decoder(model, prompts, room=7)
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(decoder.log_probabilities(0, 30, False)[row, 0], alone(model, prompt))
        for _ in range(2):  # after a rewind the same
            decoder.append(torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[11, 12], [13, 14]]))
            decoder.append(torch.tensor([[1, 0, 1], [0, 0, 1]]), torch.tensor([[15, 16, 17], [18, 19, 20]]))
            paths = [[[12, 15], [11, 16], [12, 17]], [[13, 18], [13, 19], [14, 20]]]
            found = decoder.log_probabilities(0, 30, False)
            for row, prompt in enumerate(prompts):
                for beam, path in enumerate(paths[row]):
                    torch.testing.assert_close(found[row, beam], alone(model, prompt + path))
            decoder.rewind()
        tree = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 1, 1]]], dtype=torch.bool).expand(2, -1, -1)
        decoder.append_tree(torch.tensor([[5, 6, 7]] * 2), tree, torch.tensor([[0, 1, 2]] * 2))
        torch.testing.assert_close(decoder.log_probabilities(0, 30, False)[1, 2], alone(model, [*prompts[1], 5, 6, 7]))


def test_a_slice_is_normalised_by_itself_or_by_the_whole_vocabulary() -> None:
    model = make("llama")
    with torch.inference_mode():
        decoder = Decoder(model, [[1, 2]], room=1)
        whole, part = decoder.log_probabilities(5, 4, False)[0, 0], decoder.log_probabilities(5, 4, True)[0, 0]
    torch.testing.assert_close(whole, alone(model, [1, 2])[5:9])
    torch.testing.assert_close(part, torch.log_softmax(alone(model, [1, 2])[5:9], dim=-1))


def test_families_that_would_be_scored_wrong_are_refused() -> None:
    """Mistral hides its window, Granite scales its logits behind the output layer."""
    for config, kind in ((MistralConfig, MistralForCausalLM), (GraniteConfig, GraniteForCausalLM)):
        with pytest.raises(InputError, match=f"type '{config.model_type}': the families decoded here are gemma"):
            Decoder(kind(config(**SIZES)).eval(), [[1]], room=1)


def test_what_cannot_be_decoded_is_refused() -> None:
    model = make("llama")
    with pytest.raises(InputError, match="prompt without tokens"):
        Decoder(model, [[]], room=1)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="linear_attention"):
        Decoder(model, [[1]], room=1)
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("inf")
    with torch.inference_mode(), pytest.raises(PlumlineError, match="not finite"):
        Decoder(model, [[1]], room=1).log_probabilities(0, 30, False)
