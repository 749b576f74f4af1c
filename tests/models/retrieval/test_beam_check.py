"""The certificate: its exact scores are those of plain forward passes, and it sees what is wrong."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.retrieval import beam_check, live_index
from models.retrieval.beam import Beams
from models.retrieval.beam_check import Certificate, check_beams, score_all
from models.retrieval.bits import Bits
from models.retrieval.retriever import Request, Retriever
from models.retrieval.rules import parse
from plumline.errors import InputError
from plumline.sid import SidSpace


@pytest.mark.parametrize(("error", "holds"), [(1e-3, True), (1.01e-3, False)])
def test_a_thousandth_is_what_rounding_explains(error: float, holds: bool) -> None:
    certificate = Certificate(1, 50, 10, 19.0, 0.0, 0.0, 0.0, score_error=error, num_invalid=0, num_duplicates=0)
    assert certificate.holds is holds


@pytest.mark.parametrize(("vocabulary", "prefixes"), [(1000, 1024), (1 << 16, 512), (1 << 26, 1)])
def test_a_large_vocabulary_makes_the_chunks_smaller(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int, prefixes: int
) -> None:
    class FullError(Exception):
        """What the decoder was asked to hold."""

    def decoder(model: Any, prompts: Any, places: int, device: Any) -> None:
        raise FullError(places)

    class Model:
        """No model, but its size."""

        def __init__(self) -> None:
            self.config = self
            self.vocab_size = vocabulary

        def get_text_config(self) -> "Model":
            return self

    monkeypatch.setattr(beam_check, "open_decoder", decoder)
    codes = np.array([[0, 0, 0], [1, 1, 1]])
    with pytest.raises(FullError) as asked:
        score_all(Model(), [1], codes, space=SidSpace((2, 2, 2)), sid_base=4, device="cpu")
    assert asked.value.args == (prefixes * 2,)  # two codes come before the last one of a SID


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (3, 4, 3), (2, 3, 2, 3)])
@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("over_slice", [False, True])
def test_scores_are_those_of_one_forward_pass_each(sizes: tuple[int, ...], chunk: int, over_slice: bool) -> None:
    torch.manual_seed(0)
    space = SidSpace(sizes)
    config = LlamaConfig(
        vocab_size=4 + space.num_tokens,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).double().eval()
    codes = np.unique(np.random.default_rng(1).integers(0, sizes, (25, len(sizes))), axis=0)
    found = score_all(
        model, [1, 2, 3], codes, space=space, sid_base=4, device="cpu", over_slice=over_slice, chunk=chunk
    )
    for score, row in zip(found, codes, strict=True):
        ids = space.token_ids(row, 4).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([[1, 2, 3, *ids]])).logits[0]
        expected = 0.0
        for level, (token, offset, size) in enumerate(zip(ids, space.offsets, sizes, strict=True)):
            step = logits[2 + level]
            if over_slice:
                step, token = step[4 + offset : 4 + offset + size], token - 4 - offset
            expected += float(torch.log_softmax(step, dim=-1)[token])
        assert score == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def retriever(world: Any) -> Retriever:
    folders = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    return Retriever.load(**folders, weights=world.sft / "weights", device="cpu")


REQUESTS = [
    Request(history=[("item01", 0), ("item05", 9)]),
    Request(history=[("item02", 0)], exclude=frozenset({"item00", "item01"})),
    Request(rule=parse("fresh(8d)"), now_ms=1_580_601_600_000),
]


def test_a_search_of_all_beams_misses_nothing(retriever: Retriever) -> None:
    certificate = check_beams(retriever, REQUESTS, k=5, width=100)
    assert certificate.holds
    assert certificate.num_requests == 3
    assert (certificate.missed_mass, certificate.missed_items, certificate.worst_missed_items) == (0, 0, 0)
    assert certificate.score_error < 1e-4
    assert "holds" in certificate.lines()[-1]


def test_a_narrow_search_misses_and_says_how_much(world: Any, retriever: Retriever) -> None:
    requests = [Request(history=[(item, 0)]) for item in world.live]
    certificate = check_beams(retriever, requests, k=1, width=1)
    assert certificate.holds
    assert 0 < certificate.missed_items < 1
    assert 0 < certificate.missed_mass < certificate.missed_items
    assert certificate.worst_missed_items == 1
    assert check_beams(retriever, requests, k=1, width=4).missed_mass < certificate.missed_mass


@pytest.mark.parametrize("fault", ["score", "duplicate", "invalid"])
def test_a_search_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch, retriever: Retriever, fault: str) -> None:
    honest = Retriever.beams

    def wrong(self: Retriever, requests: Any, width: int) -> list[Beams]:
        found = []
        for beams in honest(self, requests, width):
            codes, scores = beams.codes.copy(), beams.scores.copy()
            if fault == "score":
                scores[1] += 0.01
            elif fault == "duplicate":
                codes[1], scores[1] = codes[0], scores[0]
            else:
                live = set(map(tuple, self.epoch.base.index.leaf_codes().tolist()))
                codes[1] = next(c for c in np.ndindex(4, 3, 3) if c not in live)
            found.append(replace(beams, codes=codes, scores=scores))
        return found

    monkeypatch.setattr(Retriever, "beams", wrong)
    certificate = check_beams(retriever, REQUESTS[:1], k=5, width=6)
    assert not certificate.holds
    assert (certificate.num_duplicates, certificate.num_invalid) == (fault == "duplicate", fault == "invalid")
    assert "BROKEN" in certificate.lines()[-1]


@pytest.mark.parametrize("fault", ["rule", "exclusion", "decoder"])
def test_what_the_search_and_its_index_get_wrong_together_is_found_out(
    monkeypatch: pytest.MonkeyPatch, world: Any, retriever: Retriever, fault: str
) -> None:
    request = Request(rule=parse("fresh(8d)"), now_ms=1_580_601_600_000)
    if fault == "rule":
        monkeypatch.setattr(live_index, "evaluate", lambda rule, tags, **_: Bits.full(tags.size))
    elif fault == "exclusion":
        request = Request(exclude=frozenset(world.live[3:]))
        monkeypatch.setattr(Request, "whole_rule", None)
    else:  # scales its logits where the decoder does not look
        model = copy.deepcopy(retriever.model)
        plain = model.forward
        model.forward = lambda **options: replace_logits(plain(**options))
        retriever = replace(retriever, model=model)
    certificate = check_beams(retriever, [request], k=20, width=50)
    assert not certificate.holds
    assert (certificate.num_invalid > 0) == (fault != "decoder")
    assert (certificate.score_error > 0.01) == (fault == "decoder")


def replace_logits(output: Any) -> Any:
    output.logits = output.logits * 3.0
    return output


@pytest.mark.parametrize("rule", ["nonsense", 'colour("red")', "fresh(1d)"])
def test_rules_that_ask_what_nobody_knows_are_refused(retriever: Retriever, rule: str) -> None:
    with pytest.raises(InputError):
        check_beams(retriever, [Request(rule=parse(rule))], k=5, width=5)


def test_nothing_to_check_is_said(world: Any, retriever: Retriever) -> None:
    with pytest.raises(InputError, match="1 requests, none"):
        check_beams(retriever, [Request(exclude=frozenset(world.live))], k=5, width=5)
