"""What may follow after a beam: dense levels, sparse levels, deltas and rules against plain dictionaries."""

import math

import numpy as np
import pytest
import torch

from models.retrieval import trie as module
from models.retrieval.bits import Bits
from models.retrieval.csr import Index
from models.retrieval.trie import Allowed, State, Trie, expand

SIZES = (5, 6, 7)


def walk(index: Index, delta: Index | None, allowed: Allowed | None, logp: list[torch.Tensor]) -> dict[tuple, float]:
    """Every path that `expand` lets live, with its score, all candidates kept at every level."""
    base, more = Trie.of(index, "cpu"), Trie.of(delta, "cpu") if delta is not None else None
    state, score = State.roots(1, base, more, "cpu"), torch.zeros(1, 1)
    paths: list[tuple[int, ...]] = [()]
    for level in range(len(index.sizes)):
        following = logp[level].expand(1, len(paths), -1)
        found = expand(base, more, level, state, following, score, None if allowed is None else [allowed])
        keep = (found.score[0] > -math.inf).nonzero()[:, 0][None]
        beam, code, state = found.chosen(keep)
        score = found.score.gather(1, keep)
        paths = [(*paths[b], c) for b, c in zip(beam[0].tolist(), code[0].tolist(), strict=True)]
    assert paths == sorted(paths)
    return dict(zip(paths, score[0].tolist(), strict=True))


@pytest.mark.parametrize("filled", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize("with_rule", [False, True])
def test_paths_are_those_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, filled: float, with_delta: bool, with_rule: bool
) -> None:
    monkeypatch.setattr(module, "_FILLED", filled)  # every level dense, some, none
    for seed in range(20):
        generator = np.random.default_rng(seed)
        codes = generator.integers(0, SIZES, (int(generator.integers(1, 60)), 3))
        extra = generator.integers(0, SIZES, (int(generator.integers(1, 9)), 3))
        index, delta = Index.build(codes, SIZES), Index.build(extra, SIZES) if with_delta else None
        assert any(t is not None for t in Trie.of(index, "cpu").tables) or filled > 0
        keep = [generator.random(len(codes)) < 0.4, generator.random(len(extra)) < 0.4]
        allowed = Allowed(Bits.of(keep[0][index.item_rows]), Bits.of(keep[1][delta.item_rows]) if delta else None)
        logp = [torch.randn(1, 1, size) for size in SIZES]
        rows = [*codes[keep[0] if with_rule else slice(None)].tolist()]
        rows += extra[keep[1] if with_rule else slice(None)].tolist() if with_delta else []
        expected = {tuple(row): sum(float(logp[level][0, 0, c]) for level, c in enumerate(row)) for row in rows}
        found = walk(index, delta, allowed if with_rule else None, logp)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, abs=1e-5)


def test_requests_of_one_batch_have_their_own_rules() -> None:
    index = Index.build(np.array([[0, 0, 0], [1, 2, 3], [4, 5, 6]]), SIZES)
    base = Trie.of(index, "cpu")
    allowed = [Allowed(Bits.at(np.array([row]), 3)) for row in range(3)] + [Allowed()]
    score = expand(
        base, None, 0, State.roots(4, base, None, "cpu"), torch.zeros(4, 1, 5), torch.zeros(4, 1), allowed
    ).score
    assert (score > -math.inf).tolist() == [
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, False, False, False, True],
        [True, True, False, False, True],
    ]


def test_a_filled_level_is_dense_and_a_sparse_one_is_not() -> None:
    index = Index.build(np.array([[0, 0], [1, 0], [1, 1]]), (2, 100))
    tables = Trie.of(index, "cpu").tables
    assert tables[0] is not None
    assert tables[0].tolist() == [[0, 1]]
    assert tables[1] is None
