"""SASRec learns what only order tells, sees no future, and is the same twice."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.baselines.sasrec import _IGNORED, SasRec, SasRecModel, _windows
from models.memory.events import read_events
from models.semantic_ids.sids import digit_of
from plumline.errors import InputError

ITEMS = [f"i{number:02d}" for number in range(12)]


def cycles(num_users: int, seed: int = 0) -> list[list[str]]:
    """Everybody walks round the same circle from another place, so the next item is certain."""
    starts = np.random.default_rng(seed).integers(0, 12, num_users)
    return [[ITEMS[(start + i) % 12] for i in range(9)] for start in starts]


SMALL = {"max_length": 6, "width": 16, "num_layers": 1, "batch_windows": 16, "learning_rate": 1e-2}


@pytest.mark.parametrize("num_negatives", [None, 6])
def test_learns_the_next_item(num_negatives: int | None, make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories(cycles(60))
    ranker = SasRec.fit(histories, ITEMS, steps=80, seed=1, num_negatives=num_negatives, dropout=0.0, **SMALL)
    queries = [["i03", "i04"], ["i11"], ["unknown", "i07"]]
    assert [found[0] for found in ranker.rank(queries, 1, [set()] * 3)] == ["i05", "i00", "i08"]
    [found] = ranker.rank([["i03", "i04"]], 12, [{"i05", "i03"}])
    assert sorted(found) == [item for item in ITEMS if item not in ("i05", "i03")]


def test_the_same_seed_gives_the_same_model_and_leaves_torch_alone(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories(cycles(20))
    state = torch.random.get_rng_state()
    first, second, other = (SasRec.fit(histories, ITEMS, steps=5, seed=seed, **SMALL) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.model.items.weight, second.model.items.weight)
    assert not torch.equal(first.model.items.weight, other.model.items.weight)


def test_cold_and_retired(make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([*cycles(10), ["i02"] * 3])
    ranker = SasRec.fit(histories, ITEMS[:6], steps=2, seed=0, **SMALL)
    cold, retired = ranker.rank([[], ["i09"]], 6, [set(), set()])
    counts = dict(zip(ranker.item_ids, ranker.weights, strict=True))
    assert cold == sorted(ITEMS[:6], key=lambda item: (-counts[item], digit_of(item, 2**62)))
    assert sorted(retired) == ITEMS[:6]  # i09 may not come back but is understood


def test_no_step_sees_a_later_one() -> None:
    torch.manual_seed(0)
    model = SasRecModel(9, max_length=5, width=8, num_layers=2, num_heads=2, dropout=0.5).eval()
    before = model(torch.tensor([[1, 2, 3, 4, 9]]))
    after = model(torch.tensor([[1, 2, 3, 7, 8]]))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_an_epoch_holds_every_step_once(make_histories: Callable[..., pa.Table]) -> None:
    lists = [[f"i{number:02d}" for number in range(length)] for length in (12, 1, 7, 2)]
    events = read_events(make_histories(lists), ITEMS)
    pairs = []
    for inputs, targets in islice(_windows(events, 4, 100, 12, np.random.default_rng(0), None), 1):
        assert inputs.shape[1] <= 4
        pairs += [(int(a), int(b)) for a, b in zip(inputs.flatten(), targets.flatten(), strict=True) if b != _IGNORED]
    assert sorted(pairs) == sorted((i, i + 1) for length in (12, 1, 7, 2) for i in range(length - 1))
    weighted = _windows(events, 4, 3, 12, np.random.default_rng(0), 1.0)
    assert all(len(inputs) <= 3 for inputs, _ in islice(weighted, 5))


def test_windows_of_one_batch_are_about_as_long(make_histories: Callable[..., pa.Table]) -> None:
    """Padding is less than a twentieth, every window comes once an epoch, and the order is that of the generator."""
    lengths = np.random.default_rng(5).integers(2, 12, 400)
    events = read_events(make_histories([ITEMS[:length] for length in lengths]), ITEMS)
    batches = list(islice(_windows(events, 10**6, 16, 12, np.random.default_rng(0), None), 25))
    assert all(len(inputs) == 16 for inputs, _ in batches)
    filled = sum(int((targets != _IGNORED).sum()) for _, targets in batches)
    assert filled == (lengths - 1).sum()
    assert filled > 0.95 * sum(targets.numel() for _, targets in batches)
    widths = [inputs.shape[1] for inputs, _ in batches]
    assert widths != sorted(widths)
    again = next(_windows(events, 10**6, 16, 12, np.random.default_rng(0), None))
    assert torch.equal(again[0], batches[0][0])


def test_nothing_to_learn_from_is_said(make_histories: Callable[..., pa.Table]) -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        SasRec.fit(make_histories([["i00"], []]), ITEMS, steps=1, seed=0, **SMALL)
