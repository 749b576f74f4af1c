"""The loss of packed places, and the training loop on them: what it does for the other form it does for this one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.language.item_model import ItemModel, Prefixes, SidHead
from models.training.dropout import blocks, dropout
from models.training.item_batches import ItemRows
from models.training.item_loss import ItemLoss
from models.training.loop import train
from models.training.packing import Cursor, LoopParams
from models.training.peak import Flops
from plumline.errors import PlumlineError

LOOP = LoopParams(row_tokens=48, rows=2, accumulation=1, warmup_steps=2, learning_rate=5e-3, log_every=2)
VOCABULARY, LEVELS, PAD = 40, (4, 3, 3), 0
SID_BASE = VOCABULARY - sum(LEVELS)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small only lose by sharing the work."""
    monkeypatch.setenv("PLUMLINE_THREADS", "1")


def make_model(seed: int = 0, **config: Any) -> ItemModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    told = {"tie_word_embeddings": True, "initializer_range": 0.3, **sizes, **config}
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=VOCABULARY, pad_token_id=PAD, **told)
    )
    head = SidHead(LEVELS, hidden=16, intermediate=20)
    head.start(seed)
    prefixes = Prefixes(LEVELS, 16, 10, SID_BASE)
    torch.nn.init.normal_(prefixes.table.weight)
    return ItemModel(lm, head, prefixes, SID_BASE, PAD)


