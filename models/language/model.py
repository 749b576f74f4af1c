"""Build, adopt, load and save the causal language model. Not a stage: `cpt`, `sft` and serving call it.

Two sources, one path: a from-scratch Llama or Qwen3 configuration, or any pre-trained causal LM
(`models.language.pretrained`), whole or its first layers, with all of its text rows or those that a trimmed vocabulary
kept. Where the rows of reserved tokens start stands in `models.language.row_init`. Weights lie as safetensors; nothing
is unpickled and no remote code runs. torch and transformers are imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from models.language.pretrained import FAMILIES, Source, open_source
from models.language.row_init import RowStart, read_codebooks, start_rows
from models.language.words import Vocabulary
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, MixedReleaseError
from plumline.settings import get_settings
from plumline.stage import Params, hash_seed, num_cores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class LanguageParams(Params):
    """The language model: `pretrained`, or the sizes of one from scratch (ignored with `pretrained`)."""

    pretrained: str | None = None
    """Hugging Face id, local folder, folder with a .gguf file, or `smollm` (the extra plumline[smollm]); equal to
    vocabulary.text_model; null: from scratch."""
    pretrained_layers: int | None = Field(default=None, ge=1)
    """Take only the first so many layers of the pre-trained model; null: all."""
    sid_init: RowStart = "codebook"
    """Where the rows of reserved tokens start. `codebook`: at the mean of the text rows plus the quantizer's code,
    projected and scaled to their spread; `titles`: at the text rows of the titles of a code's items, which is what a
    pre-trained model can read; `mean`: near that mean; `noise`: drawn as any initial weight."""
    architecture: Literal["llama", "qwen3"] = "llama"
    """Configuration of a model from scratch."""
    hidden: int = Field(default=128, ge=1)
    """Width of the residual stream."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; divides hidden."""
    kv_heads: int = Field(default=4, ge=1)
    """Key and value heads; divides heads."""
    intermediate: int = Field(default=384, ge=1)
    """Width of the feed-forward block."""
    max_positions: int = Field(default=2048, ge=1)
    """Longest sequence in tokens."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Attention dropout (the only dropout these architectures have)."""
    tied: bool = True
    """Whether the output head shares the embedding matrix."""
    init_std: float = Field(default=0.02, gt=0.0)
    """Standard deviation of the initial weights of a model from scratch."""
    embedding_std: float | None = Field(default=None, gt=0.0)
    """The same for the embeddings alone; null: init_std. A small model trained for minutes starts better wide."""


def use_threads() -> int:
    """Set torch's threads to the settings' number, or to half of the cores of this process, and return it.

    Half: threads that wait for one another at every operation lose more to a busy core than they gain (a loop of two
    threads beside another process was several times slower than one thread; alone it was 7% faster).
    """
    import torch

    threads = get_settings().threads or max(1, num_cores() // 2)
    torch.set_num_threads(threads)  # sums depend on the split among threads, so equal losses need equal numbers
    return threads


def pick_device() -> "torch.device":
    """The device that the settings name; `auto` is the GPU where there is one."""
    import torch

    wanted = get_settings().device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def build_language_model(
    params: LanguageParams, vocabulary: Vocabulary, seed: int, quantizer: Path | None = None
) -> "PreTrainedModel":
    """A model that knows the vocabulary: float32, on the CPU, with `vocabulary.size` embeddings.

    quantizer: artifact whose codes the SIDs' rows start from; None: nothing is known of them, so all reserved rows
    start from noise, unless `sid_init` is `titles`. Raises InputError or MixedReleaseError if sizes or sources do not
    fit.
    """
    import torch

    torch.manual_seed(seed)
    if params.pretrained is None:
        model, text = _from_scratch(params, vocabulary)
    elif vocabulary.text_model != params.pretrained:
        raise InputError(
            f"cpt.model.pretrained is {params.pretrained} but vocabulary.text_model is {vocabulary.text_model}; "
            "name the same model in both, or null in both"
        )
    else:
        model, text = _from_pretrained(open_source(params.pretrained), params.pretrained_layers), [None, None]
        _take_text_rows(model, vocabulary)
    titles = params.sid_init == "titles"
    if params.sid_init == "noise" or (quantizer is None and not titles):
        return model
    codebooks = None
    if quantizer is not None and params.sid_init == "codebook":
        codebooks = read_codebooks(quantizer, vocabulary)
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings().weight
    start_rows(embedding, vocabulary, codebooks, hash_seed(seed, "rows"), text[0], titles)
    if head is not embedding:
        start_rows(head, vocabulary, codebooks, hash_seed(seed, "rows"), text[1], titles)
    return model


def _from_scratch(
    params: LanguageParams, vocabulary: Vocabulary
) -> tuple["PreTrainedModel", list[tuple[float, float] | None]]:
    """The model, and mean and spread of its embeddings and of its head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if params.hidden % params.heads or params.heads % params.kv_heads:
        raise InputError(
            f"cpt.model: heads {params.heads} must divide hidden {params.hidden}, kv_heads {params.kv_heads} the heads"
        )
    config = AutoConfig.for_model(
        params.architecture,
        vocab_size=vocabulary.size,
        hidden_size=params.hidden,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.kv_heads,
        head_dim=params.hidden // params.heads,
        intermediate_size=params.intermediate,
        max_position_embeddings=params.max_positions,
        attention_dropout=params.dropout,
        tie_word_embeddings=params.tied,
        initializer_range=params.init_std,
        **_control_ids(vocabulary),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if params.embedding_std is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(0.0, params.embedding_std)
    return model, [(0.0, params.embedding_std or params.init_std), (0.0, params.init_std)]


def _control_ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {f"{name}_token_id": vocabulary.control[f"<{name}>"] for name in ("bos", "eos", "pad")}


def _from_pretrained(source: Source, num_layers: int | None) -> "PreTrainedModel":
    """The model as it is, or its first layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    try:
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=False, **source.options)
        if config.model_type not in FAMILIES:
            raise InputError(
                f"cpt.model.pretrained {source.name} is a model of type {config.model_type}, which nothing here "
                f"decodes; choose one of {', '.join(FAMILIES)}"
            )
        if num_layers is not None:
            if num_layers > config.num_hidden_layers:
                raise InputError(
                    f"cpt.model.pretrained_layers is {num_layers}, {source.name} has {config.num_hidden_layers}; "
                    "give fewer, or null for all"
                )
            config.num_hidden_layers = num_layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:num_layers]
            logging.set_verbosity_error()  # it would list every weight of the layers that are left out
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source.name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            **source.options,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"cpt.model.pretrained {source.name}: {' '.join(str(error).split())[:300]}") from None
    finally:
        logging.set_verbosity(verbosity)
    return model


