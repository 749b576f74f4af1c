"""What a model says freely, against its own forward passes, one sequence at a time."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from models.retrieval.beam_check import plain_score
from models.retrieval.free_search import best_tokens, draw_tokens, leaves_at
from models.retrieval.retriever import Request, Retriever

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def retriever(world: Any) -> Retriever:
    folders = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    return Retriever.load(**folders, weights=world.sft / "weights", device="cpu")


@pytest.fixture(scope="module")
def prompts(retriever: Retriever) -> list[list[int]]:
    lists = [[], [3], [1, 4, 9, 2, 2]]
    histories = [[(f"item{n:02d}", DAY_MS * place) for place, n in enumerate(one)] for one in lists]
    return [retriever.prompt(Request(history=history)).token_ids for history in histories]


def test_a_draw_follows_the_model_s_own_distribution(retriever: Retriever, prompts: list[list[int]]) -> None:
    uniforms = np.random.default_rng(3).random((len(prompts), 5, 3))
    uniforms[0, 0] = 0.0
    uniforms[0, 1] = np.nextafter(1.0, 0.0)
    drawn = draw_tokens(retriever.model, prompts, uniforms, "cpu")
    for row, draw, step in product(range(len(prompts)), range(5), range(3)):
        before = [*prompts[row], *drawn[row, draw, :step].tolist()]
        with torch.inference_mode():
            logits = retriever.model(input_ids=torch.tensor([before]), use_cache=False).logits[0, -1].double()
        reached = np.concatenate([[0.0], np.cumsum(torch.softmax(logits, dim=-1).numpy())])
        token = int(drawn[row, draw, step])
        assert reached[token] - 1e-5 <= uniforms[row, draw, step] <= reached[token + 1] + 1e-5
    alone = draw_tokens(retriever.model, prompts[1:2], uniforms[1:2], "cpu")
    assert (alone == drawn[1:2]).all()


def test_the_best_of_a_beam_that_drops_nothing_are_the_best_of_all(
    retriever: Retriever, prompts: list[list[int]]
) -> None:
    size = retriever.model.get_output_embeddings().weight.shape[0]
    found = best_tokens(retriever.model, prompts[2:], 2, size, "cpu")[0]
    with torch.inference_mode():
        pairs = torch.tensor([[*prompts[2], token] for token in range(size)])
        steps = torch.log_softmax(retriever.model(input_ids=pairs, use_cache=False).logits[:, -2:].double(), dim=-1)
    scores = steps[:, 0].diagonal()[:, None] + steps[:, 1]
    wanted = scores.flatten().sort(descending=True).values[: len(found)]
    told = [plain_score(retriever.model, prompts[2], tokens.tolist(), "cpu") for tokens in found[:40]]
    np.testing.assert_allclose(told, wanted[:40], atol=1e-4)
    assert len({tuple(tokens) for tokens in found.tolist()}) == len(found)


def test_where_a_sequence_leaves_the_sids_of_live_items(retriever: Retriever) -> None:
    words, space = retriever.vocabulary, retriever.vocabulary.space
    sids = {codes: item for item, codes in retriever.codes_of.items() if item in retriever.live_items}
    every = list(retriever.codes_of.values())
    codes, item = next((codes, item) for codes, item in sids.items() if every.count(codes) == 1)
    right = words.sid_token_ids(np.array([codes]))[0].tolist()
    text = words.sid_base - 1
    cases = [
        (right, 0),
        ([text, *right[1:]], 1),
        ([right[0], text, right[2]], 2),
        ([right[0], right[1], text], 3),
        ([right[1], right[1], right[2]], 1),  # a code of another level
        ([right[0], right[0], right[2]], 2),
        ([right[0], right[1], right[1]], 3),
        ([words.sid_base + space.num_tokens, *right[1:]], 1),  # beyond the last code
    ]
    for one in product(*map(range, space.sizes)):  # every SID there could be
        known = [any(sid[:level] == one[:level] for sid in sids) for level in (1, 2, 3)]
        cases.append((words.sid_token_ids(np.array([one]))[0].tolist(), (*known, False).index(False) + 1))
    cases = [(tokens, level % 4) for tokens, level in cases]  # beyond the last level: it is one
    assert {level for _, level in cases} == {0, 1, 2, 3}
    tokens = np.array([tokens for tokens, _ in cases])
    assert leaves_at(tokens, words, retriever.epoch).tolist() == [level for _, level in cases]
    assert leaves_at(tokens[None], words, retriever.epoch).shape == (1, len(cases))
    gone = retriever.without([item])
    assert leaves_at(tokens[:1], words, gone.epoch).tolist() == [3]  # deleted, and so no SID of a live item
