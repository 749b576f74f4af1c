"""Who is held out follows from the id alone."""

import numpy as np

from models.corpus.cpt_heldout import hold_out


def names(count: int) -> list[str]:
    return [f"id{n}" for n in range(count)]


def chosen(ids: list[str], share: float = 0.1, noun: str = "item") -> list[str]:
    return [ids[place] for place in hold_out(ids, share, noun)]


def test_the_same_ids_whatever_their_order() -> None:
    ids = names(100)
    assert chosen(ids) == chosen(ids[::-1])
    assert len(set(chosen(ids))) == 10
    assert chosen(ids) != chosen(ids, noun="user")


def test_a_few_at_least_and_never_too_many() -> None:
    assert len(chosen(names(100), 0.001)) == 4
    assert len(chosen(names(10), 0.02)) == 2  # a quarter
    assert chosen(names(3)) == []
    assert len(chosen(names(20_000), 0.5)) == 500
    assert chosen(names(100), 0.0) == chosen([], 0.1) == []


def test_new_ids_take_places_of_old_ones_only() -> None:
    before, after = set(chosen(names(100))), set(chosen(names(110)))
    assert len(before & after) >= 10 - len(after & set(names(110)[100:]))


def test_hashes_are_even() -> None:
    places = hold_out(names(4000), 0.1, "item")
    assert abs(np.mean(places) - 2000) < 200
