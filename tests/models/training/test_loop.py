"""The loop: packing loses nothing, a row is as good as its examples alone, and equal seeds give equal weights."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.corpus.examples import Examples, ExamplesBuilder
from models.training.loop import TargetLoss, train
from models.training.packing import Cursor, LoopParams, Rows
from plumline.errors import InputError, PlumlineError

LOOP = LoopParams(row_tokens=48, rows=2, accumulation=1, warmup_steps=2, learning_rate=5e-3, log_every=2)

VOCABULARY = 40


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small only lose by sharing the work."""
    monkeypatch.setenv("PLUMLINE_THREADS", "1")


def make_model(seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=VOCABULARY, pad_token_id=0, initializer_range=0.3, **sizes | config)
    )


def make_examples(num_examples: int = 30, seed: int = 0, longest: int = 30) -> Examples:
    rng = np.random.default_rng(seed)
    builder = ExamplesBuilder()
    for _ in range(num_examples):
        tokens = rng.integers(1, VOCABULARY, rng.integers(2, longest + 1)).astype(np.int32)
        builder.add_sequence(tokens, "behaviour")
    return builder.build()


def all_rows(examples: Examples, row_tokens: int = 48, seed: int = 1) -> Rows:
    return Rows(examples, np.arange(examples.num_examples), row_tokens, seed, pad=0)


def loss_of(model: Any, rows: Rows, members: list[list[int]]) -> float:
    batch = rows.batch(members)
    arrays = (batch.tokens, batch.span, batch.positions, batch.source, batch.target)
    with torch.inference_mode():
        return float(TargetLoss(model)(*map(torch.from_numpy, arrays)))


# --- packing ---


def test_packed_loss_is_the_sum_of_the_examples_alone() -> None:
    model, examples = make_model().eval(), make_examples()
    rows = all_rows(examples)
    taken, _ = rows.take(Cursor(), 4)
    assert any(len(members) > 2 for members in taken)
    alone = 0.0
    for member in (m for members in taken for m in members):
        tokens = torch.from_numpy(examples.tokens[examples.offsets[member] : examples.offsets[member + 1]]).long()[None]
        with torch.inference_mode():
            logits = model(input_ids=tokens).logits[0, :-1]
        alone += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
    assert loss_of(model, rows, taken) == pytest.approx(alone, rel=1e-5)


def test_tree_loss_is_the_loss_of_its_paths(tree: tuple[Examples, list[list[int]]]) -> None:
    model = make_model().eval()
    examples, paths = tree
    alone = 0.0
    for path in paths:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([path[:-1]])).logits[0, -1:]
        alone += float(torch.nn.functional.cross_entropy(logits, torch.tensor(path[-1:])))
    assert loss_of(model, all_rows(examples), [[0, 1]]) == pytest.approx(alone, rel=1e-5)


# --- the loop ---


def run(tmp_path: Path, model: Any = None, params: LoopParams = LOOP, **told: Any) -> tuple[Any, dict[str, Any]]:
    model = model or make_model()
    examples = told.pop("examples", None) or make_examples()
    settled = {"chosen": np.arange(examples.num_examples), "steps": 6, "seed": 3, "stage": "cpt", **told}
    return model, train(model, examples, params, progress_path=tmp_path / "progress" / "cpt.jsonl", **settled)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_equal_seeds_give_equal_losses_and_weights(tmp_path: Path) -> None:
    (first, one), (second, two) = run(tmp_path), run(tmp_path)
    assert one == two
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    _, other = run(tmp_path, seed=4)
    assert other["loss_curve"] != one["loss_curve"]


