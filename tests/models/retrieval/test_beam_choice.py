"""Beams that are not simply the best: samples without replacement, and caps of a branch beside them."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.retrieval.beam import Choice, beam_search
from models.retrieval.bits import Bits
from models.retrieval.csr import Index
from models.retrieval.trie import Allowed
from plumline.errors import InputError
from plumline.sid import SidSpace

NUM_TEXT = 11  # ordinary tokens before the SID tokens


def tiny_model(space: SidSpace, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}
    config = LlamaConfig(vocab_size=NUM_TEXT + space.num_tokens, pad_token_id=0, **sizes, **heads)
    return LlamaForCausalLM(config).double().eval()


def next_logp(model: LlamaForCausalLM, tokens: list[int], first: int, size: int) -> list[float]:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], dim=-1)[first : first + size].tolist()


def test_a_sample_is_drawn_without_replacement_as_often_as_its_probability_says() -> None:
    """One beam: a draw from the renormalised distribution; many: no repeats, and the scores are the model's own."""
    space = SidSpace((3, 2, 2))
    model = tiny_model(space, 2)
    table = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [2, 1, 1], [2, 1, 0]])
    arguments: Any = {"space": space, "sid_base": NUM_TEXT, "index": Index.build(table, space.sizes), "device": "cpu"}
    prompt, temperature, draws = [1, 7, 3], 2.0, 1000
    exact = {}
    for sid in map(tuple, table.tolist()):
        exact[sid] = 1.0
        for level, (size, offset) in enumerate(zip(space.sizes, space.offsets, strict=True)):
            before = [NUM_TEXT + start + code for start, code in zip(space.offsets[:level], sid, strict=False)]
            logp = next_logp(model, prompt + before, NUM_TEXT + offset, size)
            siblings = {other[level] for other in map(tuple, table.tolist()) if other[:level] == sid[:level]}
            weights = {code: math.exp(logp[code] / temperature) for code in siblings}
            exact[sid] *= weights[sid[level]] / sum(weights.values())
    first, second = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for seed in range(draws):
        choice = Choice(temperature=temperature, seed=seed)
        [beams] = beam_search(model, [prompt], **arguments, width=2, choice=choice)
        drawn = list(map(tuple, beams.codes.tolist()))
        assert len(set(drawn)) == 2
        first[drawn[0]] += 1
        second[drawn[1]] += 1
    for sid, probability in exact.items():
        error = 4 * math.sqrt(probability * (1 - probability) / draws) + 1e-9
        assert first[sid] / draws == pytest.approx(probability, abs=error)
        then = sum(p * probability / (1 - p) for other, p in exact.items() if other != sid)
        assert second[sid] / draws == pytest.approx(then, abs=4 * math.sqrt(then / draws) + 1e-9)
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
    model = tiny_model(space, 3)
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
            for codes, score in zip(beams.codes, beams.scores, strict=True):
                tokens, total = list(prompt), 0.0
                for code, size, offset in zip(codes.tolist(), space.sizes, space.offsets, strict=True):
                    total += next_logp(model, tokens, NUM_TEXT + offset, size)[code]
                    tokens.append(NUM_TEXT + offset + code)
                assert score == pytest.approx(total, abs=1e-4)
        np.testing.assert_array_equal(found[2].codes, found[3].codes)  # of the same request the same sample
        prefixes.add(tuple(map(tuple, found[2].codes.tolist())))
        for cap, cap_level, most in ((1, 1, 3), (2, 1, 5), (1, 2, 5)):
            capped = Choice(temperature=3.0, seed=seed, cap=cap, cap_level=cap_level)
            [beams] = beam_search(model, [prompts[2]], **arguments, width=5, choice=capped)
            of_branch = Counter(tuple(codes[:cap_level]) for codes in beams.codes.tolist())
            assert max(of_branch.values()) <= cap
            assert len(beams.codes) == most
    assert len(prefixes) > 3  # other seeds, other samples


def test_a_cold_sample_is_the_order_of_the_probabilities() -> None:
    space = SidSpace((8,))
    model = tiny_model(space, 6)
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
        beam_search(tiny_model(space, 0), [[1]], **arguments, choice=choice)
