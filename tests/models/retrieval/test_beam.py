"""The beam search against a slow reference that shares nothing with it: one beam at a time, no cache, plain Python."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.retrieval.beam import Choice, beam_search
from models.retrieval.bits import Bits
from models.retrieval.csr import Index
from models.retrieval.trie import Allowed, Trie
from plumline.errors import InputError, PlumlineError
from plumline.sid import SidSpace

WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "head_dim": 8}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},  # and SmolLM
    "qwen2": {},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma": {"head_dim": 8},
    "gemma2": {**WINDOW, "attn_implementation": "eager"},  # caps its attention logits, which sdpa cannot
    "gemma3_text": {**WINDOW, "final_logit_softcapping": 5.0},
}
NUM_TEXT = 11  # ordinary tokens before the SID tokens; two unused rows stand after them


def tiny_model(kind: str, space: SidSpace, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """A random model whose logits are far from equal. float64: no two beams come so close that rounding decides."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}
    tokens = {"vocab_size": NUM_TEXT + space.num_tokens + 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(kind, **shape, **heads, **tokens, **KINDS[kind])
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def next_logp(model: Any, tokens: list[int], first: int, size: int, over_slice: bool) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -1]
    if over_slice:
        logits = logits[first : first + size]
        first = 0
    logp = torch.log_softmax(logits, dim=-1).tolist()
    return logp[first : first + size]


def reference(
    model: Any,
    prompt: list[int],
    space: SidSpace,
    allowed: set[tuple[int, ...]] | None,
    width: int,
    over_slice: bool = False,
    cap: int | None = None,
    cap_level: int = 1,
) -> list[tuple[tuple[int, ...], float]]:
    """Beam search as it is written on paper: at every level the best `width`, of a branch at most `cap`."""
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for level, (size, offset) in enumerate(zip(space.sizes, space.offsets, strict=True)):
        candidates = []
        for codes, score in beams:
            tokens = prompt + [
                NUM_TEXT + start + code for start, code in zip(space.offsets[:level], codes, strict=True)
            ]
            logp = next_logp(model, tokens, NUM_TEXT + offset, size, over_slice)
            for code in range(size):
                longer = (*codes, code)
                if allowed is None or any(sid[: level + 1] == longer for sid in allowed):
                    candidates.append((longer, score + logp[code]))
        possible = [beam for beam in candidates if beam[1] > -math.inf]
        beams, of_branch = [], Counter[tuple[int, ...]]()
        for beam in sorted(possible, key=lambda beam: (-beam[1], beam[0])):
            of_branch[beam[0][:cap_level]] += 1
            if len(beams) < width and (cap is None or level + 1 < cap_level or of_branch[beam[0][:cap_level]] <= cap):
                beams.append(beam)
    return beams


def assert_equal(beams: Any, expected: list[tuple[tuple[int, ...], float]]) -> None:
    assert list(map(tuple, beams.codes.tolist())) == [codes for codes, _ in expected]
    np.testing.assert_allclose(beams.scores, [score for _, score in expected], atol=1e-4)
    assert beams.codes.dtype == np.int64
    assert beams.scores.dtype == np.float32


def check_a_random_case(seed: int) -> None:
    """Random model, trie, delta, rules, prompts of different lengths in one batch, width below or above the leaves."""
    dice = random.Random(seed)
    space = SidSpace(tuple(dice.randint(1, 6) for _ in range(dice.randint(1, 4))))
    model = tiny_model(dice.choice(list(KINDS)), space, seed)
    rows = [tuple(dice.randrange(size) for size in space.sizes) for _ in range(dice.choice([1, 5, 12, 30]))]
    cut = dice.randint(1, len(rows)) if dice.random() < 0.4 else len(rows)  # what stands behind it comes as a delta
    base, delta = rows[:cut], rows[cut:]
    prompts = [[dice.randrange(NUM_TEXT) for _ in range(dice.randint(1, 9))] for _ in range(dice.choice([1, 3]))]
    if len(prompts) > 1 and dice.random() < 0.5:
        prompts[-1] = list(prompts[0])  # the same request twice in one batch
    ruled = dice.random() < 0.6
    kept = [{n for n in range(len(rows)) if dice.random() < 0.5} or {0} for _ in prompts]
    width, over_slice = dice.choice([1, 2, 5, 50]), dice.random() < 0.3
    cap, cap_level = dice.choice([None, None, 1, 2]), dice.randint(1, space.num_levels)
    choice = Choice() if cap is None else Choice(cap=cap, cap_level=cap_level)
    index, more = Index.build(np.array(base), space.sizes), Index.build(np.array(delta or base), space.sizes)

    def allow(kept: set[int]) -> Allowed:
        positions = [np.flatnonzero(np.isin(index.item_rows, sorted(kept)))]
        positions.append(np.flatnonzero(np.isin(more.item_rows + cut, sorted(kept))))
        bits = [Bits.at(where, len(base if n == 0 else delta)) for n, where in enumerate(positions[: 1 + bool(delta)])]
        return Allowed(*bits)

    found = beam_search(
        model,
        prompts,
        space=space,
        sid_base=NUM_TEXT,
        index=index,
        delta=Trie.of(more, "cpu") if delta else None,
        allowed=[allow(one) for one in kept] if ruled else None,
        width=width,
        device="cpu",
        over_slice=over_slice,
        choice=choice,
    )
    for prompt, beams, one in zip(prompts, found, kept, strict=True):
        allowed = {rows[n] for n in one} if ruled else set(rows)
        assert_equal(beams, reference(model, prompt, space, allowed, width, over_slice, choice.cap, choice.cap_level))
        assert len(beams.codes) <= min(width, len(allowed))
        assert choice.cap is not None or len(beams.codes) == min(width, len(allowed))


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_slow_reference(seed: int) -> None:
    check_a_random_case(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 11))