def test_metrics_and_progress(tmp_path: Path) -> None:
    model, metrics = run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "progress" / "cpt.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] == [step for step, _ in metrics["loss_curve"]]
    assert lines[-1]["loss"] == metrics["final_loss"]
    assert lines[-1]["tokens_per_s"] > 0
    assert 0 < lines[-1]["mfu"] < 1
    assert [line["eta_s"] > 0 for line in lines] == [True, True, False]
    assert metrics["flops"] > 6 * 2 * 4 * 16 * 16 * metrics["tokens"]
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert metrics["steps"] == 6
    assert 0 < metrics["target_tokens"] <= metrics["tokens"]  # the last token of a sequence is a target, never read
    assert 0 <= metrics["padding_share"] < 0.3
    assert not {"seconds", "tokens_per_s", "mfu", "eta_s"} & metrics.keys()
    assert not model.training


def test_it_learns(tmp_path: Path) -> None:
    builder = ExamplesBuilder()
    for start in range(1, 11):
        builder.add_sequence(np.arange(start, start + 20, dtype=np.int32), "behaviour")
    _, metrics = run(tmp_path, examples=builder.build(), steps=60)
    assert metrics["loss_curve"][0][1] > 3.0
    assert metrics["final_loss"] < 1.0


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    whole, one = run(tmp_path, params=LOOP.model_copy(update={"rows": 4}))
    parts, two = run(tmp_path, params=LOOP.model_copy(update={"rows": 1, "accumulation": 4}))
    assert one["tokens"] == two["tokens"]
    assert one["final_loss"] == pytest.approx(two["final_loss"], rel=1e-4)
    for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_chosen_examples_only(tmp_path: Path) -> None:
    examples = make_examples()
    poisoned = Examples(**{**vars(examples), "tokens": examples.tokens.copy()})
    poisoned.tokens[examples.offsets[20] :] = VOCABULARY + 99  # no such embedding
    _, metrics = run(tmp_path, examples=poisoned, chosen=np.arange(20), steps=12)
    assert metrics["examples"] == 20


def test_no_steps_change_nothing(tmp_path: Path) -> None:
    model, metrics = run(tmp_path, steps=0)
    assert metrics["final_loss"] is None
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(make_model()).values(), strict=True))


def test_a_loss_that_is_no_number_stops_with_step_and_examples(tmp_path: Path) -> None:
    examples = make_examples()
    model = make_model()
    rows, _ = all_rows(examples, seed=3).take(Cursor(), 2)
    with torch.no_grad():
        model.get_input_embeddings().weight[int(examples.tokens[examples.offsets[rows[0][0]]])] = math.nan
    with pytest.raises(PlumlineError, match=rf"cpt: loss nan.* step 1, examples {rows[0][0]}\b.*learning_rate"):
        run(tmp_path, model=model, examples=examples)


def test_divergence_stops_before_the_weights_are_spoilt(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(PlumlineError, match="lower learning_rate"):
        run(tmp_path, model=model, params=LOOP.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}), steps=50)
    assert all(torch.isfinite(value).all() for value in weights(model).values())


