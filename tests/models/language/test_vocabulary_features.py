"""What a prompt tells beside SIDs: chosen in the recipe, kept with the vocabulary, absent from older ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from models.language.facts import TEXTS
from models.language.vocabulary import ContextFeature, HistoryFeature, VocabularyParams, run
from models.language.words import Vocabulary
from plumline.artifact import read_json, write_json
from plumline.errors import InputError
from plumline.schema import NUMBERS
from plumline.stage import load_params

FEATURES = {"history_features": ("channel", "rating"), "context_features": ("title",), "max_title_tokens": 7}


def make(world: Any, out: Path, **params: Any) -> Vocabulary:
    """The world's vocabulary (a profile, no number of events), with other parameters."""
    out.mkdir()
    told = VocabularyParams(**{"text_tokens": 300, "max_history": 10, **params})
    run(told, catalog=world.catalog, histories=world.histories, sids=world.sids, base=None, out=out)
    return Vocabulary.load(out)


def test_features_of_a_prompt_are_kept_with_the_vocabulary(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = make(world, tmp_path / "told", **FEATURES)
    assert told.shape == replace(Vocabulary.load(world.vocabulary).shape, **FEATURES)
    # <bos> <history> <next>, <user> and 24, <context> and 3, 10 events of a gap and 3; a channel is 8, a title 7, and
    # of ratings, which nobody knows here, there is no token.
    assert (
        "a prompt of 10 items takes at most 72 tokens, 159 with its features (channel, rating of the history; "
        "title of the context)\n"
    ) in capsys.readouterr().err
    make(world, tmp_path / "plain")
    assert capsys.readouterr().err.endswith("; a prompt of 10 items takes at most 72 tokens\n")


def test_without_features_nothing_is_said_of_them(world: Any, tmp_path: Path) -> None:
    """What is written is what was written before there were any, and such a file means: none."""
    plain = make(world, tmp_path / "plain", max_title_tokens=3)
    assert not read_json(plain.folder / "vocabulary.json").keys() & FEATURES.keys()
    assert (plain.shape.history_features, plain.shape.context_features) == ((), ())
    raw = read_json(make(world, tmp_path / "told", **FEATURES).folder / "vocabulary.json")
    write_json(tmp_path / "old" / "vocabulary.json", {k: v for k, v in raw.items() if k not in FEATURES})
    assert Vocabulary.load(tmp_path / "old").shape == plain.shape


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"history_features": ("price", "price")}, r"history_features is \['price', 'price'\]; name each feature once"),
        ({"context_features": ("title",), "template": ("history", "user")}, r"\['title'\], but template .* no context"),
        ({"context_features": ("title",), "item_places": True}, r"context_features is \['title'\] with item_places"),
    ],
)
def test_features_that_cannot_be(world: Any, tmp_path: Path, params: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make(world, tmp_path / "out", **params)
    assert "\n" not in str(caught.value)


def test_features_of_another_name_are_refused(tmp_path: Path) -> None:
    assert get_args(HistoryFeature) == ("channel", *NUMBERS)
    assert get_args(ContextFeature) == TEXTS
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("vocabulary: {history_features: [colour]}")
    with pytest.raises(InputError, match=r"history_features\.0: .*'channel', 'watch_ratio'.* \(got 'colour'\)"):
        load_params(recipe, "vocabulary", VocabularyParams)
    recipe.write_text("vocabulary: {max_title_tokens: 0}")
    with pytest.raises(InputError, match=r"max_title_tokens: .*greater than or equal to 1 \(got 0\)"):
        load_params(recipe, "vocabulary", VocabularyParams)


def test_places_are_kept_with_the_vocabulary(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = make(world, tmp_path / "told", item_places=True, history_features=("channel",))
    plain = Vocabulary.load(world.vocabulary)
    assert told.shape == replace(plain.shape, item_places=True, history_features=("channel",), max_title_tokens=12)
    assert (told.size, told.sid_base) == (plain.size, plain.sid_base)  # no token is another one
    # <bos> <history>, <user> and 24, 10 events
    assert capsys.readouterr().err.endswith("; a prompt of 10 items takes at most 37 places\n")


def test_an_older_vocabulary_has_no_places(world: Any, tmp_path: Path) -> None:
    assert "item_places" not in read_json(world.vocabulary / "vocabulary.json")
    assert Vocabulary.load(world.vocabulary).shape.item_places is False
    raw = read_json(make(world, tmp_path / "told", item_places=True).folder / "vocabulary.json")
    assert raw.pop("item_places") is True
    write_json(tmp_path / "old" / "vocabulary.json", raw)
    assert Vocabulary.load(tmp_path / "old").shape.item_places is False


def test_an_adopted_vocabulary_keeps_its_places(world: Any, places_world: Any, tmp_path: Path) -> None:
    """Whatever the recipe says by then."""
    (tmp_path / "out").mkdir()
    base = places_world.vocabulary.parent
    inputs = {name: getattr(world, name) for name in ("catalog", "histories", "sids")}
    run(VocabularyParams(item_places=False), **inputs, base=base, out=tmp_path / "out")
    assert Vocabulary.load(tmp_path / "out").shape.item_places is True
