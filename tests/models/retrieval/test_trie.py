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
@pytest.mark.parametrize(("with_rule", "small"), [(False, 0), (True, 0), (True, 1 << 15)])
def test_paths_are_those_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, filled: float, with_delta: bool, with_rule: bool, small: int
) -> None:
    monkeypatch.setattr(module, "_SMALL", small)  # members counted before each eighth position, before each
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


def test_a_quarter_of_all_codes_fills_a_level_and_a_table_takes_at_most_16_mebibytes() -> None:
    def is_dense(num_codes: int, size: int) -> bool:
        return Trie.of(Index.build(np.arange(num_codes)[:, None], (size,)), "cpu").tables[0] is not None

    assert is_dense(1, 4)
    assert not is_dense(1, 5)
    assert is_dense(2**20 + 1, 2**22)  # four bytes a code
    assert not is_dense(2**20 + 1, 2**22 + 1)


def test_roots_stand_in_the_tries_that_there_are() -> None:
    base = Trie.of(Index.build(np.array([[0, 0]]), (2, 2)), "cpu")
    for first, second in ((None, None), (base, None), (base, base)):
        roots = State.roots(3, first, second, "cpu")
        for trie, nodes in ((first, roots.nodes), (second, roots.twins)):
            assert (nodes is None) == (trie is None)
            assert nodes is None or nodes.tolist() == [[0], [0], [0]]


def test_without_a_trie_every_code_follows_every_beam() -> None:
    logp, score = torch.randn(2, 3, 5), torch.randn(2, 3)
    found = expand(None, None, 0, State(None), logp, score)
    torch.testing.assert_close(found.score.view(2, 3, 5), logp + score[..., None])
    beam, code, state = found.chosen(torch.tensor([[0, 4, 5], [7, 13, 14]]))
    assert beam.tolist() == [[0, 0, 1], [1, 2, 2]]
    assert code.tolist() == [[0, 4, 0], [2, 3, 4]]
    assert state == State(None)


@pytest.mark.parametrize("filled", [0.0, 2.0])
@pytest.mark.parametrize("with_delta", [False, True])
def test_a_batch_of_beams_gives_what_each_request_gives_alone(
    monkeypatch: pytest.MonkeyPatch, filled: float, with_delta: bool
) -> None:
    """Beams at different nodes, one of them dead, under three rules."""
    monkeypatch.setattr(module, "_FILLED", filled)
    generator = np.random.default_rng(7)
    index = Index.build(generator.integers(0, SIZES, (40, 3)), SIZES)
    more = Index.build(generator.integers(0, SIZES, (20, 3)), SIZES)
    base, delta = Trie.of(index, "cpu"), Trie.of(more, "cpu") if with_delta else None
    node = torch.tensor([[0, 2], [1, 3], [4, -1]])
    twin = torch.tensor([[-1, 1], [0, 2], [3, -1]]) if with_delta else None
    logp, score = torch.randn(3, 2, 6), torch.tensor([[0.0, -1.0], [-2.0, -3.0], [-4.0, -math.inf]])
    rules = [Allowed(Bits.of(generator.random(40) < 0.5), Bits.of(generator.random(20) < 0.5)) for _ in range(2)]
    rules.append(Allowed())
    together = expand(base, delta, 1, State(node, twin), logp, score, rules)
    for row in range(3):
        one = slice(row, row + 1)
        state = State(node[one], None if twin is None else twin[one])
        alone = expand(base, delta, 1, state, logp[one], score[one], rules[one])
        assert torch.equal(alone.score[0], together.score[row])
        keep = torch.arange(alone.score.shape[1])[None]
        alive = alone.score[0] > -math.inf
        for left, right in zip(alone.chosen(keep)[:2], together.chosen(keep.expand(3, -1))[:2], strict=True):
            assert left[0][alive].tolist() == right[row][alive].tolist()
    assert (together.score[2].view(2, -1)[1] == -math.inf).all()


def test_a_rule_counts_the_items_of_the_index_and_of_its_delta() -> None:
    three, one = Bits.at(np.array([0, 2, 4]), 5), Bits.at(np.array([1]), 2)
    assert len(Allowed(three)) == 3
    assert len(Allowed(three, one)) == 4
    assert len(Allowed(None, one)) == 1
    assert len(Allowed(Bits.empty(5), Bits.empty(2))) == 0
    assert len(Allowed()) == 1  # there is no telling
