"""Models: built, adopted, saved, loaded, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.language import (
    LanguageParams,
    build_language_model,
    check_vocabulary,
    load_language_model,
    save_language_model,
    use_threads,
)
from models.pretrained import pretrained_source
from models.vocabulary import Vocabulary, VocabularyParams
from models.vocabulary import run as run_vocabulary
from plumline.artifact import list_files, sha256_file, write_json
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


def test_pretrained_is_extended(world: Any, tmp_path: Path) -> None:
    """A folder with model and tokenizer; its text rows stay, SIDs get rows of their own, all different."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    foreign = tmp_path / "foreign"
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(foreign)
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )  # 300 rows for 256 tokens: padded, as many are
    before = AutoModelForCausalLM.from_config(config)
    save_language_model(before, foreign)

    (tmp_path / "vocabulary").mkdir()
    told = VocabularyParams(text_model=str(foreign))
    inputs = {name: getattr(world, name) for name in ("catalog", "histories", "sids")}
    run_vocabulary(told, **inputs, base=None, out=tmp_path / "vocabulary")
    words = Vocabulary.load(tmp_path / "vocabulary")
    assert words.reserved_base == 256
    model = build_language_model(LanguageParams(pretrained=str(foreign)), words, seed=1)
    rows = model.get_input_embeddings().weight
    assert len(rows) == words.size
    assert torch.equal(rows[:256], before.get_input_embeddings().weight[:256])
    assert len(torch.unique(rows[words.sid_base :], dim=0)) == words.space.num_tokens


def test_pretrained_must_be_the_text_model(words: Vocabulary) -> None:
    with pytest.raises(InputError, match=r"vocabulary\.text_model"):
        build_language_model(LanguageParams(pretrained="somebody/something"), words, seed=1)


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"heads": 4, "kv_heads": 3}])
def test_sizes_that_do_not_divide_are_refused(words: Vocabulary, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="heads"):
        build_language_model(LanguageParams(**{**SMALL, **sizes}), words, seed=1)


def test_pretrained_source(tmp_path: Path) -> None:
    assert pretrained_source("owner/name").options == {}
    with pytest.raises(InputError, match=r"\.gguf"):
        pretrained_source(str(tmp_path))
    (tmp_path / "model.Q4.gguf").touch()
    assert pretrained_source(str(tmp_path)).options["gguf_file"] == "model.Q4.gguf"
    write_json(tmp_path / "config.json", {})
    assert "gguf_file" not in pretrained_source(str(tmp_path)).options


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
