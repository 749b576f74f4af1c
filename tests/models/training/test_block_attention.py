"""Attention by blocks: the same numbers as over whole rows, for less work, and nothing of it stays."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from models.corpus.examples import Examples, ExamplesBuilder
from models.training.block_attention import block_attention, block_keywords, cut_blocks
from models.training.loop import _dressed
from models.training.packing import Batch, LoopParams, Rows
from models.training.target_loss import TargetLoss, visibility

VOCABULARY = 40


def make_model(architecture: str = "llama", kv_heads: int = 2, **config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"num_key_value_heads": kv_heads, "head_dim": 8, "vocab_size": VOCABULARY, "pad_token_id": 0}
    told = AutoConfig.for_model(architecture, initializer_range=0.3, **sizes | config)
    return AutoModelForCausalLM.from_config(told).train()


def make_examples(lengths: list[int], seed: int = 0) -> Examples:
    """Trees: a stem of two thirds, then branches of three tokens that see the stem and not each other."""
    rng = np.random.default_rng(seed)
    builder = ExamplesBuilder()
    for length in lengths:
        stem, places = 2 * length // 3, np.arange(length)
        span = np.where(places < stem, length - places, np.minimum(3 - (places - stem) % 3, length - places))
        loss = (places % 2).astype(np.int8)
        builder.add_tree(rng.integers(1, VOCABULARY, length).astype(np.int32), span, loss, "behaviour", 1.0)
    return builder.build()


def make_batch(*rows: list[int]) -> Batch:
    """One row for each list of lengths of examples."""
    lengths = [length for row in rows for length in row]
    ids = iter(range(len(lengths)))
    packed = Rows(make_examples(lengths), np.arange(len(lengths)), row_tokens=600, seed=0, pad=0)
    return packed.batch([[next(ids) for _ in row] for row in rows])


BATCHES = {
    "one row": make_batch([150, 30, 20, 210]),
    "three rows": make_batch([150, 130, 110], [280, 90], [40, 50, 60, 70, 80, 20]),
    "one example": make_batch([400]),
}


def pass_of(model: Any, batch: Batch) -> list[torch.Tensor]:
    """The hidden states, and the gradient of each parameter of the loss per target."""
    arrays = [torch.from_numpy(a) for a in (batch.tokens, batch.span, batch.positions, batch.source, batch.target)]
    tokens, span, positions = arrays[:3]
    model.zero_grad()
    (TargetLoss(model)(*arrays) / len(batch.target)).backward()
    inputs = {"input_ids": tokens, "position_ids": positions, "attention_mask": visibility(span), "use_cache": False}
    hidden = model.base_model(**inputs, **block_keywords(model, positions)).last_hidden_state
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs of a query and a key of each attention that torch computes."""
    seen: list[int] = []
    plain = functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, *args: Any, **told: Any) -> torch.Tensor:
        seen.append(query.shape[0] * query.shape[2] * key.shape[2])
        return plain(query, key, *args, **told)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("architecture", "kv_heads"), [("llama", 2), ("llama", 1), ("qwen3", 1), ("qwen2", 2)])
def test_the_same_numbers_for_fewer_pairs(name: str, architecture: str, kv_heads: int, pairs: list[int]) -> None:
    model, batch = make_model(architecture, kv_heads), BATCHES[name]
    plain = pass_of(model, batch)
    whole = sum(pairs)
    with block_attention(model):
        pairs.clear()
        blocks = pass_of(model, batch)
    assert batch.num_seen < sum(pairs) / 4 < 0.85 * whole / 4  # two passes through two layers
    for one, other in zip(plain, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_with_gradient_checkpointing() -> None:
    model, batch = make_model(), BATCHES["three rows"]
    plain = pass_of(model, batch)
    with _dressed(model, LoopParams(gradient_checkpointing=True), torch.device("cpu")):
        blocks = pass_of(model, batch)
    for one, other in zip(plain, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_no_token_sees_what_its_block_leaves_out(name: str) -> None:
    batch = BATCHES[name]
    blocks, seen = cut_blocks(batch.positions), visibility(torch.from_numpy(batch.span))[:, 0] == 0
    ends = np.cumsum(blocks.sizes)
    assert ends[-1] == batch.tokens.shape[1]
    assert len(blocks.sizes) > 1
    for first, end, size in zip(blocks.first, ends, blocks.sizes, strict=True):
        rows = seen[:, end - size : end]
        assert not rows[:, :, : ends[first] - blocks.sizes[first]].any()
        assert not rows[:, :, end:].any()


def test_blocks_end_where_examples_do() -> None:
    positions = np.concatenate([np.arange(n) for n in (100, 20, 300, 70)])[None]
    blocks = cut_blocks(positions)
    assert blocks.sizes == (100, 160, 160, 70)  # 20 are too few, and go with the next
    assert blocks.first == (0, 1, 1, 3)


def test_training_turns_it_on_for_a_cpu_that_does_not_compile() -> None:
    model, positions = make_model(), torch.from_numpy(BATCHES["one row"].positions)
    model.base_model.compile = lambda **_: None
    for compiles, device, on in [(False, "cpu", True), (False, "cuda", False), (True, "cpu", False)]:
        with _dressed(model, LoopParams(compile=compiles), torch.device(device)):
            assert bool(block_keywords(model, positions)) == on
        assert not block_keywords(model, positions)


def test_it_is_gone_afterwards_and_leaves_other_attention_alone(pairs: list[int]) -> None:
    model, batch = make_model(), BATCHES["one row"]
    plain = pass_of(model, batch)
    with pytest.raises(ZeroDivisionError), block_attention(model):
        assert block_keywords(model, torch.from_numpy(batch.positions))
        raise ZeroDivisionError
    pairs.clear()
    again = pass_of(model, batch)
    assert set(pairs) == {batch.tokens.shape[1] ** 2}
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    model.set_attn_implementation("eager")
    with block_attention(model):
        assert not block_keywords(model, torch.from_numpy(batch.positions))
    assert model.config._attn_implementation == "eager"


def test_whole_rows_where_the_blocks_do_not_arrive(pairs: list[int]) -> None:
    model, batch = make_model(), BATCHES["one row"]
    inputs = {"input_ids": torch.from_numpy(batch.tokens), "attention_mask": visibility(torch.from_numpy(batch.span))}
    plain = model.base_model(**inputs).last_hidden_state
    pairs.clear()
    with block_attention(model):
        assert torch.equal(model.base_model(**inputs).last_hidden_state, plain)
    assert set(pairs) == {batch.tokens.shape[1] ** 2}
