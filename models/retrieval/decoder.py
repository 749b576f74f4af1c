"""A Hugging Face decoder and its one cache: the prompt once, then trees of tokens over it.

Not a stage. Every forward pass after the prompt's is one row a request: the tokens of all beams stand side by side,
and a mask lets each see the prompt, its ancestors and itself (tree attention). Nothing of the cache is copied, repeated
or reordered when beams fork and die; the room for all tokens to come is allocated with the prompt.

Which models: causal LMs of `FAMILIES` (SmolLM is a Llama), whose layers see everything or a sliding window
(`layer_types`); Gemma 2 with eager attention, as it caps its attention logits, which sdpa cannot. A window is a mask
here, since tokens of the tree are no sequence.

Shapes: B requests, K new tokens a request, P prompt tokens, T tokens in the cache, D hidden, V vocabulary, S codes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from models.language.places import Places
from models.language.plain import PlainModel
from models.language.pretrained import FAMILIES
from plumline.errors import InputError, PlumlineError

Prompt = Sequence[int] | Places
"""Token ids, or places for a model that reads them."""
_KINDS = {"full_attention", "sliding_attention"}
_ATTENTION = ("sdpa", "eager")


class Room:
    """Keys and values of one layer, (B, heads, capacity, head size), written in place instead of concatenated."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens, (B, heads, K, head size); returns those of all tokens."""
        if self.keys is None or self.values is None:
            rows, heads, _, _ = keys.shape
            self.keys = keys.new_empty(rows, heads, self.capacity, keys.shape[-1])
            self.values = values.new_empty(rows, heads, self.capacity, values.shape[-1])
        end = self.used + keys.shape[-2]
        assert end <= self.capacity, f"{end} tokens in a cache made for {self.capacity}"
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class _Rooms:
    """The cache of a plain model (`models/language/plain.py`): one room a layer."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._rooms = rooms

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rooms[layer].update(keys, values)


def _library_cache(rooms: Sequence[Room]) -> Any:
    """The same rooms as a Hugging Face cache."""
    from transformers.cache_utils import Cache

    return Cache(layers=[_library_layer()(room) for room in rooms])


@functools.cache
def _library_layer() -> Any:
    """A layer of a Hugging Face cache that is a room. transformers is there already: the model is one of its own."""
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):
        def __init__(self, room: Room) -> None:
            super().__init__()
            self.room, self.is_initialized = room, True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.room.update(key_states, value_states)

        def get_seq_length(self) -> int:
            return self.room.used

    return Layer


@contextlib.contextmanager
def _last_token_only(backbone: Any) -> Iterator[None]:
    """Meanwhile the last layer computes its output for the last token of each row only; the others' is garbage.

    Of a prompt nothing but its keys, its values and its last token's output is ever read. What the last layer puts out
    of its attention and its feed-forward block for that one token, (B, 1, D), is added to the residual stream of
    all tokens. Other threads that run the model meanwhile are left alone.
    """
    layer, owner = next(reversed(getattr(backbone, "layers", [])), None), threading.get_ident()

    def cut(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (inputs[0][:, -1:], *inputs[1:]) if threading.get_ident() == owner else None

    blocks = [getattr(getattr(layer, "self_attn", None), "o_proj", None), getattr(layer, "mlp", None)]
    hooks = [block.register_forward_pre_hook(cut) for block in blocks if block is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_model(model: Any) -> None:
    """Raise InputError unless the model is one of the kinds that are decoded here."""
    config = model.config
    if config._attn_implementation not in _ATTENTION:  # the others take no mask of a tree
        raise InputError(
            f"attention {config._attn_implementation!r}: load the model with attn_implementation='sdpa' (or 'eager')"
        )
    if config.model_type not in FAMILIES:  # others scale their logits or hide their windows, and would be scored wrong
        raise InputError(f"a model of type {config.model_type!r}: the families decoded here are {', '.join(FAMILIES)}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= _KINDS:
        raise InputError(f"layers {sorted(kinds - _KINDS)}: only {sorted(_KINDS)} are decoded here")


class Decoder:
    """The prompts of B requests in the cache, and the hidden states from which the next tokens are read.

    hidden: (B, K, D), of the tokens appended last; at first (B, 1, D), of the prompts' last tokens. score_type: of
    log-probabilities, float32 or more.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], room: int, device: torch.device | str = "cpu") -> None:
        """Run the prompts. room: tokens a request that will be appended, at most, before `rewind`."""
        check_model(model)
        if any(len(prompt) == 0 for prompt in prompts):
            raise InputError("a prompt without tokens: every prompt has at least one (its beginning-of-text token)")
        config = model.config
        self._model = model
        self._backbone, self._head = model.base_model, model.get_output_embeddings()
        self._type = next(self._backbone.parameters()).dtype
        self._softcap = getattr(config, "final_logit_softcapping", None)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        self._window = config.sliding_window if "sliding_attention" in kinds else None
        longest = max(len(prompt) for prompt in prompts)
        self._rooms = [Room(longest + room) for _ in range(config.num_hidden_layers)]
        plain = isinstance(getattr(model, "lm", model), PlainModel)
        self._cache: Any = _Rooms(self._rooms) if plain else _library_cache(self._rooms)
        seen_BP = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):  # padding stands left: the last column is every prompt's last token
            seen_BP[row, longest - len(prompt) :] = True
        self._seen_BP = seen_BP.to(device)
        positions_BP = (self._seen_BP.cumsum(1) - 1).clamp(min=0)
        self._prompt_positions_BP = positions_BP
        self._prompt_length = longest
        self._num_tokens_B = self._seen_BP.sum(1)
        if self._window is None and config._attn_implementation == "sdpa":
            mask: Any = self._seen_BP.long()  # of two dimensions: leaves sdpa its causal kernel where nothing is padded
        else:
            order = torch.arange(longest, device=device)
            causal_BPP = (order[:, None] >= order) & self._seen_BP[:, None]
            causal_BPP |= torch.eye(longest, dtype=torch.bool, device=device)  # padding sees itself, else it is NaN
            mask = self._mask(causal_BPP, positions_BP, positions_BP)
        with _last_token_only(self._backbone):
            self.hidden = self._forward(self._read(prompts, longest, device), mask, positions_BP)[:, -1:]
        self._prompt_hidden = self.hidden
        self.score_type = torch.promote_types(self.hidden.dtype, torch.float32)
        self._depth = 0
        self._tree_BKT = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=device)
        self._tree_positions_BT = torch.zeros(len(prompts), 0, dtype=torch.int64, device=device)

    def log_probabilities(self, first: int, size: int, over_slice: bool) -> torch.Tensor:
        """Of the tokens first … first+size-1 after each of `hidden`. Returns (B, K, size) in `score_type`.

        over_slice: they sum to 1 over these tokens, and only their rows of the output layer are computed; else over the
        whole vocabulary. Raises PlumlineError if the model yields no finite numbers.
        """
        if over_slice and type(self._head) is torch.nn.Linear:
            bias = None if self._head.bias is None else self._head.bias[first : first + size]
            logits = functional.linear(self.hidden, self._head.weight[first : first + size], bias)
            first = 0
        else:
            logits = self._head(self.hidden)
        logits = logits.to(self.score_type)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        slice_BKS = logits[..., first : first + size]
        total_BK1 = torch.logsumexp(slice_BKS if over_slice else logits, dim=-1, keepdim=True)
        if not torch.isfinite(total_BK1).all():
            raise PlumlineError("the model yields numbers that are not finite; its weights cannot be used, train again")
        return slice_BKS - total_BK1

    def append(self, parent_BK: torch.Tensor, token_BK: torch.Tensor) -> None:
        """Run one token a beam; each sees the prompt, what its parent saw, the parent's token and itself.

        parent_BK: int64, place of each one's parent among the tokens appended last (0 at first). token_BK: int64.
        """
        num_rows, num_beams = token_BK.shape
        own_BKK = torch.eye(num_beams, dtype=torch.bool, device=token_BK.device).expand(num_rows, -1, -1)
        inherited = parent_BK[..., None].expand(-1, -1, self._tree_BKT.shape[-1])
        tree_BKT = torch.cat([self._tree_BKT.gather(1, inherited), own_BKK], dim=-1)
        depth, self._depth = self._depth, self._depth + 1
        self.append_tree(token_BK, tree_BKT, torch.full_like(token_BK, depth))

    def append_tree(self, token_BK: torch.Tensor, tree_BKT: torch.Tensor, depth_BK: torch.Tensor) -> None:
        """Run K tokens at once. tree_BKT: bool, which of all appended tokens (these K last) each one sees.

        depth_BK: int64, tokens between each one and the prompt's end.
        """
        positions_BK = self._num_tokens_B[:, None] + depth_BK
        self._tree_BKT = tree_BKT
        self._tree_positions_BT = torch.cat([self._tree_positions_BT, positions_BK], dim=-1)
        prompt_BKP = self._seen_BP[:, None].expand(-1, token_BK.shape[1], -1)
        mask_BKT = torch.cat([prompt_BKP, tree_BKT], dim=-1)
        keys_BT = torch.cat([self._prompt_positions_BP, self._tree_positions_BT], dim=-1)
        self.hidden = self._forward({"input_ids": token_BK}, self._mask(mask_BKT, positions_BK, keys_BT), positions_BK)

    def rewind(self) -> None:
        """Forget all tokens but the prompts'; `hidden` is of their last ones again."""
        self.hidden = self._prompt_hidden
        for layer in self._rooms:
            layer.used = self._prompt_length
        self._depth = 0
        self._tree_BKT = self._tree_BKT.new_zeros(len(self._tree_BKT), 1, 0)
        self._tree_positions_BT = self._tree_positions_BT[:, :0]

    def _mask(self, seen_BKT: torch.Tensor, queries_BK: torch.Tensor, keys_BT: torch.Tensor) -> Any:
        """The mask of every layer, or one a kind of layer."""
        if self._window is None:
            return self._added(seen_BKT)
        near_BKT = queries_BK[..., None] - keys_BT[:, None] < self._window
        return {"full_attention": self._added(seen_BKT), "sliding_attention": self._added(seen_BKT & near_BKT)}

    def _added(self, seen_BKT: torch.Tensor) -> torch.Tensor:
        """As numbers to add, which sdpa would make of a boolean mask in every layer anew, and eager takes it for."""
        zeros = torch.zeros(seen_BKT.shape, dtype=self._type, device=seen_BKT.device)
        return zeros.masked_fill_(~seen_BKT, float("-inf"))[:, None]

    def _read(self, prompts: Any, longest: int, device: torch.device | str) -> dict[str, torch.Tensor]:
        """What the backbone is to read of the prompts, padded on the left."""
        ids_BP = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids_BP[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        return {"input_ids": ids_BP.to(device)}

    def _forward(self, read: dict[str, torch.Tensor], mask: Any, positions: torch.Tensor) -> torch.Tensor:
        out = self._backbone(
            **read, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True
        )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden
