"""The exam of continued pre-training: marks against one forward pass a target, greedy decoding, a perfect model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.corpus.examples import KINDS, Examples, ExamplesBuilder
from models.language.model import load_language_model
from models.language.words import Vocabulary
from models.training.cpt_eval import Exam, answer


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    return Vocabulary.load(world.vocabulary)


@pytest.fixture(scope="module")
def model(world: Any) -> Any:
    return load_language_model(world.sft / "weights")


@pytest.fixture(scope="module")
def heldout(words: Vocabulary) -> Examples:
    """Three examples of every held-out kind, of different lengths."""
    rng, builder = np.random.default_rng(2), ExamplesBuilder()
    bos, eos = words.control["<bos>"], words.control["<eos>"]
    for length in (5, 3, 8):
        text = rng.integers(0, 200, length).tolist()
        sids = [words.sid_token_ids(rng.integers(0, words.space.sizes)).tolist() for _ in range(length)]
        flat = [i for sid in sids for i in sid]
        add(builder, [bos, *flat], range(4, 1 + len(flat)), "behaviour")
        named = [bos, *text, *words.encode_phrase(" is item ")]
        add(builder, [*named, *sids[0], eos], range(len(named), len(named) + 3), "naming")
        for kind in ("title", "topics", "channel"):
            add(builder, [bos, *sids[0], *text, eos], range(4, 5 + length), kind)
        add(builder, [bos, *text, eos], range(1, 2 + length), "general")
    return builder.build()


def add(builder: ExamplesBuilder, tokens: list[int], targets: range, kind: str) -> None:
    loss = np.zeros(len(tokens), dtype=np.int8)
    loss[list(targets)] = 1
    builder.add_tree(np.array(tokens, np.int32), np.arange(len(tokens), 0, -1, dtype=np.int32), loss, kind, 1.0)


def one_by_one(model: Any, heldout: Examples, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and rightness of an example's targets, from a pass of its own."""
    inside = slice(heldout.offsets[row], heldout.offsets[row + 1])
    tokens, loss = heldout.tokens[inside].astype(np.int64), heldout.loss[inside]
    with torch.inference_mode():
        logs = model(torch.from_numpy(tokens)[None]).logits[0].log_softmax(-1).numpy()
    places = np.flatnonzero(loss)
    return -logs[places - 1, tokens[places]], logs[places - 1].argmax(-1) == tokens[places]


def test_marks_are_those_of_one_pass_an_example(model: Any, words: Vocabulary, heldout: Examples) -> None:
    marks = Exam(heldout, words, 10).take(model, before=2.5)
    assert list(marks) == [k for k in KINDS if len(heldout.of_kinds(k))]
    for kind, found in marks.items():
        alone = [one_by_one(model, heldout, row) for row in heldout.of_kinds(kind)]
        losses, right = np.concatenate([a for a, _ in alone]), np.concatenate([b for _, b in alone])
        assert found["examples"] == 3
        assert found["loss"] == pytest.approx(losses.mean(), abs=1e-4)
        if kind in ("behaviour", "naming"):
            assert found["accuracy"] == pytest.approx(right.reshape(-1, 3).mean(0), abs=1e-5)
            assert found["items"] == len(right) // 3
        elif kind == "general":
            assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
            assert found["perplexity_before"] == 2.5
        else:
            assert found["exact"] == pytest.approx(np.mean([b.all() for _, b in alone]), abs=1e-5)


def test_exact_is_what_greedy_decoding_spells(model: Any, words: Vocabulary, heldout: Examples) -> None:
    """Texts that the model itself completes are all right, and one changed token makes one example wrong."""
    builder = ExamplesBuilder()
    rng = np.random.default_rng(0)
    for number in range(4):
        prompt = [words.control["<bos>"], *words.sid_token_ids(rng.integers(0, words.space.sizes)).tolist()]
        spelt = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=6
        )[0].tolist()
        if number == 3:
            spelt[-1] = (spelt[-1] + 1) % words.size
        add(builder, spelt, range(len(prompt), len(spelt)), "topics")
    marks = Exam(builder.build(), words, 10).take(model, before=None)
    assert marks["topics"]["exact"] == 0.75
    assert 0.75 < marks["topics"]["accuracy"] < 1.0
    del heldout


def test_only_so_many_and_nothing_at_all(model: Any, words: Vocabulary, heldout: Examples) -> None:
    assert all(mark["examples"] == 2 for mark in Exam(heldout, words, 2).take(model, None).values())
    assert Exam(heldout, words, 0).take(model, None) == {}
    assert Exam(ExamplesBuilder().build(), words, 9).take(model, None) == {}
    assert Exam(heldout, words, 0).perplexity(model) is None
    before = Exam(heldout, words, 9).perplexity(model)
    after = Exam(heldout, words, 9).take(model, before)["general"]["perplexity"]
    assert before == pytest.approx(after, rel=1e-4)  # packed with other examples


def test_answers_know_their_examples(model: Any, heldout: Examples) -> None:
    chosen = np.array([4, 0, 7])
    found = answer(model, heldout, chosen)
    for row in chosen:
        inside = slice(heldout.offsets[row], heldout.offsets[row + 1])
        wanted = heldout.tokens[inside][heldout.loss[inside] == 1]
        assert found.target[found.example == row].tolist() == wanted.tolist()


def test_what_was_learned_is_known(tmp_path: Path, words: Vocabulary, heldout: Examples) -> None:
    """A model that is trained on the very questions answers them: the marks can be good as well as bad."""
    from models.language.model import LanguageParams, build_language_model
    from models.training.loop import train
    from models.training.packing import LoopParams

    params = LanguageParams(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=48, embedding_std=0.1)
    model = build_language_model(params, words, seed=0)
    exam = Exam(heldout, words, 10)
    before = exam.perplexity(model)
    assert before is not None
    everything = np.arange(heldout.num_examples)
    loop = LoopParams(row_tokens=256, accumulation=1, learning_rate=0.01, warmup_steps=2)
    train(model, heldout, loop, chosen=everything, steps=70, seed=0, stage="cpt", progress_path=tmp_path / "p.jsonl")
    marks = exam.take(model, before)
    assert marks["naming"]["exact"] == 1.0
    assert marks["general"]["perplexity"] < 0.2 * before
