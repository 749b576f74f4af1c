"""Trimming: what the texts need stays and reads as before; anything else can still be spelt."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.language.text_tokenizer import add_special, train_tokenizer, trim_tokenizer
from plumline.errors import InputError

WORDS = ["red", "woolly", "hottie", "teapot", "café", "crème", "brush", "brushes", "brushed", "lip", "gloss", "glossy"]
LETTERS = "etaoinshr"


def sentences(seed: int, count: int) -> list[str]:
    """Titles of known words, and of words made up so that merges overlap in every way."""
    rng = random.Random(seed)
    made = ["".join(rng.choices(LETTERS, k=rng.randrange(2, 9))) for _ in range(60)]
    return [" ".join(rng.choices(WORDS + made, k=rng.randrange(1, 8))) for _ in range(count)]


@pytest.fixture(scope="module")
def whole() -> Any:
    """Special tokens first, as SmolLM2 has them, then 900 tokens of text."""
    trained = json.loads(train_tokenizer(sentences(1, 800), 900).backend_tokenizer.to_str())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained["model"]["vocab"] = {
        **{token: i for i, token in enumerate(special)},
        **{token: i + 3 for token, i in trained["model"]["vocab"].items()},
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(special[:1], special_tokens=True)
    assert len(tokenizer) == len(trained["model"]["vocab"]) > 400
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    tokenizer.backend_tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_texts_are_encoded_as_before(whole: Any) -> None:
    texts = [*sentences(1, 12), " has title: "]
    trimmed, kept = trim_tokenizer(whole, texts)
    assert 256 < len(kept) == len(trimmed) < len(whole) - 80
    assert (kept[1:] > kept[:-1]).all()
    assert trimmed.convert_ids_to_tokens(list(range(len(kept)))) == whole.convert_ids_to_tokens(kept.tolist())
    for text in texts:
        assert kept[ids_of(trimmed, text)].tolist() == ids_of(whole, text)
    assert [trimmed.bos_token_id, trimmed.eos_token_id] == [1, 2]
    assert trimmed.pad_token is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.text(max_size=30))
def test_whatever_is_kept_any_text_can_be_spelt(whole: Any, seed: int, count: int, other: str) -> None:
    texts = sentences(seed, count)
    trimmed, kept = trim_tokenizer(whole, texts)
    for text in texts:
        assert kept[ids_of(trimmed, text)].tolist() == ids_of(whole, text)
    clean = other.encode("utf-8", "ignore").decode()
    assert trimmed.decode(ids_of(trimmed, clean)) == clean


def test_the_parts_of_a_kept_token_are_kept(whole: Any) -> None:
    """A token may be made by more than one merge; each that is there has its parts there."""
    trimmed, _ = trim_tokenizer(whole, ["brushes"])
    model = json.loads(trimmed.backend_tokenizer.to_str())["model"]
    assert all({left, right, left + right} <= model["vocab"].keys() for left, right in model["merges"])
    assert len(ids_of(trimmed, "brushes")) < len("brushes")


def test_special_tokens_stay_out_of_texts(whole: Any) -> None:
    trimmed, _ = trim_tokenizer(whole, ["red <|im_start|> heart"])
    assert not set(ids_of(trimmed, "<|im_start|><|endoftext|>")) & {0, 1, 2}
    assert sorted(trimmed.added_tokens_decoder) == [0, 1, 2]
    add_special(trimmed, ["<next>"])
    assert trimmed.convert_tokens_to_ids("<next>") == len(trimmed) - 1


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"tea": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match="WordLevel"):
        trim_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), ["tea"])