def make_examples(num_examples: int = 30, seed: int = 0, longest: int = 16, **codes: Any) -> ItemExamples:
    """Head of two places, then events of a SID and perhaps a gap; every event is asked for at the place before it."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Any]] = {name: [] for name in ("tokens", "sizes", "source", "question", "codes")}
    lengths = rng.integers(2, longest + 1, num_examples)
    for length in lengths:
        sids = rng.integers(0, LEVELS, (length - 1, 3)) if not codes else codes["of"](rng, length - 1)
        gaps = rng.integers(3, 9, length - 1) * (rng.random(length - 1) < 0.6)
        parts["tokens"] += [1, 2]
        parts["sizes"] += [1, 1]
        for sid, gap in zip(sids[:-1], gaps[:-1], strict=True):
            bag = [*([gap] if gap else []), *(SID_BASE + sid + np.array([0, 4, 7]))]
            parts["tokens"] += bag
            parts["sizes"].append(len(bag))
        parts["source"] += range(1, length)
        parts["question"] += np.where(gaps > 0, gaps, NO_QUESTION).tolist()
        parts["codes"] += sids.tolist()
    return ItemExamples(
        **{name: np.array(value, dtype=np.int32) for name, value in parts.items()},
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        target_offsets=np.concatenate([[0], np.cumsum(lengths - 1)]),
        kind=np.full(num_examples, 2, dtype=np.int8),
        weight=np.ones(num_examples, dtype=np.float32),
    )


def all_rows(examples: ItemExamples, row_tokens: int = 48, seed: int = 1) -> ItemRows:
    return ItemRows(examples, np.arange(examples.num_examples), row_tokens, seed, pad=PAD)


def loss_of(model: ItemModel, rows: ItemRows, members: list[list[int]]) -> float:
    with torch.inference_mode():
        return float(ItemLoss(model)(*map(torch.from_numpy, rows.batch(members).arrays)))


def pair_of(bag: torch.Tensor) -> list[int]:
    """The row of the first two codes of a place, if it has a SID: ten rows for twelve pairs."""
    codes = [token - SID_BASE for token in bag.tolist() if token >= SID_BASE]
    return [(3 * codes[0] + codes[1] - 4) % 10] if codes else []


def plain_loss(model: ItemModel, examples: ItemExamples, member: int) -> float:
    """Of one example, by a forward pass over summed rows of the tables and nothing of batches or masks."""
    assert model.prefixes is not None
    pairs = model.prefixes.table.weight
    table, starts = model.get_input_embeddings().weight, np.concatenate([[0], np.cumsum(examples.sizes)])
    begin, end = examples.offsets[member : member + 2].tolist()
    tokens = [torch.from_numpy(examples.tokens[starts[n] : starts[n + 1]]).long() for n in range(begin, end)]
    total = 0.0
    with torch.inference_mode():
        bags = torch.stack([table[bag].sum(0) + sum(pairs[row] for row in pair_of(bag)) for bag in tokens])
        hidden = model.base_model(inputs_embeds=bags[None], use_cache=False).last_hidden_state[0]
        for n in range(*examples.target_offsets[member : member + 2].tolist()):
            state = hidden[examples.source[n]]
            if examples.question[n] != NO_QUESTION:
                state = state + table[int(examples.question[n])]
            for level, code in enumerate(examples.codes[n].tolist()):
                total -= float(model.head.log_probabilities(level, state)[code])
                state = model.head.step(level, state, torch.tensor(code)) if level < 2 else state
    return total


# --- the loss ---


def test_packed_loss_is_the_sum_of_the_examples_alone() -> None:
    model, examples = make_model().eval(), make_examples()
    rows = all_rows(examples)
    taken, _ = rows.take(Cursor(), 4)
    assert any(len(members) > 2 for members in taken)
    members = [member for row in taken for member in row]
    alone = [loss_of(model, rows, [[member]]) for member in members]
    assert loss_of(model, rows, taken) == pytest.approx(sum(alone), rel=1e-5)
    assert alone == pytest.approx([plain_loss(model, examples, member) for member in members], rel=1e-4)
    assert len({round(value / len(examples.codes), 6) for value in alone}) > 3


def test_padding_changes_nothing() -> None:
    """Neither that behind a row, nor that within a place, nor what stands in the row of its token."""
    model, examples = make_model().eval(), make_examples()
    rows, long = all_rows(examples), int(np.argmax(examples.lengths))
    short = int(np.argmin(examples.lengths))
    assert examples.lengths[long] > examples.lengths[short] + 8
    both = loss_of(model, rows, [[long], [short]])
    assert both == pytest.approx(sum(plain_loss(model, examples, member) for member in (long, short)), rel=1e-4)
    before = loss_of(model, rows, [[long], [short]])
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] += 3.0
    assert loss_of(model, rows, [[long], [short]]) == pytest.approx(before, rel=1e-5)


def test_the_padding_token_gets_no_gradient() -> None:
    model = make_model()
    ItemLoss(model)(*map(torch.from_numpy, all_rows(make_examples()).batch([[0, 1], [2]]).arrays)).backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    assert not gradient[PAD].any()
    assert gradient[1].any()
    assert all(parameter.grad is not None for parameter in model.head.parameters())


# --- the loop ---


def run(tmp_path: Path, model: Any = None, params: LoopParams = LOOP, **told: Any) -> tuple[ItemModel, dict[str, Any]]:
    model = model or make_model()
    examples = told.pop("examples", None) or make_examples()
    settled = {"chosen": np.arange(examples.num_examples), "steps": 6, "seed": 3, "stage": "sft", **told}
    return model, train(model, examples, params, progress_path=tmp_path / "progress" / "sft.jsonl", **settled)


def weights(model: ItemModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one: ItemModel, other: ItemModel) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def test_equal_seeds_give_equal_losses_and_weights(tmp_path: Path) -> None:
    (first, one), (second, two) = run(tmp_path), run(tmp_path)
    assert one == two
    assert_equal(first, second)
    moved = {name for name, value in weights(make_model()).items() if not torch.equal(value, first.state_dict()[name])}
    assert moved == first.state_dict().keys()  # backbone, embeddings and the whole head
    assert one["target_tokens"] == 3 * sum(all_targets(tmp_path, one))
    assert one["parameters"] == sum(p.numel() for p in first.parameters())
    assert not first.training


def all_targets(tmp_path: Path, metrics: dict[str, Any]) -> list[int]:
    """Targets of each step, by a packer of one's own."""
    rows, cursor, counts = all_rows(make_examples(), seed=3), Cursor(), []
    for _ in range(metrics["steps"]):
        taken, cursor = rows.take(cursor, 2)
        counts.append(len(rows.batch(taken).source))
    assert [cursor.epoch, cursor.row] == metrics["cursor"]
    return counts


