"""The model of places and its SID head: what it computes, and that it is the same from the disk, or in plain torch."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from models.language.item_model import (
    ItemModel,
    Prefixes,
    SidHead,
    load_item_model,
    save_item_model,
    start_item_model,
)
from models.language.places import HeadParams, render_places
from models.language.plain import PlainModel
from models.language.words import Vocabulary
from models.retrieval.beam_check import plain_score
from models.retrieval.item_decoder import ItemDecoder
from plumline.artifact import read_json, write_json
from plumline.errors import CorruptArtifactError, MissingArtifactError, MixedReleaseError
from plumline.sid import SidSpace

HEAD = HeadParams(intermediate=20, prefix_rows=30)


@pytest.fixture(scope="module")
def words(places_world: Any) -> Vocabulary:
    return Vocabulary.load(places_world.vocabulary)


@pytest.fixture
def weights(places_world: Any, tmp_path: Path) -> Path:
    """A copy of the fine-tuned weights, to be damaged."""
    return Path(shutil.copytree(places_world.sft / "weights", tmp_path / "weights"))


def make_lm(words: Vocabulary, family: str = "llama", tied: bool = True, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": words.size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "head_dim": 8,
        "initializer_range": 0.3,
        "pad_token_id": words.control["<pad>"],
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, tie_word_embeddings=tied, **sizes)).eval()


def make_model(words: Vocabulary, family: str = "llama", tied: bool = True) -> ItemModel:
    """With a table of pairs as training might leave it: a new one is zero."""
    model = start_item_model(make_lm(words, family, tied), words, HEAD, seed=3).eval()
    if model.prefixes is not None:
        torch.nn.init.normal_(model.prefixes.table.weight, generator=torch.Generator().manual_seed(8))
    return model


def answers(model: ItemModel, words: Vocabulary) -> list[torch.Tensor]:
    """State 0 and log-probabilities of all levels after three requests, the codes taken being (1, 2, …)."""
    history = [((1, 2, 0), 0), ((3, 0, 1), 9_000_000), ((1, 1, 1), 9_000_000)]
    codes = [tuple(row[: words.space.num_levels]) for row, _ in history]
    some = [(row, time) for row, (_, time) in zip(codes, history, strict=True)]
    prompts = [render_places(words, some[:length], {"country": "Peru"}) for length in (0, 3, 1)]
    with torch.inference_mode():
        decoder = ItemDecoder(model, prompts)
        found = [decoder.hidden]
        for level, (size, offset) in enumerate(zip(words.space.sizes, words.space.offsets, strict=True)):
            found.append(decoder.log_probabilities(words.sid_base + offset, size, over_slice=False))
            if level + 1 < words.space.num_levels:
                taken = torch.full((3, 1), words.sid_base + offset + level + 1)
                decoder.append(torch.zeros(3, 1, dtype=torch.int64), taken)
    return found


# --- on the disk ---


@pytest.mark.parametrize("plain", [False, True])
def test_saved_and_loaded_it_gives_the_same_numbers(words: Vocabulary, tmp_path: Path, plain: bool) -> None:
    model = make_model(words)
    expected = answers(model, words)
    save_item_model(model, tmp_path)
    again = load_item_model(tmp_path, words, plain=plain)
    assert not again.training
    assert isinstance(again.lm, PlainModel if plain else PreTrainedModel)
    for ours, theirs in zip(answers(again, words), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 if plain else 0)


def test_saved_once_more_it_is_the_same_bytes(words: Vocabulary, weights: Path, tmp_path: Path) -> None:
    save_item_model(load_item_model(weights, words), tmp_path / "again")
    names = {path.name for path in weights.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert all((weights / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert read_json(weights / "sid_head.json") == {
        "sizes": [4, 3, 3],
        "intermediate": 24,
        "prefix_rows": 12,
    }


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen3", True)])
def test_plain_torch_gives_the_library_s_numbers(words: Vocabulary, tmp_path: Path, family: str, tied: bool) -> None:
    save_item_model(make_model(words, family, tied), tmp_path)
    library, plain = (load_item_model(tmp_path, words, plain=plain) for plain in (False, True))
    assert isinstance(plain.lm, PlainModel)
    for ours, theirs in zip(answers(plain, words), answers(library, words), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_what_is_not_plain_is_left_to_the_library(words: Vocabulary, tmp_path: Path) -> None:
    save_item_model(make_model(words, "gemma"), tmp_path)
    assert isinstance(load_item_model(tmp_path, words, plain=True).lm, PreTrainedModel)


def test_half_precision_is_of_the_head_too(words: Vocabulary, weights: Path) -> None:
    half = load_item_model(weights, words, precision="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    exact = answers(load_item_model(weights, words), words)
    found = answers(half, words)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, *[torch.float32] * 3]
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.3)


def test_a_space_of_one_level_is_saved_too(words: Vocabulary, tmp_path: Path) -> None:
    one = replace(words, space=SidSpace((10,)))
    model = make_model(one)
    assert model.prefixes is None  # there are no pairs
    save_item_model(model, tmp_path)
    for ours, theirs in zip(answers(load_item_model(tmp_path, one), one), answers(model, one), strict=True):
        assert torch.equal(ours, theirs)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["sid_head.safetensors", "sid_head.json", "model.safetensors"])
def test_a_missing_part_is_named(words: Vocabulary, weights: Path, name: str, plain: bool) -> None:
    (weights / name).unlink()
    with pytest.raises(MissingArtifactError) as caught:
        load_item_model(weights, words, plain=plain)
    assert name in one_line(caught)


def test_weights_of_the_other_form_have_no_head(places_world: Any, words: Vocabulary) -> None:
    with pytest.raises(MissingArtifactError, match=r"no sid_head.safetensors .* run the stage sft"):
        load_item_model(places_world.cpt / "weights", words)


@pytest.mark.parametrize(
    "about",
    [
        {},
        [],
        {"sizes": [4, 3, 3]},
        {"sizes": 4, "intermediate": 24, "prefix_rows": 12},
        {"sizes": [4, 3, 3], "intermediate": None, "prefix_rows": 12},
        {"sizes": [4, 3, 3], "intermediate": 25, "prefix_rows": 12},
        {"sizes": [4, 3, 3], "intermediate": 24, "prefix_rows": -1},
        {"sizes": [4, 3, 3], "intermediate": 24, "prefix_rows": 11},
        {"sizes": [4, 3, 3], "intermediate": 24, "prefix_rows": 0},
        {"sizes": [4, 3, 3], "intermediate": 24, "prefix_rows": 12, "more": 1},
    ],
)
def test_a_head_that_does_not_fit_its_weights_is_refused(words: Vocabulary, weights: Path, about: Any) -> None:
    write_json(weights / "sid_head.json", about)
    with pytest.raises(CorruptArtifactError) as caught:
        load_item_model(weights, words)
    assert str(weights) in one_line(caught)


def test_damaged_files_are_refused(words: Vocabulary, weights: Path) -> None:
    whole = load_file(weights / "sid_head.safetensors")
    for lost in ("head.norms.1.weight", "prefixes.table.weight"):
        left = {name: value for name, value in whole.items() if name != lost}
        assert len(left) == len(whole) - 1
        save_file(left, weights / "sid_head.safetensors")
        with pytest.raises(CorruptArtifactError, match=re.escape(lost)):
            load_item_model(weights, words)
    (weights / "sid_head.safetensors").write_bytes(b"no weights")
    with pytest.raises(CorruptArtifactError) as caught:
        load_item_model(weights, words)
    assert str(weights) in one_line(caught)
    (weights / "sid_head.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"sid_head\.json"):
        load_item_model(weights, words)


def test_levels_of_another_vocabulary_are_two_releases(words: Vocabulary, weights: Path) -> None:
    for sizes in ((4, 3), (4, 3, 2), (4, 3, 5)):
        other = replace(words, space=SidSpace(sizes))
        with pytest.raises(MixedReleaseError, match=rf"\(4, 3, 3\).*{re.escape(str(sizes))}") as caught:
            load_item_model(weights, other)
        one_line(caught)


# --- what it computes ---


def test_a_new_head_follows_its_seed_alone(words: Vocabulary) -> None:
    torch.manual_seed(9)
    one = start_item_model(make_lm(words), words, HEAD, seed=3)
    torch.manual_seed(10)
    same, other = (start_item_model(make_lm(words), words, HEAD, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    drawn = [name for name, p in one.head.named_parameters() if not torch.equal(p, other.head.get_parameter(name))]
    assert {name.split(".")[0] for name in drawn} == {"codes", "gates", "ups", "downs", "outputs"}
    assert not any(name.endswith("bias") for name in drawn)


def told(words: Vocabulary, *codes: int) -> list[int]:
    """Tokens of the first levels of a SID."""
    return [words.sid_base + offset + code for offset, code in zip(words.space.offsets, codes, strict=False)]


def test_a_pair_of_first_codes_has_a_row(words: Vocabulary) -> None:
    """Whatever stands beside it in the place, and whatever comes third."""
    prefixes, gap = Prefixes((4, 3, 3), hidden=5, rows=12, sid_base=words.sid_base), words.gap_base
    table = torch.nn.init.normal_(prefixes.table.weight.requires_grad_(False))
    for first, second, third in np.ndindex(4, 3, 3):
        a, b, c = told(words, first, second, third)
        rows = prefixes(torch.tensor([[[gap, a, b, c, 0], [c, b, 0, a, gap]]]))
        assert torch.equal(rows, table[3 * first + second].expand(1, 2, 5))


def test_no_sid_or_half_of_one_is_no_pair(words: Vocabulary) -> None:
    prefixes = Prefixes((4, 3, 3), hidden=5, rows=12, sid_base=words.sid_base)
    torch.nn.init.normal_(prefixes.table.weight)
    (a, b, c), gap = told(words, 0, 0, 0), words.gap_base
    none = torch.tensor([[[0, 0, 0], [gap, 7, 0], [a, 0, 0], [a, c, gap], [b, c, 0], [0, 0, b], [c, 0, 0]]])
    assert not prefixes(none).any()
    assert prefixes(torch.tensor([[[a, b, 0]]])).any()


def test_more_pairs_than_rows_share_them(words: Vocabulary) -> None:
    model = start_item_model(make_lm(words), words, HeadParams(intermediate=20, prefix_rows=5), seed=3)
    assert model.prefixes is not None
    table = torch.nn.init.normal_(model.prefixes.table.weight.requires_grad_(False))
    assert table.shape == (5, 16)
    pairs = list(np.ndindex(4, 3))
    found = model.prefixes(torch.tensor([[told(words, *pair) for pair in pairs]]))[0]
    assert torch.equal(found, table[[(3 * first + second) % 5 for first, second in pairs]])


def test_a_table_has_no_more_rows_than_there_are_pairs(words: Vocabulary) -> None:
    def rows(prefix_rows: int, *sizes: int) -> int | None:
        space = replace(words, space=SidSpace(sizes))
        made = start_item_model(make_lm(words), space, HeadParams(prefix_rows=prefix_rows), seed=3).prefixes
        return None if made is None else made.table.num_embeddings

    assert [rows(16_384, 4, 3, 3), rows(12, 4, 3), rows(11, 4, 3), rows(1, 4, 3)] == [12, 12, 11, 1]
    assert (rows(0, 4, 3, 3), rows(16_384, 10)) == (None, None)


def test_a_new_table_adds_nothing_and_another_what_is_in_it(words: Vocabulary) -> None:
    model = start_item_model(make_lm(words), words, HEAD, seed=3)
    assert model.prefixes is not None
    tokens = torch.tensor([[[words.gap_base, *told(words, 3, 1, 2)], [*told(words, 0, 2, 0), model.pad]]])
    sums = [model.get_input_embeddings().weight[bag[bag != model.pad]].sum(0) for bag in tokens[0]]
    torch.testing.assert_close(model.embed(tokens)[0], torch.stack(sums))
    table = torch.nn.init.normal_(model.prefixes.table.weight.requires_grad_(False))
    torch.testing.assert_close(model.embed(tokens)[0], torch.stack(sums) + table[[10, 2]])


def test_places_are_sums_and_padding_counts_nothing(words: Vocabulary) -> None:
    model = start_item_model(make_lm(words), words, HEAD, seed=3)
    table, pad = model.get_input_embeddings().weight, model.pad
    with torch.no_grad():
        table[pad] = 5.0  # what stands there must not matter
    tokens = torch.tensor([[[7, 8, 9], [7, pad, pad]], [[8, 8, pad], [pad, pad, pad]]])
    expected = torch.stack([torch.stack([table[7] + table[8] + table[9], table[7]]), torch.stack([2 * table[8]] * 2)])
    expected = expected * torch.tensor([[1.0, 1.0], [1.0, 0.0]])[..., None]
    torch.testing.assert_close(model.embed(tokens), expected)
    hidden = torch.randn(2, 16)
    asked = model.ask(hidden, torch.tensor([pad, 7]))
    torch.testing.assert_close(asked, torch.stack([hidden[0], hidden[1] + table[7]]))


@pytest.mark.parametrize("sizes", [(5,), (4, 3), (4, 3, 2, 3)])
def test_the_probabilities_of_all_sids_sum_to_one(sizes: tuple[int, ...]) -> None:
    head = SidHead(sizes, hidden=8, intermediate=6)
    head.start(1)
    with torch.no_grad():
        for parameter in head.requires_grad_(False).parameters():
            parameter.mul_(10)
    state, total = torch.randn(1, 8), torch.zeros(1)
    for level in range(len(sizes)):
        logp = head.log_probabilities(level, state)
        assert logp.shape == (len(state), sizes[level])
        total = (total[:, None] + logp).flatten()
        if level + 1 < len(sizes):
            codes = torch.arange(sizes[level]).repeat(len(state))
            state = head.step(level, state.repeat_interleave(sizes[level], dim=0), codes)
    assert len(total) == torch.tensor(sizes).prod()
    assert float(total.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(total.std()) > 0.1


def test_the_loss_is_the_log_probability_of_the_sids(words: Vocabulary) -> None:
    model = start_item_model(make_lm(words), words, HEAD, seed=3).requires_grad_(False)
    states, codes = torch.randn(5, 16), torch.tensor([[0, 0, 0], [3, 2, 2], [1, 0, 2], [3, 2, 1], [1, 0, 2]])
    expected = 0.0
    for state, sid in zip(states, codes, strict=True):
        for level, code in enumerate(sid):
            expected -= float(model.head.log_probabilities(level, state)[code])
            state = model.head.step(level, state, code) if level < 2 else state
    assert float(model.target_losses(states, codes)) == pytest.approx(expected, rel=1e-5)
    assert float(model.target_losses(states[:0], codes[:0])) == 0.0


@pytest.mark.parametrize("sizes", [(4, 3, 3), (4, 3), (10,)])
def test_log_probabilities_are_those_of_a_plain_pass(words: Vocabulary, sizes: tuple[int, ...]) -> None:
    """Of every SID there can be, in any order, and some of them twice."""
    words = replace(words, space=SidSpace(sizes))
    model, codes = make_model(words), np.array([*np.ndindex(*sizes)])
    for parameter in model.head.requires_grad_(False).parameters():
        parameter.mul_(3)
    prompt = render_places(words, [(sid, place * 9_000_000) for place, sid in enumerate(codes[[5, 8, 2]])], {})
    decoder = ItemDecoder(model, [prompt])
    tokens = words.sid_token_ids(codes).tolist()
    expected = np.array([plain_score(model, prompt, sid, "cpu") for sid in tokens])
    assert np.exp(expected).sum() == pytest.approx(1.0)
    assert expected.std() > 0.1
    some = np.random.default_rng(0).permutation(np.append(np.arange(len(codes)), [7, 7, 0]))
    found = model.log_probabilities(decoder.hidden[0, 0], codes[some])
    np.testing.assert_allclose(found, expected[some], atol=1e-5)
    np.testing.assert_allclose(model.log_probabilities(decoder.hidden[0, 0], codes[7:8]), expected[7:8], atol=1e-5)
    assert model.log_probabilities(decoder.hidden[0, 0], codes[:0]).shape == (0,)


def test_what_is_anchored_is_what_trains_of_the_language_model(words: Vocabulary) -> None:
    for tied in (True, False):
        lm = make_lm(words, tied=tied)
        model = start_item_model(lm, words, HEAD, seed=3)
        anchored = model.anchored()
        assert all(anchored[name] is lm.get_parameter(name) for name in anchored)
        assert dict(lm.named_parameters()).keys() - anchored.keys() == (set() if tied else {"lm_head.weight"})
