"""Prompts of text and SIDs: the tokens that training writes, nothing reserved from outside, greedy to the end."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language.completion import Part, complete, encode_prompt, split_completion
from models.language.model import load_language_model
from models.language.phrases import PHRASES
from models.language.words import Vocabulary
from models.semantic_ids.table import SidTable
from plumline.errors import InputError


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    return Vocabulary.load(world.vocabulary)


@pytest.fixture(scope="module")
def table(world: Any) -> SidTable:
    return SidTable.load(world.sids)


@pytest.fixture(scope="module")
def model(world: Any) -> Any:
    return load_language_model(world.sft / "weights")


@pytest.mark.parametrize("written", ["{item:item05}", "sid"])
def test_a_prompt_is_what_training_writes(words: Vocabulary, table: SidTable, written: str) -> None:
    codes = table.codes_of["item05"]
    sid = words.sid_token_ids(table.codes[5]).tolist()
    before, after = PHRASES["title"]
    prompt = f"{before}{words.space.format(codes) if written == 'sid' else written}{after}thing"
    wanted = [*words.encode_phrase(before), *sid, *words.encode_phrase(after + "thing")]
    assert encode_prompt(words, prompt, table.codes_of) == [words.control["<bos>"], *wanted]


def test_sids_in_a_row_and_first_codes_alone(words: Vocabulary) -> None:
    ids = encode_prompt(words, "<a_1><b_2><c_0><a_3><b_0>", {})
    offsets = words.space.offsets
    assert [i - words.sid_base for i in ids[1:]] == [1, offsets[1] + 2, offsets[2], 3, offsets[1]]


@pytest.mark.parametrize(
    ("prompt", "words_of_it"),
    [
        ("Item <a_4> is", "<a_4>"),
        ("Item <d_0> is", "<d_0>"),
        ("Item <a_01> is", "<a_01>"),
        ("Item <b_1> is", "<b_1>"),
        ("Item <a_1><c_1> is", "<c_1>"),
        ("Item {item:nobody} is", "nobody"),
    ],
)
def test_what_is_not_there_is_refused_by_one_line(words: Vocabulary, prompt: str, words_of_it: str) -> None:
    with pytest.raises(InputError, match=words_of_it) as caught:
        encode_prompt(words, prompt, {})
    assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["<eos>", "<next>", "<gap_1>", "<a_", "1>", "<", "{item", ":", "}", " ", "\n", "é\u200b"]))
)
def test_text_yields_no_reserved_token(words: Vocabulary, pieces: list[str]) -> None:
    text = "".join(pieces)
    if "<a_1>" in text:
        return
    if "{item:" in text and "}" in text.split("{item:", 1)[1]:
        return
    ids = encode_prompt(words, text, {})
    assert ids[0] == words.control["<bos>"]
    assert all(i < words.reserved_base for i in ids[1:])


def test_greedy_by_hand(words: Vocabulary, model: Any) -> None:
    prompt = encode_prompt(words, "Item <a_1><b_2><c_0> has title: ", {})
    ids = list(prompt)
    for _ in range(8):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == words.control["<eos>"]:
            ids.pop()
            break
    assert complete(model, words, prompt, 8) == ids[len(prompt) :]


def test_the_end_is_an_end(words: Vocabulary, model: Any) -> None:
    """A head that always prefers <eos> says nothing."""
    quiet = load_mute(model, words.control["<eos>"])
    assert complete(quiet, words, encode_prompt(words, "Item", {}), 8) == []


def load_mute(model: Any, token: int) -> Any:
    import copy

    mute = copy.deepcopy(model)
    bias = torch.full((mute.config.vocab_size,), -1e4)
    bias[token] = 1e4
    head = mute.get_output_embeddings()
    head.bias = torch.nn.Parameter(bias)
    return mute


def test_too_long_is_refused(words: Vocabulary, model: Any) -> None:
    with pytest.raises(InputError, match="--max-tokens"):
        complete(model, words, encode_prompt(words, "Item", {}), 4000)


def test_parts_of_a_completion(words: Vocabulary) -> None:
    sid = words.sid_token_ids([1, 2, 0]).tolist()
    ids = [*words.encode_phrase("It is "), *sid, words.gap_base, *sid[:2], *words.encode_phrase(" no")]
    assert split_completion(words, ids) == [
        Part("It is "),
        Part("<a_1><b_2><c_0>", (1, 2, 0)),
        Part("<gap_0>"),
        Part("<a_1>"),
        Part("<b_2>"),
        Part(" no"),
    ]