def test_it_learns(tmp_path: Path) -> None:
    def successors(rng: np.random.Generator, length: int) -> np.ndarray:
        start = rng.integers(0, 36)
        return np.stack(np.unravel_index((start + np.arange(length)) % 36, LEVELS), axis=1)

    examples = make_examples(of=successors)
    _, metrics = run(tmp_path, examples=examples, steps=120, params=LOOP.model_copy(update={"learning_rate": 1e-2}))
    assert metrics["loss_curve"][0][1] == pytest.approx(math.log(36) / 3, abs=0.2)  # a new head knows nothing
    assert metrics["final_loss"] < 0.5


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    whole, one = run(tmp_path, params=LOOP.model_copy(update={"rows": 4}))
    parts, two = run(tmp_path, params=LOOP.model_copy(update={"rows": 1, "accumulation": 4}))
    assert one["tokens"] == two["tokens"]
    assert one["final_loss"] == pytest.approx(two["final_loss"], rel=1e-4)
    for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2}])
def test_checkpointed_activations_change_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    params = LOOP.model_copy(update=options)
    plain, one = run(tmp_path, params=params)
    again, two = run(tmp_path, params=params.model_copy(update={"gradient_checkpointing": True}))
    assert one["loss_curve"] == two["loss_curve"]
    assert all(torch.allclose(a, b) for a, b in zip(weights(plain).values(), weights(again).values(), strict=True))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in again.modules())
    assert not any(module._forward_hooks for module in again.modules())


def test_embeddings_and_codes_have_a_rate_of_their_own(tmp_path: Path) -> None:
    model, _ = run(tmp_path, params=LOOP.model_copy(update={"embedding_rate": 1e-8}))
    before, after = weights(make_model()), weights(model)
    stayed = {name for name in after if torch.allclose(before[name], after[name], atol=1e-6)}
    tables = ("embed_tokens", "lm_head", "head.codes", "prefixes.table")
    assert stayed == {name for name in after if any(part in name for part in tables)}


def test_a_loss_that_is_no_number_stops_with_step_and_examples(tmp_path: Path) -> None:
    model = make_model()
    rows, _ = all_rows(make_examples(), seed=3).take(Cursor(), 2)
    with torch.no_grad():
        model.head.outputs[1].bias[0] = math.nan
    with pytest.raises(PlumlineError, match=rf"sft: loss nan.* step 1, examples {rows[0][0]}\b.*learning_rate"):
        run(tmp_path, model=model)


class Killed(Exception):  # noqa: N818
    """Stands for SIGKILL."""


OPTIONS: dict[str, Any] = {
    "plain": {},
    "dropout and averaging": {"dropout": 0.2, "average_decay": 0.9, "cooldown_share": 0.5},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_stopped_training_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], tied: bool
) -> None:
    passed = 0

    def stop(*_: str) -> None:
        nonlocal passed
        passed += 1
        if passed == 7:
            raise Killed

    params = LOOP.model_copy(update={**options, "checkpoint_every": 3})
    whole, one = run(tmp_path / "whole", make_model(tie_word_embeddings=tied), params, steps=12)
    told: dict[str, Any] = {"checkpoint": tmp_path / "progress" / "sft.checkpoint", "steps": 12}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("models.training.loop.crash_point", stop)
        run(tmp_path, make_model(tie_word_embeddings=tied), params, **told)
    parts, two = run(tmp_path, make_model(tie_word_embeddings=tied), params, **told)
    assert one["cursor"][0] > 0  # an epoch ended on the way
    assert one == two
    assert_equal(whole, parts)
    unused = "lm.lm_head.weight"
    assert torch.equal(weights(parts)[unused], weights(make_model(tie_word_embeddings=tied))[unused]) != tied
    lines = (tmp_path / "progress" / "sft.jsonl").read_text().splitlines()
    assert [[line["step"], line["loss"]] for line in map(json.loads, lines)] == one["loss_curve"]


def test_the_checkpoint_of_other_targets_is_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, folder = LOOP.model_copy(update={"checkpoint_every": 3}), tmp_path / "sft.checkpoint"
    run(tmp_path, params=params, checkpoint=folder, steps=3)
    examples = make_examples()
    examples.question[0] = 3 if examples.question[0] != 3 else 4
    run(tmp_path, params=params, checkpoint=folder, steps=3, examples=examples)
    assert "begins anew" in capsys.readouterr().err