def test_a_thousand_cases_equal_the_slow_reference(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        check_a_random_case(seed)


@pytest.mark.parametrize("seed", range(4))
def test_without_an_index_every_code_may_come(seed: int) -> None:
    space = SidSpace((4, 3, 5))
    model = tiny_model("llama" if seed % 2 else "qwen3", space, seed)
    prompts = [[1, 2, 3, 4], [5]]
    found = beam_search(model, prompts, space=space, sid_base=NUM_TEXT, index=None, width=7, device="cpu")
    for prompt, beams in zip(prompts, found, strict=True):
        assert_equal(beams, reference(model, prompt, space, None, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_beams_as_leaves_score_every_leaf(kind: str) -> None:
    """No pruning then: the result is the exact ranking of all leaves, each scored by one plain forward pass."""
    space = SidSpace((5, 4, 3))
    model = tiny_model(kind, space, 3)
    table = np.random.default_rng(0).integers(0, space.sizes, (40, 3))
    index = Index.build(table, space.sizes)
    prompt = [1, 7, 3, 3, 9]
    [beams] = beam_search(
        model, [prompt], space=space, sid_base=NUM_TEXT, index=index, width=index.num_leaves, device="cpu"
    )
    scores = []
    for codes in index.leaf_codes():
        ids = space.token_ids(codes, NUM_TEXT)
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([prompt + ids.tolist()])).logits[0], dim=-1)
        scores.append(sum(float(logp[len(prompt) - 1 + level, token]) for level, token in enumerate(ids)))
    order = np.argsort(-np.array(scores), kind="stable")
    np.testing.assert_array_equal(beams.codes, index.leaf_codes()[order])
    np.testing.assert_allclose(beams.scores, np.array(scores)[order], atol=1e-4)


class Forbidding(torch.nn.Module):
    """An output layer that gives half of the SID tokens probability 0, another half after every text."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        odd = torch.arange(logits.shape[-1]) % 2 == 1
        forbidden = (hidden[..., :1] > 0) == odd
        forbidden[..., :NUM_TEXT] = False
        return logits.masked_fill(forbidden, -math.inf)


@pytest.mark.parametrize("width", [2, 6, 50])
def test_requests_of_one_batch_may_have_different_numbers_of_living_beams(width: int) -> None:
    space = SidSpace((3, 4, 3))
    model = tiny_model("llama", space, 4)
    model.lm_head = Forbidding(model.lm_head)
    table = np.random.default_rng(4).integers(0, space.sizes, (14, 3))
    index = Index.build(table, space.sizes)
    prompts = [[number, 3, number % 4] for number in range(NUM_TEXT)]
    found = beam_search(model, prompts, space=space, sid_base=NUM_TEXT, index=index, width=width, device="cpu")
    for prompt, beams in zip(prompts, found, strict=True):
        assert_equal(beams, reference(model, prompt, space, set(map(tuple, table.tolist())), width))
    assert len({len(beams.codes) for beams in found}) > 1
    assert min(len(beams.codes) for beams in found) < width


def test_unconstrained_probabilities_of_everything_sum_to_one() -> None:
    space = SidSpace((3, 4))
    model = tiny_model("llama", space, 5)
    [beams] = beam_search(
        model, [[1, 2]], space=space, sid_base=NUM_TEXT, index=None, width=12, device="cpu", over_slice=True
    )
    assert np.exp(beams.scores).sum() == pytest.approx(1.0, abs=1e-5)
    [beams] = beam_search(model, [[1, 2]], space=space, sid_base=NUM_TEXT, index=None, width=12, device="cpu")
    assert np.exp(beams.scores).sum() < 1.0


def test_float32_agrees_with_float64() -> None:
    space = SidSpace((6, 5, 4))
    table = np.random.default_rng(1).integers(0, space.sizes, (60, 3))
    index = Index.build(table, space.sizes)
    prompts = [[1, 2, 3, 4, 5, 6], [4]]
    exact = tiny_model("llama", space, 8)
    single = tiny_model("llama", space, 8).to(torch.float32)
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": index, "width": 10, "device": "cpu"}
    found = [beam_search(model, prompts, **arguments) for model in (exact, single)]
    for before, after in zip(*found, strict=True):
        np.testing.assert_array_equal(before.codes, after.codes)
        np.testing.assert_allclose(before.scores, after.scores, atol=1e-4)


@pytest.mark.parametrize("width", [1, 3, 7, 100])
def test_equal_scores_come_in_the_order_of_their_codes(width: int) -> None:
    """A model without an opinion: every code of a level is equally likely, so the smallest codes win."""
    space = SidSpace((4, 3, 3))
    model = tiny_model("llama", space, 0)
    torch.nn.init.zeros_(model.lm_head.weight)
    table = np.random.default_rng(2).permutation(
        np.array([[a, b, c] for a in (0, 2, 3) for b in (1, 2) for c in (0, 2)])
    )
    index = Index.build(table, space.sizes)
    found = beam_search(
        model, [[1, 2, 3], [4, 5]], space=space, sid_base=NUM_TEXT, index=index, width=width, device="cpu"
    )
    for beams in found:
        np.testing.assert_array_equal(beams.codes, index.leaf_codes()[:width])
        assert beams.scores[0] == pytest.approx(-3 * math.log(model.config.vocab_size), abs=1e-5)


def test_a_batch_gives_what_each_request_gives_alone_and_twice_the_same_bytes() -> None:
    space = SidSpace((6, 6, 6))
    model = tiny_model("qwen3", space, 11, torch.float32)
    index = Index.build(np.random.default_rng(3).integers(0, 6, (100, 3)), space.sizes)
    prompts = [[1] * 20, [3, 4], [5, 6, 7, 8, 9, 10, 1]]

    def search(some: list[list[int]]) -> list[Any]:
        trie = Trie.of(index, "cpu")
        return beam_search(model, some, space=space, sid_base=NUM_TEXT, index=trie, width=9, device="cpu")

    together, again = search(prompts), search(prompts)
    for number, prompt in enumerate(prompts):
        [alone] = search([prompt])
        np.testing.assert_array_equal(alone.codes, together[number].codes)
        np.testing.assert_allclose(alone.scores, together[number].scores, atol=1e-5)
        assert together[number].scores.tobytes() == again[number].scores.tobytes()
    assert search([]) == []


def test_generation_config_has_no_say() -> None:
    space = SidSpace((6, 6))
    model = tiny_model("llama", space, 12)
    index = Index.build(np.random.default_rng(3).integers(0, 6, (20, 2)), space.sizes)
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": index, "width": 5, "device": "cpu"}
    [before] = beam_search(model, [[1, 2]], **arguments)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=2, num_beams=1)
    [after] = beam_search(model, [[1, 2]], **arguments)
    np.testing.assert_array_equal(before.codes, after.codes)


def test_what_does_not_fit_is_refused() -> None:
    space = SidSpace((3, 3))
    model = tiny_model("llama", space, 0)
    index = Index.build(np.array([[0, 0]]), (3, 3))
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": index, "width": 2, "device": "cpu"}
    with pytest.raises(InputError, match="width 0"):
        beam_search(model, [[1]], **{**arguments, "width": 0})
    with pytest.raises(InputError, match="prompt without tokens"):
        beam_search(model, [[1], []], **arguments)
    with pytest.raises(InputError, match="two releases"):
        beam_search(model, [[1]], **{**arguments, "index": Index.build(np.array([[0, 0]]), (3, 4))})
    other = Trie.of(Index.build(np.array([[0, 0]]), (4, 3)), "cpu")
    with pytest.raises(InputError, match=r"index of levels \(4, 3\) beside a vocabulary of levels \(3, 3\)"):
        beam_search(model, [[1]], **arguments, delta=other)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="sdpa"):
        beam_search(model, [[1]], **arguments)


def test_broken_weights_are_an_error_and_no_short_list() -> None:
    space = SidSpace((3, 3))
    model = tiny_model("llama", space, 0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(PlumlineError, match="not finite"):
        beam_search(model, [[1]], space=space, sid_base=NUM_TEXT, index=None, width=2, device="cpu")


def test_an_empty_allowed_set_is_an_error_that_names_the_rule() -> None:
    space = SidSpace((3, 3))
    model = tiny_model("llama", space, 0)
    index = Index.build(np.array([[0, 0], [1, 1]]), (3, 3))
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": index, "width": 2, "device": "cpu"}
    one = Allowed(Bits.at(np.array([1]), 2))
    [beams] = beam_search(model, [[1]], **arguments, allowed=[one])
    assert beams.codes.tolist() == [[1, 1]]
    with pytest.raises(InputError, match=r'request 1: rule channel\("x"\) allows no item'):
        beam_search(model, [[1], [1]], **arguments, allowed=[one, Allowed(Bits.empty(2), said='rule channel("x")')])
    with pytest.raises(InputError, match="1 rules for 2 prompts"):
        beam_search(model, [[1], [1]], **arguments, allowed=[one])
    with pytest.raises(InputError, match="without an index"):
        beam_search(model, [[1]], **{**arguments, "index": None}, allowed=[one])


def test_a_sample_is_drawn_without_replacement_as_often_as_its_probability_says() -> None:
    """One beam: a draw from the renormalised distribution; many: no repeats, and the scores are the model's own."""
    space = SidSpace((3, 2, 2))
    model = tiny_model("llama", space, 2)
    table = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [2, 1, 1], [2, 1, 0]])
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": Index.build(table, space.sizes), "device": "cpu"}
    prompt, temperature, draws = [1, 7, 3], 2.0, 1000
    exact = {}
    for sid in map(tuple, table.tolist()):
        exact[sid] = 1.0
        for level, (size, offset) in enumerate(zip(space.sizes, space.offsets, strict=True)):
            before = [NUM_TEXT + start + code for start, code in zip(space.offsets[:level], sid, strict=False)]
            logp = next_logp(model, prompt + before, NUM_TEXT + offset, size, over_slice=False)
            siblings = {other[level] for other in map(tuple, table.tolist()) if other[:level] == sid[:level]}
            weights = {code: math.exp(logp[code] / temperature) for code in siblings}
            exact[sid] *= weights[sid[level]] / sum(weights.values())
    first, pairs = Counter[tuple[int, ...]](), Counter[tuple[tuple[int, ...], ...]]()
    for seed in range(draws):
        choice = Choice(temperature=temperature, seed=seed)
        [beams] = beam_search(model, [prompt], **arguments, width=2, choice=choice)
        drawn = list(map(tuple, beams.codes.tolist()))
        assert len(set(drawn)) == 2
        first[drawn[0]] += 1
        pairs[tuple(drawn)] += 1
    for sid, probability in exact.items():
        error = 4 * math.sqrt(probability * (1 - probability) / draws) + 1e-9
        assert first[sid] / draws == pytest.approx(probability, abs=error)
        for other in exact.keys() - {sid}:
            then = probability * exact[other] / (1 - probability)
            assert pairs[sid, other] / draws == pytest.approx(then, abs=4 * math.sqrt(then / draws) + 1e-9)
    [everything] = beam_search(model, [prompt], **arguments, width=9, choice=Choice(temperature=temperature, seed=1))
    [best] = beam_search(model, [prompt], **arguments, width=9)
    assert dict(zip(map(tuple, everything.codes.tolist()), everything.scores, strict=True)) == pytest.approx(
        dict(zip(map(tuple, best.codes.tolist()), best.scores, strict=True)), abs=1e-5
    )
    alone, together = (
        beam_search(model, some, **arguments, width=3, choice=Choice(temperature=1.0, seed=5))
        for some in ([prompt], [[2, 2], prompt, [5]])
    )
    np.testing.assert_array_equal(alone[0].codes, together[1].codes)