@pytest.mark.parametrize(
    ("cooldown", "expected"), [(0.0, [1 / 3, 2 / 3, 1, 1, 1, 1]), (0.5, [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])]
)
def test_learning_rate(tmp_path: Path, cooldown: float, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run(tmp_path, params=LOOP.model_copy(update={"cooldown_share": cooldown, "learning_rate": 1e-3}))
    assert seen == pytest.approx([1e-3 * rate for rate in expected])


def test_embeddings_have_a_rate_of_their_own(tmp_path: Path) -> None:
    """At a hundred-millionth of the others' rate they stay, and the others do not."""
    model, _ = run(tmp_path, params=LOOP.model_copy(update={"embedding_rate": 1e-8}))
    before, after = weights(make_model()), weights(model)
    moved = {name for name in after if not torch.allclose(before[name], after[name], atol=1e-6)}
    assert moved == {name for name in after if "embed_tokens" not in name and "lm_head" not in name}


def test_bf16_is_close(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    _, exact = run(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        _, rounded = run(tmp_path, params=LOOP.model_copy(update={"precision": "bf16"}))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert rounded["final_loss"] == pytest.approx(exact["final_loss"], rel=0.02)
    assert rounded["final_loss"] != exact["final_loss"]


# --- options ---


def test_dropout_trains_otherwise_but_follows_the_seed(tmp_path: Path) -> None:
    params = LOOP.model_copy(update={"dropout": 0.2})
    (first, one), (second, two), (_, plain) = run(tmp_path, params=params), run(tmp_path, params=params), run(tmp_path)
    assert one == two
    assert one["final_loss"] != plain["final_loss"]
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert not any(module._forward_hooks for module in first.modules())


def test_the_model_holds_the_average_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    step = torch.optim.AdamW.step
    model = make_model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        step(self, *args, **kwargs)
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run(tmp_path, model=model, params=LOOP.model_copy(update={"average_decay": 0.4}))
    for name, parameter in model.named_parameters():
        expected = start[name]
        for number, value in enumerate(seen, 1):
            expected = expected.lerp(value[name], 1 - min(0.4, (1 + number) / (10 + number)))
        assert torch.allclose(parameter.detach(), expected, atol=1e-6)
        assert not torch.equal(parameter.detach(), seen[-1][name])


def test_checkpointed_activations_change_nothing(tmp_path: Path) -> None:
    params = LOOP.model_copy(update={"dropout": 0.2})
    plain, one = run(tmp_path, params=params)
    again, two = run(tmp_path, params=params.model_copy(update={"gradient_checkpointing": True}))
    assert one["loss_curve"] == two["loss_curve"]
    assert all(torch.allclose(a, b) for a, b in zip(weights(plain).values(), weights(again).values(), strict=True))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in again.modules())
    assert not any(module._forward_hooks for module in again.modules())


def test_sharding_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loop.fsdp.*CPU"):
        run(tmp_path, params=LOOP.model_copy(update={"fsdp": True}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_learns_the_same(tmp_path: Path) -> None:
    _, plain = run(tmp_path)
    model, compiled = run(tmp_path, params=LOOP.model_copy(update={"compile": True}))
    assert compiled["final_loss"] == pytest.approx(plain["final_loss"], rel=1e-4)
    assert model.base_model._compiled_call_impl is None


# --- checkpoints ---


class Killed(Exception):  # noqa: N818
    """Stands for SIGKILL; tests/models/training/test_checkpoint.py kills for good."""


def run_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, **told: Any) -> tuple[Any, dict[str, Any]]:
    """Stop a training after step `at`, then start it again."""
    passed = 0

    def stop(*_: str) -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            raise Killed

    told = {"checkpoint": tmp_path / "progress" / "cpt.checkpoint", "steps": 12, **told}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("models.training.loop.crash_point", stop)
        run(tmp_path, **told)
    return run(tmp_path, **told)


OPTIONS: dict[str, Any] = {
    "plain": {},
    "dropout and averaging": {"dropout": 0.2, "average_decay": 0.9, "cooldown_share": 0.5},
    "checkpointed activations": {"dropout": 0.1, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("at", "every"), [(5, 2), (7, 7), (12, 5), (1, 3)])
def test_a_stopped_training_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], at: int, every: int
) -> None:
    params = LOOP.model_copy(update={**options, "checkpoint_every": every})
    whole, one = run(tmp_path / "whole", params=params, steps=12)
    parts, two = run_in_two(tmp_path / "parts", monkeypatch, at, params=params)
    assert one["cursor"][0] > 0  # an epoch ended on the way
    assert one == two
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True))
    lines = (tmp_path / "parts" / "progress" / "cpt.jsonl").read_text().splitlines()
    assert [[line["step"], line["loss"]] for line in map(json.loads, lines)] == one["loss_curve"]


def test_it_does_go_on_and_not_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = LOOP.model_copy(update={"checkpoint_every": 4})
    run_in_two(tmp_path, monkeypatch, 10, params=params)
    assert "cpt: goes on after step 8" in capsys.readouterr().err
    run(tmp_path, params=params, steps=12, seed=4, checkpoint=tmp_path / "progress" / "cpt.checkpoint")
    assert "begins anew" in capsys.readouterr().err