# --- the anchor ---


def relative_distance(model: ItemModel) -> float:
    pairs = list(zip(model.lm.parameters(), make_model().lm.parameters(), strict=True))
    moved = sum(float((p.detach() - q.detach()).norm()) ** 2 for p, q in pairs)
    return math.sqrt(moved / sum(float(q.detach().norm()) ** 2 for _, q in pairs))


@pytest.mark.parametrize("limit", [None, 0.02])
def test_the_distance_is_that_of_the_language_model(tmp_path: Path, limit: float | None) -> None:
    make_model().lm.save_pretrained(tmp_path / "anchor")
    params = LOOP.model_copy(update={"orbit_distance": limit})
    model, metrics = run(tmp_path, params=params, steps=25, anchor=tmp_path / "anchor")
    assert metrics["anchor_distance"] == pytest.approx(relative_distance(model), abs=1e-5)
    assert (metrics["averagings"] > 0) == (limit is not None)
    if limit is None:
        assert metrics["anchor_distance"] > 0.02
        plain, _ = run(tmp_path, steps=25)
        assert_equal(model, plain)
    else:
        assert metrics["anchor_distance"] <= limit


def test_an_average_never_shortens_the_way_of_the_head(tmp_path: Path) -> None:
    """With the language model all but held still the head goes as far as without an anchor."""
    make_model().lm.save_pretrained(tmp_path / "anchor")
    params = LOOP.model_copy(update={"orbit_distance": 1e-9})
    held, metrics = run(tmp_path, params=params, steps=10, anchor=tmp_path / "anchor")
    free, _ = run(tmp_path, steps=10)
    assert metrics["averagings"] == 1
    for name, value in held.head.state_dict().items():
        assert torch.equal(value, free.head.state_dict()[name])
    assert relative_distance(held) < 1e-6 < relative_distance(free)


# --- dropout and operations ---


def test_dropout_falls_on_the_bags() -> None:
    model = make_model().train()
    assert blocks(model)[0] is model.bag
    assert len(blocks(model)) == 1 + 2 + 2
    tokens = torch.from_numpy(all_rows(make_examples()).batch([[0, 1, 2, 3]]).tokens)
    plain = model.embed(tokens)
    with dropout(model, 0.25):
        torch.manual_seed(0)
        dropped = model.embed(tokens)
        torch.manual_seed(0)
        assert torch.equal(model.embed(tokens), dropped)
        assert torch.equal(model.eval().embed(tokens), plain)
    kept = dropped != 0
    somewhere = plain != 0
    assert float((dropped[somewhere] == 0).float().mean()) == pytest.approx(0.25, abs=0.06)
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.train().embed(tokens), plain)


def test_dropout_trains_otherwise_but_follows_the_seed(tmp_path: Path) -> None:
    params = LOOP.model_copy(update={"dropout": 0.2})
    (first, one), (second, two), (_, plain) = run(tmp_path, params=params), run(tmp_path, params=params), run(tmp_path)
    assert one == two
    assert one["final_loss"] != plain["final_loss"]
    assert_equal(first, second)


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied, attn_implementation="eager")
    flops = Flops.of(model)
    once = sum(16 * size for size in LEVELS) + 2 * (2 * (32 * 20) + 20 * 16)
    assert flops == Flops(2 * (4 * 16 * 16 + 3 * 16 * 24), once // 3, 2 * 2 * 8)
    num_targets = 11
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(inputs_embeds=model.embed(torch.ones(1, 30, 2, dtype=torch.int64)))
        state = hidden.last_hidden_state[0, :num_targets]
        model.target_losses(state, torch.zeros(num_targets, 3, dtype=torch.int64)).backward()
    rope = 2 * 3 * 4 * 30  # positions x frequencies as a product, which is no parameter's
    rounding = 6 * 3 * num_targets
    counted = counter.get_total_flops()
    assert flops.needed(30, 3 * num_targets, 30 * 30) == pytest.approx(counted, abs=rope + rounding)