def test_a_sample_of_each_request_keeps_to_its_rule_and_to_the_cap() -> None:
    """Requests with fewer SIDs than beams get all of theirs, and the same ones alone or in a batch."""
    space = SidSpace((3, 3, 2))
    model = tiny_model("llama", space, 3)
    index = Index.build(np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(2)]), space.sizes)
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": index, "device": "cpu"}
    kept = [[4], [0, 1, 6, 17], list(range(18)), list(range(18))]
    allowed = [Allowed(Bits.at(np.array(positions), 18)) for positions in kept]
    prompts, prefixes = [[1], [2, 3], [4, 5, 6], [4, 5, 6]], set()
    for seed in range(6):
        choice = Choice(temperature=3.0, seed=seed)
        found = beam_search(model, prompts, **arguments, allowed=allowed, width=5, choice=choice)
        assert [len(beams.codes) for beams in found] == [1, 4, 5, 5]
        for prompt, rule, positions, beams in zip(prompts, allowed, kept, found, strict=True):
            assert set(index.find_leaves(beams.codes).tolist()) <= set(positions)
            [alone] = beam_search(model, [prompt], **arguments, allowed=[rule], width=5, choice=choice)
            np.testing.assert_array_equal(alone.codes, beams.codes)
        np.testing.assert_array_equal(found[2].codes, found[3].codes)  # of the same request the same sample
        prefixes.add(tuple(map(tuple, found[2].codes.tolist())))
        for cap, cap_level, most in ((1, 1, 3), (2, 1, 5), (1, 2, 5)):
            capped = Choice(temperature=3.0, seed=seed, cap=cap, cap_level=cap_level)
            [beams] = beam_search(model, [prompts[2]], **arguments, width=5, choice=capped)
            of_branch = Counter(tuple(codes[:cap_level]) for codes in beams.codes.tolist())
            assert max(of_branch.values()) <= cap
            assert len(beams.codes) == most
    assert len(prefixes) > 3  # other seeds, other samples


