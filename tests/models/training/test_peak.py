"""Operations counted by hand, and against torch's own counter."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from models.training.peak import Flops, measure_peak


def make_model(tied: bool) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model("llama", vocab_size=40, pad_token_id=0, tie_word_embeddings=tied, **sizes)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied: bool) -> None:
    model = make_model(tied)
    flops = Flops.of(model)
    assert (flops.body, flops.head, flops.attention) == (2 * (4 * 16 * 16 + 3 * 16 * 24), 40 * 16, 2 * 2 * 8)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(30)[None] + 1).logits.sum().backward()
    rope = 2 * 3 * 4 * 30  # positions x frequencies as a product, which is no parameter's
    counted = counter.get_total_flops()
    assert flops.needed(30, 30, 30 * 30) == pytest.approx(counted, abs=rope)


def test_targets_and_seen_pairs_count_alone() -> None:
    flops = Flops(body=10, head=7, attention=3)
    assert flops.needed(5, 0, 0) == 300
    assert flops.needed(0, 2, 0) == 84
    assert flops.needed(0, 0, 4) == 144


def test_the_peak_is_measured_once_and_leaves_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    peak = measure_peak("cpu", "no", 1, seconds=0.01)
    assert torch.equal(torch.rand(4), expected)
    assert 1e8 < peak < 1e14
    assert measure_peak("cpu", "no", 1, seconds=0.01) == peak
