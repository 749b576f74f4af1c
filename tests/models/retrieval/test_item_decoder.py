"""The decoder of places against plain forward passes, and every search that asks it against exhaustive scoring."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from models.language.item_model import ItemModel, SidHead, load_item_model
from models.language.places import Places, render_places
from models.language.words import Vocabulary
from models.retrieval.beam import Choice, Search, beam_search, beam_searches
from models.retrieval.beam_check import plain_score, score_all
from models.retrieval.csr import Index
from models.retrieval.free_search import best_tokens, draw_tokens
from models.retrieval.item_decoder import ItemDecoder, open_decoder
from models.retrieval.trie import Trie
from plumline.errors import InputError, PlumlineError
from plumline.sid import SidSpace

HOUR = 3_600_000


@pytest.fixture(scope="module")
def words(places_world: Any) -> Vocabulary:
    return Vocabulary.load(places_world.vocabulary)


@pytest.fixture(scope="module")
def model(places_world: Any, words: Vocabulary) -> ItemModel:
    """In double precision, so that only what is computed can differ; no pair of first codes has a row of zeros."""
    found = load_item_model(places_world.sft / "weights", words).double()
    assert found.prefixes is not None
    torch.nn.init.normal_(found.prefixes.table.weight, std=0.5, generator=torch.Generator().manual_seed(4))
    return found


@pytest.fixture(scope="module")
def prompts(words: Vocabulary) -> list[Places]:
    """Of different lengths: nobody, a profile, a history with gaps, the item that is looked at."""
    history = [((1, 2, 0), 0), ((3, 0, 1), 3 * HOUR), ((1, 1, 1), 3 * HOUR), ((0, 0, 2), 90 * HOUR)]
    return [
        render_places(words, [], {}),
        render_places(words, history[:1], {"country": "Peru"}),
        render_places(words, history, {}, at_ms=90 * HOUR),
        render_places(words, history[1:], {}, context=(2, 2, 2)),
    ]


def pair(model: ItemModel, bag: list[int]) -> torch.Tensor:
    """What the first two codes of a place's SID add together: of four and three codes."""
    assert model.prefixes is not None
    codes = [token - model.sid_base for token in bag if model.sid_base <= token < model.sid_base + 7]
    return model.prefixes.table.weight[3 * codes[0] + codes[1] - 4] if codes else torch.zeros(())


def plainly(model: ItemModel, prompt: Places, path: list[int]) -> torch.Tensor:
    """Log-probabilities of the codes of the next level, by a forward pass of one's own. path: tokens."""
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        bags = torch.stack([sum((table[token] for token in bag), pair(model, bag)) for bag in prompt.bags()])
        state = model.base_model(inputs_embeds=bags[None]).last_hidden_state[0, -1]
        if prompt.asked is not None:
            state = state + table[prompt.asked]
        for level, token in enumerate(path):
            state = model.head.step(level, state, torch.tensor(token - model.sid_base - model.offsets[level]))
        return torch.log_softmax(model.head.outputs[len(path)](state), dim=-1)


def level_of(words: Vocabulary, level: int) -> tuple[int, int]:
    return words.sid_base + words.space.offsets[level], words.space.sizes[level]


def test_a_batch_of_prompts_is_each_of_them_alone(model: ItemModel, prompts: list[Places], words: Vocabulary) -> None:
    a, b = level_of(words, 0)[0], level_of(words, 1)[0]
    with torch.inference_mode():
        decoder = ItemDecoder(model, prompts)
        for _ in range(2):  # after a rewind the same
            found = decoder.log_probabilities(*level_of(words, 0), over_slice=False)
            assert found.shape == (4, 1, 4)
            for row, prompt in enumerate(prompts):
                torch.testing.assert_close(found[row, 0], plainly(model, prompt, []))
            decoder.append(torch.zeros(4, 2, dtype=torch.int64), torch.tensor([[a + 1, a + 3]] * 3 + [[a, a + 2]]))
            decoder.append(torch.tensor([[1, 0, 1]] * 4), torch.tensor([[b, b + 1, b + 2]] * 4))
            found = decoder.log_probabilities(*level_of(words, 2), over_slice=True)
            for row, prompt in enumerate(prompts):
                first = [a, a + 2] if row == 3 else [a + 1, a + 3]
                for beam, (parent, second) in enumerate(((1, b), (0, b + 1), (1, b + 2))):
                    torch.testing.assert_close(found[row, beam], plainly(model, prompt, [first[parent], second]))
            decoder.rewind()
    assert float((decoder.hidden[0] - decoder.hidden[2]).abs().max()) > 0.01


