"""Models: built, adopted, saved, loaded, refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.language.model import (
    LanguageParams,
    build_language_model,
    check_vocabulary,
    load_language_model,
    save_language_model,
    use_threads,
)
from models.language.vocabulary import VocabularyParams
from models.language.vocabulary import run as run_vocabulary
from models.language.words import Vocabulary
from plumline.artifact import list_files, sha256_file
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, MixedReleaseError

SMALL: dict[str, Any] = {"hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 24}


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    return Vocabulary.load(world.vocabulary)


def logits(model: Any, words: Vocabulary) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(words.size)[None, -20:]).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_from_scratch(words: Vocabulary, tmp_path: Path, architecture: str, tied: bool) -> None:
    params = LanguageParams(**SMALL, architecture=architecture, tied=tied)  # type: ignore[arg-type]
    model = build_language_model(params, words, seed=1)
    assert model.config.model_type == architecture
    assert model.get_input_embeddings().num_embeddings == words.size
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied
    save_language_model(model, tmp_path / "weights")
    assert {p.suffix for p in list_files(tmp_path / "weights")} == {".json", ".safetensors"}
    again = load_language_model(tmp_path / "weights")
    assert not again.training
    assert torch.equal(logits(model.eval(), words), logits(again, words))
    assert again.get_input_embeddings().weight.dtype == torch.float32


def test_seed_decides_the_bytes(words: Vocabulary, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_language_model(build_language_model(LanguageParams(**SMALL), words, seed), tmp_path / name)
    digest = {name: [sha256_file(p) for p in list_files(tmp_path / name)] for name in "abc"}
    assert digest["a"] == digest["b"] != digest["c"]
    assert not any(str(tmp_path).encode() in p.read_bytes() for p in list_files(tmp_path / "a"))


def test_embeddings_may_start_wider(words: Vocabulary) -> None:
    model = build_language_model(LanguageParams(**SMALL, embedding_std=0.5), words, seed=1)
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(0.5, rel=0.05)
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("start", ["codebook", "titles", "mean", "noise"])
@pytest.mark.parametrize("tied", [True, False])
def test_where_the_rows_of_a_model_from_scratch_start(world: Any, words: Vocabulary, start: str, tied: bool) -> None:
    told = LanguageParams(**SMALL, tied=tied, embedding_std=0.5, sid_init=start)  # type: ignore[arg-type]
    model = build_language_model(told, words, 1, world.quantizer)
    again = build_language_model(told, words, 1, world.quantizer)
    plain = build_language_model(LanguageParams(**SMALL, tied=tied, embedding_std=0.5), words, 1)
    embedding = model.get_input_embeddings().weight.detach()
    assert torch.equal(embedding, again.get_input_embeddings().weight)
    assert torch.equal(embedding[: words.reserved_base], plain.get_input_embeddings().weight[: words.reserved_base])
    spread = float(embedding[words.sid_base :].std())
    assert spread == pytest.approx({"codebook": 0.5, "titles": 0.5, "mean": 0.05, "noise": 0.5}[start], rel=0.2)
    head = model.get_output_embeddings().weight.detach()[words.sid_base :]
    if start != "noise":
        assert float(head.std()) == pytest.approx(spread if tied else spread * 0.02 / 0.5, rel=0.2)
    assert len(torch.unique(embedding[words.reserved_base :], dim=0)) == len(words.reserved)


def make_words(world: Any, out: Path, **params: Any) -> Vocabulary:
    out.mkdir()
    inputs = {name: getattr(world, name) for name in ("catalog", "histories", "sids")}
    run_vocabulary(VocabularyParams(**params), **inputs, base=None, out=out)
    return Vocabulary.load(out)


@pytest.mark.parametrize("start", ["codebook", "titles", "mean", "noise"])
@pytest.mark.parametrize(("tied", "trim"), [(True, False), (False, True)])
def test_pretrained_is_extended(
    world: Any, make_foreign: Callable[..., Any], tmp_path: Path, start: str, tied: bool, trim: bool
) -> None:
    """Its text rows stay, those that are needed; reserved tokens get rows of their own, all different."""
    before = make_foreign(tmp_path / "foreign", tied=tied)
    words = make_words(world, tmp_path / "words", text_model=str(tmp_path / "foreign"), trim_text=trim)
    assert (257 < words.reserved_base < 274) if trim else words.reserved_base == 274
    told = LanguageParams(pretrained=str(tmp_path / "foreign"), sid_init=start)  # type: ignore[arg-type]
    model = build_language_model(told, words, 1, world.quantizer)
    text = torch.from_numpy(words.text_rows)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        rows, old = getattr(model, name)().weight.detach(), getattr(before, name)().weight.detach()
        assert len(rows) == words.size
        assert torch.equal(rows[: words.reserved_base], old[text])
        new = rows[words.reserved_base :]
        assert len(torch.unique(new, dim=0)) == len(new)
        mean = 0.0 if start == "noise" else float(old[text].mean())
        assert float(new.mean()) == pytest.approx(mean, abs=0.01)
        spread = float((old[text] - old[text].mean(0)).square().mean().sqrt())
        about = rows[words.sid_base :] - (old[text].mean(0) if start != "noise" else 0.0)
        assert float(about.std()) == pytest.approx(0.1 * spread if start == "mean" else spread, rel=0.2)
    assert model.config.tie_word_embeddings == tied
    assert model.config.pad_token_id == model.get_input_embeddings().padding_idx == words.control["<pad>"]
    save_language_model(model, tmp_path / "weights")
    again = load_language_model(tmp_path / "weights")
    assert torch.equal(logits(model.eval(), words), logits(again, words))


def test_the_first_layers_of_a_pretrained_model(world: Any, make_foreign: Callable[..., Any], tmp_path: Path) -> None:
    before = make_foreign(tmp_path / "foreign")
    words = make_words(world, tmp_path / "words", text_model=str(tmp_path / "foreign"))
    told = LanguageParams(pretrained=str(tmp_path / "foreign"), pretrained_layers=2)
    model = build_language_model(told, words, 1)
    assert model.config.num_hidden_layers == len(model.model.layers) == len(model.config.layer_types) == 2
    for name, weight in model.model.layers.state_dict().items():
        assert torch.equal(weight, before.model.layers.state_dict()[name])
    with pytest.raises(InputError, match="has 3"):
        build_language_model(told.model_copy(update={"pretrained_layers": 4}), words, 1)


def test_a_pretrained_model_that_is_not_decoded_is_refused_before_its_training(
    world: Any, make_foreign: Callable[..., Any], tmp_path: Path
) -> None:
    make_foreign(tmp_path / "foreign")
    words = make_words(world, tmp_path / "words", text_model=str(tmp_path / "foreign"))
    config = tmp_path / "foreign" / "config.json"
    config.write_text(config.read_text().replace('"qwen3"', '"granite"'))
    with pytest.raises(InputError, match=r"of type granite, which nothing here decodes; choose one of .*qwen3"):
        build_language_model(LanguageParams(pretrained=str(tmp_path / "foreign")), words, 1)


def test_a_quantizer_of_other_levels_is_refused(words: Vocabulary, tmp_path: Path) -> None:
    from models.semantic_ids.frozen_quantizer import Quantizer

    Quantizer("rq_kmeans", {"text": 5}, (4, 2), {}, {}).save(tmp_path)
    with pytest.raises(MixedReleaseError, match="one run"):
        build_language_model(LanguageParams(**SMALL), words, 1, tmp_path)


def test_pretrained_must_be_the_text_model(words: Vocabulary) -> None:
    with pytest.raises(InputError, match=r"vocabulary\.text_model"):
        build_language_model(LanguageParams(pretrained="somebody/something"), words, seed=1)


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"heads": 4, "kv_heads": 3}])
def test_sizes_that_do_not_divide_are_refused(words: Vocabulary, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="heads"):
        build_language_model(LanguageParams(**{**SMALL, **sizes}), words, seed=1)


def test_bad_weights_are_refused(words: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="safetensors"):
        load_language_model(tmp_path)
    save_language_model(build_language_model(LanguageParams(**SMALL), words, 1), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptArtifactError, match="cut"):
        load_language_model(tmp_path / "cut")


def test_model_and_vocabulary_must_fit(words: Vocabulary) -> None:
    model = build_language_model(LanguageParams(**SMALL), words, 1)
    check_vocabulary(model, words)
    model.resize_token_embeddings(words.size + 1, mean_resizing=False)
    with pytest.raises(MixedReleaseError, match=str(words.size)):
        check_vocabulary(model, words)


def test_threads_come_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("PLUMLINE_THREADS", "3")
    try:
        assert use_threads() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