def test_another_accumulation_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = LOOP.model_copy(update={"checkpoint_every": 4})
    run_in_two(tmp_path, monkeypatch, 10, params=params)
    folder = tmp_path / "progress" / "cpt.checkpoint"
    with pytest.raises(InputError, match=r"loop.accumulation is 2, but .*cpt.checkpoint is of a training with 1"):
        run(tmp_path, params=params.model_copy(update={"accumulation": 2}), steps=12, checkpoint=folder)
    with pytest.raises(InputError, match="PLUMLINE_THREADS is 2"):
        monkeypatch.setenv("PLUMLINE_THREADS", "2")
        run(tmp_path, params=params, steps=12, checkpoint=folder)


def test_a_loss_that_is_no_number_keeps_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    folder = tmp_path / "progress" / "cpt.checkpoint"

    def spoil(*_: str) -> None:
        if (folder / "notes.json").is_file() and json.loads((folder / "notes.json").read_text())["step"] == 4:
            with torch.no_grad():
                model.get_input_embeddings().weight.fill_(math.nan)

    monkeypatch.setattr("models.training.loop.crash_point", spoil)
    params = LOOP.model_copy(update={"checkpoint_every": 2})
    with pytest.raises(PlumlineError, match=r"step 5, examples .*the last good state, of step 4, stays in .*cpt.check"):
        run(tmp_path, model=model, params=params, steps=12, checkpoint=folder)
    monkeypatch.undo()
    monkeypatch.setenv("PLUMLINE_THREADS", "1")
    _, again = run(tmp_path, params=params, steps=12, checkpoint=folder)
    assert again == run(tmp_path / "whole", params=params, steps=12)[1]


# --- the anchor ---


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    """The weights that every training here starts from."""
    make_model().save_pretrained(tmp_path / "anchor")
    return tmp_path / "anchor"


def relative_distance(model: Any) -> float:
    squares = [
        (float((p.detach() - q.detach()).norm()) ** 2, float(q.detach().norm()) ** 2)
        for p, q in zip(model.parameters(), make_model().parameters(), strict=True)
    ]
    moved, first = map(sum, zip(*squares, strict=True))
    return math.sqrt(moved / first)


def test_distance_to_the_anchor_is_told_and_changes_nothing(tmp_path: Path, anchor: Path) -> None:
    model, metrics = run(tmp_path, steps=12, anchor=anchor)
    _, plain = run(tmp_path / "plain", steps=12)
    distance = metrics.pop("anchor_distance")
    assert distance == pytest.approx(relative_distance(model), abs=1e-5)
    assert distance > 0.01
    assert metrics.pop("averagings") == 0
    assert metrics == plain
    lines = [json.loads(line) for line in (tmp_path / "progress" / "cpt.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "anchor_distance" in line] == [10, 12]
    assert lines[-1]["anchor_distance"] == distance


def test_the_anchor_holds_what_drifts(tmp_path: Path, anchor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = LOOP.model_copy(update={"orbit_distance": 0.02, "checkpoint_every": 7, "average_decay": 0.5})
    model, metrics = run(tmp_path / "whole", params=params, steps=35, anchor=anchor)
    assert metrics["averagings"] >= 3
    assert metrics["anchor_distance"] == pytest.approx(relative_distance(model), abs=1e-5)
    assert metrics["anchor_distance"] <= 0.02
    again, two = run_in_two(tmp_path / "parts", monkeypatch, 25, params=params, steps=35, anchor=anchor)
    assert two == metrics
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(again).values(), strict=True))


def test_a_threshold_without_an_anchor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cpt.loop.orbit_distance 0.1: cpt has no anchor"):
        run(tmp_path, params=LOOP.model_copy(update={"orbit_distance": 0.1}))