def _take_text_rows(model: "PreTrainedModel", vocabulary: Vocabulary) -> None:
    """Give a pre-trained model the vocabulary's tokens: its own rows for text, noise for what is reserved."""
    import torch

    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    matrices = [module.weight.detach() for module in modules]
    rows = torch.from_numpy(vocabulary.text_rows)
    if len(matrices[0]) <= int(rows.max()):
        raise InputError(
            f"cpt.model.pretrained {vocabulary.text_model}: {len(matrices[0])} embeddings, its tokenizer has "
            f"{int(rows.max()) + 1} tokens; take both from one model"
        )
    kept = [matrix[rows] for matrix in matrices]
    std = float(getattr(model.config, "initializer_range", None) or 0.02)
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        for module, old in zip((embedding, head), kept, strict=True):
            if module is embedding or module.weight is not embedding.weight:
                module.weight[: vocabulary.reserved_base] = old
                module.weight[vocabulary.reserved_base :].normal_(0.0, std)
    # The old ids of these tokens are other tokens now, and the one of padding gets no gradient.
    for name, number in _control_ids(vocabulary).items():
        setattr(model.config, name, number)
        if model.generation_config is not None:
            setattr(model.generation_config, name, number)
    embedding.padding_idx = vocabulary.control["<pad>"]


def save_language_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write config and safetensors."""
    model.config._name_or_path = ""  # else the path of this machine would stand in the artifact
    model.save_pretrained(folder)


def load_language_model(
    folder: Path, device: "torch.device | str" = "cpu", precision: Literal["float32", "bfloat16"] = "float32"
) -> "PreTrainedModel":
    """Read what `save_language_model` wrote, in evaluation mode. precision: of the weights from now on.

    Raises MissingArtifactError if there are no weights, CorruptArtifactError if they do not fit their configuration.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise MissingArtifactError(
            f"{folder}: no config.json with model.safetensors beside it; run the stage that trains"
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[precision],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CorruptArtifactError(f"{folder}: {' '.join(str(error).split())[:300]}") from None
    model, found = loaded
    if found["missing_keys"]:
        raise CorruptArtifactError(f"{folder}: weights lack {sorted(found['missing_keys'])[0]}; train again")
    return model.to(device).eval()


def check_vocabulary(model: "PreTrainedModel", vocabulary: Vocabulary) -> None:
    """Raise MixedReleaseError unless the model has one embedding a token of this vocabulary."""
    rows = model.get_input_embeddings().num_embeddings
    if rows != vocabulary.size:
        raise MixedReleaseError(
            f"the model knows {rows} tokens, the vocabulary {vocabulary.size}; take both from one run"
        )
