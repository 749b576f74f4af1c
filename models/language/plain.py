"""The forward pass of a Llama or a Qwen3 in plain torch, for a process that answers once and ends.

Not a stage. Importing transformers takes longer than all else that one answer needs (docs/experiments.md), and of it a
beam search uses nothing but the forward pass of its one architecture. The operations are Hugging Face's
(`modeling_llama.py`, `modeling_qwen3.py` of transformers 5 with sdpa attention) in their order, so the numbers are
theirs but for the last bits, which hang on where in memory weights lie (tests compare both). Whatever differs from the
plain case (biases, scaled rotary embeddings, sliding windows, another family) is not attempted: `load_plain` says None,
and the caller takes the library.

Shapes: B rows, T tokens, K keys, H heads, G key and value heads, D width of a head, W hidden width.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from plumline.errors import CorruptArtifactError

_FAMILIES = ("llama", "qwen3")
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
    "vocab_size",
)  # fmt: skip
_WANTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}


class _Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: SimpleNamespace, place: int) -> None:
        super().__init__()
        self.place, self.width = place, config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        queries, keys = (heads * self.width for heads in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        normed = config.model_type == "qwen3"
        self.q_norm: nn.Module = _Norm(self.width, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm: nn.Module = _Norm(self.width, config.rms_norm_eps) if normed else nn.Identity()

    def forward(self, x_BTW: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        heads = (*x_BTW.shape[:-1], -1, self.width)
        query = _rotate(self.q_norm(self.q_proj(x_BTW).view(heads)).transpose(1, 2), rotary)
        key = _rotate(self.k_norm(self.k_proj(x_BTW).view(heads)).transpose(1, 2), rotary)
        value = self.v_proj(x_BTW).view(heads).transpose(1, 2)
        key, value = cache.update(key, value, self.place)
        num_queries = query.shape[2]
        shared: dict[str, Any] = {}
        if self.groups > 1:
            if mask is None and self.width <= 256:
                shared = {"enable_gqa": True}
            elif num_queries == 1:  # the heads of a group as queries of its one head
                query = query.reshape(len(query), -1, self.groups, self.width)
            else:
                key, value = (part.repeat_interleave(self.groups, dim=1) for part in (key, value))
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=self.width**-0.5,
            is_causal=mask is None and num_queries > 1,
            **shared,
        )
        out = out.reshape(len(out), -1, num_queries, self.width).transpose(1, 2)
        projected: Tensor = self.o_proj(out.reshape(*x_BTW.shape[:-1], -1))
        return projected


class _Mlp(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class _Layer(nn.Module):
    def __init__(self, config: SimpleNamespace, place: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(config, place), _Mlp(config)
        self.input_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class PlainBackbone(nn.Module):
    """Tokens → hidden states; named and called as `LlamaModel` is, as far as `models/retrieval/decoder.py` goes."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        rows = torch.empty(config.vocab_size, config.hidden_size)  # drawing them on "meta" would import torch._dynamo
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=rows)
        self.layers = nn.ModuleList(_Layer(config, place) for place in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = True,
    ) -> SimpleNamespace:
        """Hidden states of new tokens after those of the cache.

        input_ids, position_ids: (B, T); or what stands for the tokens, inputs_embeds: (B, T, W). attention_mask: (B, K)
        of zeros where a token is padding, for a cache that is empty yet; or (B, 1, T, K) to be added; None: all before.
        past_key_values: has update(keys, values, layer).
        """
        del use_cache
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        assert position_ids is not None
        mask = attention_mask
        if mask is not None and mask.ndim == 2:
            mask = None if bool(mask.all()) else _causal(mask.bool())
        rotary = self._rotary(position_ids, x.dtype)
        for layer in self.layers:
            x = layer(x, rotary, mask, past_key_values)
        return SimpleNamespace(last_hidden_state=self.norm(x))

    def _rotary(self, positions_BT: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        width, base = self.config.head_dim, self.config.rope_parameters["rope_theta"]
        places = torch.arange(0, width, 2, dtype=torch.float, device=positions_BT.device)
        angles = positions_BT[..., None].float() * (1.0 / (base ** (places / width)))
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(kind)[:, None], both.sin().to(kind)[:, None]


class PlainModel(nn.Module):
    """A backbone and its output layer, with the accessors of a `PreTrainedModel` that a decoder uses."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.model = PlainBackbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def base_model(self) -> PlainBackbone:
        """The model without its output layer."""
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        """One row a token."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.lm_head


def load_plain(
    folder: Path, device: torch.device | str = "cpu", precision: Literal["float32", "bfloat16"] = "float32"
) -> PlainModel | None:
    """What `models.language.model.load_language_model` reads, without transformers; None if it is no plain case.

    Raises CorruptArtifactError if there are no weights, or if they do not fit their configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not _is_plain(raw) or not path.is_file():  # in shards, or not there: the library says
            return None
        config = SimpleNamespace(**{**raw, "layer_types": None, "_attn_implementation": "sdpa"})
        weights = load_file(path)
        with torch.device("meta"):  # nothing is initialised that is overwritten at once
            model = PlainModel(config)
        model.load_state_dict(weights, strict=not config.tie_word_embeddings, assign=True)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CorruptArtifactError(f"{folder}: {' '.join(str(error).split())[:300]}") from None
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if absent := [name for name, values in model.named_parameters() if values.is_meta]:
        raise CorruptArtifactError(f"{folder}: weights lack {absent[0]}; train again")
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return model.to(device=device, dtype=kind).eval().requires_grad_(False)


def _is_plain(config: dict[str, Any]) -> bool:
    rotary = config.get("rope_parameters") or {}
    return (
        config.get("model_type") in _FAMILIES
        and all(config.get(name, value) == value for name, value in _WANTED.items())
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and rotary.keys() == {"rope_type", "rope_theta"}
        and rotary["rope_type"] == "default"
        and all(type(config.get(name)) is int for name in _SIZES)
        and isinstance(config.get("rms_norm_eps"), float)
        and isinstance(config.get("tie_word_embeddings"), bool)
        and not config.keys() & {"partial_rotary_factor", "quantization_config"}
    )


def _causal(seen_BK: Tensor) -> Tensor:
    """(B, 1, K, K) bool: each token sees itself and what is before it, unless it is padding."""
    places = torch.arange(seen_BK.shape[1], device=seen_BK.device)
    return ((places[:, None] >= places) & seen_BK[:, None])[:, None]


def _rotate(x_BHTD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotary
    half = x_BHTD.shape[-1] // 2
    turned = torch.cat((-x_BHTD[..., half:], x_BHTD[..., :half]), dim=-1)
    return (x_BHTD * cos) + (turned * sin)