def test_a_tree_is_what_is_appended_level_by_level(model: ItemModel, prompts: list[Places], words: Vocabulary) -> None:
    a, b = level_of(words, 0)[0], level_of(words, 1)[0]
    with torch.inference_mode():
        stepwise, at_once = ItemDecoder(model, prompts), ItemDecoder(model, prompts)
        stepwise.append(torch.zeros(4, 2, dtype=torch.int64), torch.tensor([[a + 1, a + 3]] * 4))
        first = stepwise.hidden
        stepwise.append(torch.tensor([[1, 0, 1]] * 4), torch.tensor([[b, b + 1, b + 2]] * 4))
        tokens, depths = [a + 1, a + 3, b, b + 1, b + 2], [0, 0, 1, 1, 1]
        sees = torch.eye(5, dtype=torch.bool)
        sees[[2, 3, 4], [1, 0, 1]] = True
        told = torch.tensor([tokens] * 4), sees.expand(4, -1, -1), torch.tensor([depths] * 4)
        for _ in range(2):
            at_once.append_tree(*told)
            torch.testing.assert_close(at_once.hidden[:, :2], first)
            torch.testing.assert_close(at_once.hidden[:, 2:], stepwise.hidden)
            at_once.at_level(2)
            torch.testing.assert_close(
                at_once.log_probabilities(*level_of(words, 2), over_slice=False)[:, 2:],
                stepwise.log_probabilities(*level_of(words, 2), over_slice=False),
            )
            at_once.rewind()
            torch.testing.assert_close(
                at_once.log_probabilities(*level_of(words, 0), over_slice=False)[1, 0], plainly(model, prompts[1], [])
            )


def test_every_token_but_those_of_the_level_is_impossible(
    model: ItemModel, prompts: list[Places], words: Vocabulary
) -> None:
    with torch.inference_mode():
        decoder = ItemDecoder(model, prompts)
        every = decoder.log_probabilities(0, words.size, over_slice=False)[0, 0]
        first, size = level_of(words, 0)
        assert every.shape == (words.size,)
        assert torch.equal(every[first : first + size], decoder.log_probabilities(first, size, False)[0, 0])
        assert every.isfinite().sum() == size
        assert float(every.exp().sum()) == pytest.approx(1.0)
        part = decoder.log_probabilities(first + 2, 5, over_slice=False)[0, 0]
        assert part.tolist() == [*every[first + 2 : first + 4].tolist(), *[-np.inf] * 3]
        assert not decoder.log_probabilities(0, first, over_slice=False).isfinite().any()


def test_a_model_without_numbers_is_no_model(model: ItemModel, prompts: list[Places]) -> None:
    with torch.inference_mode():
        decoder = ItemDecoder(model, prompts[:1])
        decoder.hidden = decoder.hidden * float("nan")
        with pytest.raises(PlumlineError, match="not finite"):
            decoder.log_probabilities(0, 4, over_slice=False)


def test_prompts_of_one_kind_for_a_model_of_the_other_are_refused(model: ItemModel, prompts: list[Places]) -> None:
    for some, which in (([[1, 2]], model), ([prompts[0], [1, 2]], model), (prompts[:1], model.lm)):
        with pytest.raises(InputError, match="prompts of one kind for a model of the other") as caught:
            open_decoder(which, some, 3)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="without tokens"):
        open_decoder(model, [Places([], [], 0)], 3)


# --- what asks it ---


def every_sid(words: Vocabulary) -> np.ndarray:
    return np.array([*product(*map(range, words.space.sizes))])


def every_score(model: ItemModel, prompt: Places, words: Vocabulary) -> dict[tuple[int, ...], float]:
    """Every SID there could be, with its exact score, best first."""
    sids = [*map(tuple, every_sid(words).tolist())]
    told = {sid: words.sid_token_ids(np.array([sid]))[0].tolist() for sid in sids}
    scores = {sid: plain_score(model, prompt, told[sid], "cpu") for sid in sids}
    return dict(sorted(scores.items(), key=lambda one: (-one[1], one[0])))