def test_a_sample_of_everything_from_a_model_without_an_opinion_is_a_shuffle() -> None:
    """Of two SIDs drawn one after the other, 7 of 63 times both are of one branch."""
    space, draws = SidSpace((8, 8)), 100
    model = tiny_model("llama", space, 0)
    torch.nn.init.zeros_(model.lm_head.weight)
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": None, "width": 64, "device": "cpu"}
    found = [beam_search(model, [[1]], **arguments, choice=Choice(temperature=1.0, seed=seed)) for seed in range(draws)]
    num_same = [int((beams.codes[1:, 0] == beams.codes[:-1, 0]).sum()) for [beams] in found]
    assert np.mean(num_same) == pytest.approx(7, abs=4 * 2.5 / math.sqrt(draws))  # 2.5 of them is the deviation of one


def test_a_cold_sample_is_the_order_of_the_probabilities() -> None:
    space = SidSpace((8,))
    model = tiny_model("llama", space, 6)
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": None, "width": 8, "device": "cpu"}
    [best] = beam_search(model, [[1, 2]], **arguments)
    assert np.diff(best.scores).max() < -0.02
    for seed in (0, 1, 2**63 - 1):
        [cold] = beam_search(model, [[1, 2]], **arguments, choice=Choice(temperature=0.001, seed=seed))
        np.testing.assert_array_equal(cold.codes, best.codes)
        [hot] = beam_search(model, [[1, 2]], **arguments, choice=Choice(temperature=100.0, seed=seed))
        assert hot.codes.tolist() != best.codes.tolist()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(temperature=0.0009), r"temperature 0.0009: 0.001 to 100.0"),
        (Choice(temperature=100.1), r"temperature 100.1: 0.001 to 100.0"),
        (Choice(temperature=1.0, seed=2**63), r"seed 9223372036854775808: 0 to 2\*\*63 - 1"),
        (Choice(temperature=1.0, seed=-1), "seed -1: 0 to"),
        (Choice(cap=1, cap_level=0), r"cap_level 0: a SID has levels 1 … 2"),
        (Choice(cap=-1), "cap -1: at least 1"),
        (Choice(cap=0), "cap 0"),
        (Choice(cap_level=3), r"cap_level 3: a SID has levels 1 … 2"),
        (Choice(cap_level=2), "cap_level 2 without a cap"),
        (Choice(temperature=0.0), r"temperature 0.0: 0.001 to 100.0"),
        (Choice(temperature=math.nan), "temperature nan"),
        (Choice(temperature=1.0, seed=2**64), "seed 18446744073709551616: 0 to"),
        (Choice(seed=1), "seed 1 without a temperature"),
    ],
)
def test_bad_choices_are_refused(choice: Choice, said: str) -> None:
    space = SidSpace((3, 3))
    index = Index.build(np.array([[0, 0]]), (3, 3))
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": index, "width": 2, "device": "cpu"}
    with pytest.raises(InputError, match=said):
        beam_search(tiny_model("llama", space, 0), [[1]], **arguments, choice=choice)
