"""The plain forward pass is the library's, and what it cannot do it leaves to the library."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from models.language.model import load_language_model
from models.language.plain import PlainModel, load_plain
from models.retrieval.decoder import Decoder
from plumline.errors import CorruptArtifactError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 10], [11]]


def saved(folder: Path, family: str = "llama", **more: Any) -> Path:
    torch.manual_seed(1)
    kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}
    model, config = kinds[family]
    model(config(**{"num_key_value_heads": 4, "head_dim": 8, **SIZES, **more})).save_pretrained(folder)
    return folder


def decoded(model: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities after the prompts, and after two rounds of three beams that fork."""
    with torch.inference_mode():
        decoder = Decoder(model, prompts, room=6)
        found = [decoder.log_probabilities(0, 40, over_slice=False)]
        for tokens in ([5, 6, 7], [8, 9, 10]):
            parents = torch.zeros(len(prompts), 3, dtype=torch.int64) if tokens[0] == 5 else torch.tensor([[2, 0, 0]])
            decoder.append(parents.expand(len(prompts), -1), torch.tensor([tokens]).expand(len(prompts), -1))
            found.append(decoder.log_probabilities(0, 40, over_slice=False))
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_numbers_are_the_library_s(tmp_path, family, heads, tied):
    folder = saved(tmp_path, family, num_key_value_heads=heads, tie_word_embeddings=tied)
    plain, library = load_plain(folder), load_language_model(folder)
    assert isinstance(plain, PlainModel)
    for prompts in (PROMPTS[:1], PROMPTS[2:], PROMPTS):
        for ours, theirs in zip(decoded(plain, prompts), decoded(library, prompts), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_bfloat16_is_the_library_s_too(tmp_path):
    folder = saved(tmp_path)
    plain, library = load_plain(folder, precision="bfloat16"), load_language_model(folder, precision="bfloat16")
    for ours, theirs in zip(decoded(plain, PROMPTS[:1]), decoded(library, PROMPTS[:1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1)  # logits reach 10, where bfloat16 steps by .06


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "gemma2"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": None},
        {"rope_parameters": {"rope_type": "default"}},
        {"head_dim": None},
        {"num_key_value_heads": None},
        {"rms_norm_eps": None},
        {"tie_word_embeddings": None},
        {"partial_rotary_factor": 0.5},
        {"quantization_config": {}},
    ],
)
def test_what_is_not_plain_is_left_to_the_library(tmp_path, changed):
    folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    assert load_plain(folder) is None


def test_weights_that_lie_in_shards_or_nowhere_are_left_to_the_library(tmp_path):
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    assert load_plain(folder) is None


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_do_not_fit_are_refused(tmp_path, tied):
    folder = saved(tmp_path, tie_word_embeddings=tied)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptArtifactError, match=r"up_proj"):
        load_plain(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CorruptArtifactError, match=str(folder)):
        load_plain(folder)