def test_a_search_of_all_beams_is_the_exact_ranking(model: ItemModel, prompts: list[Places], words: Vocabulary) -> None:
    about = {"space": words.space, "sid_base": words.sid_base, "device": "cpu"}
    held = every_sid(words)[::2]
    index = Index.build(held, words.space.sizes)
    free = beam_search(model, prompts, index=None, width=50, **about)
    found = beam_search(model, prompts, index=index, width=50, **about)
    orders = set()
    for prompt, everything, some in zip(prompts, free, found, strict=True):
        exact = every_score(model, prompt, words)
        assert list(map(tuple, everything.codes.tolist())) == list(exact)
        np.testing.assert_allclose(everything.scores, list(exact.values()), atol=1e-5)
        assert np.exp(everything.scores.astype(float)).sum() == pytest.approx(1.0, abs=1e-5)
        kept = [sid for sid in exact if list(sid) in held.tolist()]
        assert list(map(tuple, some.codes.tolist())) == kept
        orders.add(tuple(exact))
        np.testing.assert_allclose(
            score_all(model, prompt, np.array(sorted(exact)), chunk=3, **about), [exact[s] for s in sorted(exact)]
        )
    assert len(orders) == len(prompts)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("sizes", [(10,), (4, 6), (2, 3, 2, 3)])
def test_trees_of_any_depth_are_scored_exactly(
    model: ItemModel, prompts: list[Places], sizes: tuple[int, ...], chunk: int
) -> None:
    head, space = SidHead(sizes, hidden=16, intermediate=8), SidSpace(sizes)
    head.start(2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(10)
    other = ItemModel(model.lm, head.double(), model.prefixes, model.sid_base, model.pad).eval()
    codes = np.array([*np.ndindex(*sizes)])[::2]
    about = {"space": space, "sid_base": model.sid_base, "device": "cpu"}
    found = score_all(other, prompts[2], codes, chunk=chunk, **about)
    tokens = space.token_ids(codes, model.sid_base).tolist()
    np.testing.assert_allclose(found, [plain_score(other, prompts[2], sid, "cpu") for sid in tokens])
    assert found.std() > 0.1


def test_a_batch_is_searched_as_each_alone_and_searches_side_by_side(
    model: ItemModel, prompts: list[Places], words: Vocabulary
) -> None:
    about = {"space": words.space, "sid_base": words.sid_base, "device": "cpu"}
    trie = Trie.of(Index.build(every_sid(words), words.space.sizes), "cpu")
    searches = [Search(trie, 3), Search(trie, 5, choice=Choice(cap=1)), Search(trie, 4, choice=Choice(temperature=1.0))]
    together = beam_searches(model, prompts, searches, **about)
    for search, beams in zip(searches, together, strict=True):
        for prompt, one in zip(prompts, beams, strict=True):
            [[alone]] = beam_searches(model, [prompt], [search], **about)
            assert np.array_equal(alone.codes, one.codes)
            np.testing.assert_allclose(alone.scores, one.scores, atol=1e-6)
            exact = every_score(model, prompt, words)
            np.testing.assert_allclose(one.scores, [exact[tuple(sid)] for sid in one.codes.tolist()], atol=1e-5)
    assert all(len(set(one.codes[:, 0].tolist())) == len(one.codes) == 4 for one in together[1])


def test_a_draw_follows_the_distribution(model: ItemModel, prompts: list[Places], words: Vocabulary) -> None:
    uniforms = np.random.default_rng(3).random((len(prompts), 12, 3))
    uniforms[0, 0], uniforms[0, 1] = 0.0, np.nextafter(1.0, 0.0)
    drawn = draw_tokens(model, prompts, uniforms, "cpu")
    for row, draw, step in product(range(len(prompts)), range(12), range(3)):
        before = drawn[row, draw, :step].tolist()
        reached = np.concatenate([[0.0], np.cumsum(plainly(model, prompts[row], before).exp().numpy())])
        code = int(drawn[row, draw, step]) - level_of(words, step)[0]
        assert 0 <= code < words.space.sizes[step]
        assert reached[code] - 1e-6 <= uniforms[row, draw, step] <= reached[code + 1] + 1e-6
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5
    assert (draw_tokens(model, prompts[1:2], uniforms[1:2], "cpu") == drawn[1:2]).all()


@pytest.mark.parametrize("width", [1, 5, 36])
def test_the_best_that_a_free_search_finds_are_sids(
    model: ItemModel, prompts: list[Places], words: Vocabulary, width: int
) -> None:
    found = best_tokens(model, prompts, 3, width, "cpu")
    assert found.shape == (len(prompts), width, 3)
    codes = found - words.sid_base - np.array(words.space.offsets)
    assert ((codes >= 0) & (codes < np.array(words.space.sizes))).all()
    if width == 36:
        for prompt, rows in zip(prompts, codes.tolist(), strict=True):
            assert list(map(tuple, rows)) == list(every_score(model, prompt, words))
