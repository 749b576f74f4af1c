"""The decoder's cache against forward passes without one."""

import threading
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
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
        decoder.rewind()  # nothing to forget yet
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


FAMILIES = ["gemma", "gemma3_text", "llama", "olmo2", "qwen2", "qwen3", "smollm3"]


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, how) for kind in FAMILIES for how in ("sdpa", "eager")), ("gemma2", "eager")]
)
def test_every_family_is_decoded_as_it_decodes_itself(kind: str, attention: str) -> None:
    """Gemma 2 with eager attention alone: sdpa cannot cap its attention logits."""
    torch.manual_seed(2)
    config = AutoConfig.for_model(kind, **SIZES, head_dim=8, attn_implementation=attention)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    prompts = [[3, 4, 5, 6], [9]]
    with torch.inference_mode():
        decoder = Decoder(model, prompts, room=3)
        decoder.append(torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[11, 12], [13, 14]]))
        decoder.append(torch.tensor([[1], [0]]), torch.tensor([[15], [16]]))
        for over_slice in (False, True):
            found = decoder.log_probabilities(4, 7, over_slice)
            for row, path in enumerate(([3, 4, 5, 6, 12, 15], [9, 13, 16])):
                expected = alone(model, path)[4:11]
                expected = torch.log_softmax(expected, dim=-1) if over_slice else expected
                torch.testing.assert_close(found[row, 0], expected)


@pytest.mark.parametrize("over_slice", [False, True])
def test_the_output_layer_is_taken_as_it_is(over_slice: bool) -> None:
    """With a bias; and of a kind of its own, whose slice is no slice of the weights."""

    class Doubling(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * functional.linear(hidden, self.weight, self.bias)

    for kind in (torch.nn.Linear, Doubling):
        model = make("llama")
        model.lm_head = kind(16, 30).double()
        torch.nn.init.normal_(model.lm_head.bias)
        with torch.inference_mode():
            found = Decoder(model, [[1, 2]], room=1).log_probabilities(5, 4, over_slice)[0, 0]
        expected = alone(model, [1, 2])[5:9]
        torch.testing.assert_close(found, torch.log_softmax(expected, dim=-1) if over_slice else expected)


@pytest.mark.parametrize("over_slice", [False, True])
def test_capped_logits_are_capped(over_slice: bool) -> None:
    torch.manual_seed(1)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, final_logit_softcapping=0.5, head_dim=8)).double().eval()
    with torch.inference_mode():
        found = Decoder(model, [[1, 2]], room=1).log_probabilities(5, 4, over_slice)[0, 0]
    expected = alone(model, [1, 2])[5:9]
    torch.testing.assert_close(found, torch.log_softmax(expected, dim=-1) if over_slice else expected)


@pytest.mark.parametrize(
    ("weights", "scores"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_log_probabilities_are_float32_or_more(weights: torch.dtype, scores: torch.dtype) -> None:
    with torch.inference_mode():
        decoder = Decoder(make("llama").to(weights), [[1, 2], [3]], room=2)
        decoder.append(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[4], [5]]))
        found = decoder.log_probabilities(0, 30, False)
    assert decoder.score_type == found.dtype == scores
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 1, dtype=scores))


def test_the_model_is_left_as_it_was_also_for_other_threads() -> None:
    """The last layer is cut to the last token for the thread that runs the prompts, and only meanwhile."""
    model, tokens = make("llama"), torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        before = model(tokens).logits
    found: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            found.append(model(tokens).logits)

    def run_elsewhere(*_: Any) -> None:
        hook.remove()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    hook = model.model.layers[0].register_forward_pre_hook(run_elsewhere)
    with torch.no_grad():
        Decoder(model, [[1, 2]], room=1)
    run()
    assert len(found) == 2
    torch.testing.assert_close(found[0], before)
    torch.testing.assert_close(found[1], before)


def test_the_last_layer_runs_for_one_token_a_prompt() -> None:
    model, num_tokens = make("llama"), []
    for layer in model.model.layers:
        for block in (layer.self_attn.o_proj, layer.mlp):
            block.register_forward_hook(lambda _, __, output: num_tokens.append(output.shape[1]))
    with torch.inference_mode():
        Decoder(model, [[1, 2, 3, 4], [5]], room=1)
    assert num_tokens == [4, 4, 1, 1]


def test_there_is_room_for_what_was_asked_and_no_more() -> None:
    with torch.inference_mode():
        decoder = Decoder(make("llama"), [[1, 2]], room=3)
        decoder.append(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[4, 5, 6]]))
        with pytest.raises(AssertionError, match="6 tokens in a cache made for 5"):
            decoder.append(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[4]]))


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
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="attention 'flash_attention_2': load the model with attn_implementation"):
        Decoder(model, [[1]], room=1)
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("inf")
    with torch.inference_mode(), pytest.raises(PlumlineError, match="not finite"):
        Decoder(model, [[1]], room=1).log_probabilities(0, 30, False)
