"""The worker follows the pointer, and a bad release changes nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from serving.champion import Champion
from serving.pointers import add_tombstones, pointer_path, promote, rollback, sealed_folder, tombstones_path


class Counts:
    """How often the champion changed, and could not."""

    def __init__(self) -> None:
        self.swaps = 0
        self.failures = 0

    def swap(self) -> None:
        self.swaps += 1

    def fail(self) -> None:
        self.failures += 1


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def releases(real: Any, tmp_path: Path) -> Path:
    return real.new_home(tmp_path) / "releases"


@pytest.fixture
def champion(releases: Path, counts: Counts) -> Champion:
    return Champion(releases, on_swap=counts.swap, on_failure=counts.fail)


def release_id(champion: Champion) -> str | None:
    return champion.recommender.release.release_id if champion.recommender else None


def test_follows_promote_and_rollback(champion: Champion, counts: Counts, releases: Path, real: Any) -> None:
    champion.refresh(0.0)
    assert release_id(champion) is None
    promote(releases, real.ids[0], expected=0)
    champion.refresh(0.5)
    assert (release_id(champion), champion.fencing) == (real.ids[0], 1)
    first = champion.recommender
    champion.refresh(1.0)
    assert champion.recommender is first
    promote(releases, real.ids[1], expected=1)
    champion.refresh(1.5)
    rollback(releases)
    champion.refresh(2.0)
    assert (release_id(champion), champion.fencing) == (real.ids[0], 3)
    assert (counts.swaps, counts.failures) == (3, 0)


def test_a_broken_release_keeps_the_old_one_until_it_is_mended(
    champion: Champion, counts: Counts, releases: Path, real: Any
) -> None:
    promote(releases, real.ids[0], expected=0)
    champion.refresh(0.0)
    promote(releases, real.ids[1], expected=1)
    weights = sealed_folder(releases, real.ids[1]) / "sft" / "weights" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for at in (0.5, 1.0, 1.5):
        champion.refresh(at)
    assert release_id(champion) == real.ids[0]
    assert (counts.swaps, counts.failures) == (1, 1)  # tried once, not twice a second
    weights.write_bytes(whole)
    champion.refresh(30.4)  # it failed at 0.5
    assert release_id(champion) == real.ids[0]
    champion.refresh(30.6)
    assert (release_id(champion), counts.swaps) == (real.ids[1], 2)


def test_damaged_pointers_and_tombstones_keep_what_was_known(
    champion: Champion, counts: Counts, releases: Path, real: Any
) -> None:
    promote(releases, real.ids[0], expected=0)
    add_tombstones(releases, ["item001"])
    champion.refresh(0.0)
    pointer_path(releases).write_text("{")
    tombstones_path(releases).write_text("{")
    champion.refresh(1.0)
    assert release_id(champion) == real.ids[0]
    assert champion.recommender is not None
    assert champion.recommender.tombstones == {"item001"}
    assert counts.failures == 1


def test_unreadable_tombstones_at_the_start_serve_nothing(
    champion: Champion, counts: Counts, releases: Path, real: Any
) -> None:
    promote(releases, real.ids[0], expected=0)
    tombstones_path(releases).write_text("{")
    champion.refresh(0.0)
    assert (release_id(champion), counts.failures) == (None, 1)


def test_a_deleted_item_is_gone_at_once_and_stays_gone(champion: Champion, releases: Path, real: Any) -> None:
    promote(releases, real.ids[0], expected=0)
    promote(releases, real.ids[1], expected=1)
    champion.refresh(0.0)
    assert champion.recommender is not None
    best = champion.recommender.recommend(history=["item001"], k=1).items[0].item_id
    add_tombstones(releases, [best])
    champion.refresh(0.5)
    rollback(releases)
    champion.refresh(1.0)
    assert release_id(champion) == real.ids[0]
    assert best not in {item.item_id for item in champion.recommender.recommend(history=["item001"], k=100).items}


def test_a_release_that_vanished(champion: Champion, counts: Counts, releases: Path, real: Any) -> None:
    promote(releases, real.ids[0], expected=0)
    shutil.rmtree(sealed_folder(releases, real.ids[0]))
    champion.refresh(0.0)
    assert (release_id(champion), counts.failures) == (None, 1)
