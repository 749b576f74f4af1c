"""What one would use instead of models/retrieval/beam.py, each written as well as it can be; and what no search can do
without.

    generate + prefix function   Hugging Face generate() with num_beams and prefix_allowed_tokens_fn, as its docs show:
                                 a dictionary from prefixes to tokens, or, where the SIDs are too many for a dictionary
                                 of tuples, the children looked up in the CSR arrays of models/retrieval/csr.py, one
                                 walk a call
    generate + trie processor    the same generate() with a LogitsProcessor that masks all beams at once
    cached loop                  the search a good engineer writes in an afternoon: prefill once, repeat the KV cache a
                                 beam, one token a beam and step, log-softmax over the vocabulary, the mask of the
                                 processor, topk over beams × vocabulary, reorder the cache by the parents
    floor                        one prefill and the bare forward passes of the decoded tokens, no search at all

All prompts of a search have one length, so that nobody pays for padding.

Shapes: B requests, K beams, P prompt tokens, L levels, V vocabulary, N = B·K rows, T tokens in the cache, C candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from models.retrieval.beam import Beams
from models.retrieval.csr import Index
from plumline.sid import SidSpace

_DEAD = float("-inf")
PrefixFunction = Callable[[int, Tensor], list[int]]


@dataclass(frozen=True)
class Search:
    """What is asked of everyone: the `width` best SIDs after each prompt. prompts: B lists of P token ids."""

    model: Any
    prompts: list[list[int]]
    space: SidSpace
    sid_base: int
    width: int

    @property
    def num_rows(self) -> int:
        """N, sequences of a search that gives every beam one."""
        return len(self.prompts) * self.width

    @property
    def length(self) -> int:
        """P."""
        return len(self.prompts[0])


def make_dictionary(codes: np.ndarray, space: SidSpace, sid_base: int) -> dict[tuple[int, ...], list[int]]:
    """Prefix of token ids → token ids that may follow. codes: (num_sids, L)."""
    follows: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for sid in space.token_ids(codes, sid_base).tolist():
        for level in range(len(sid)):
            follows[tuple(sid[:level])].add(sid[level])
    return {prefix: sorted(tokens) for prefix, tokens in follows.items()}


def dictionary_function(follows: dict[tuple[int, ...], list[int]], length: int) -> PrefixFunction:
    """prefix_allowed_tokens_fn over a dictionary. length: P. A prefix that is none has no say, its score is -inf."""
    return lambda _, ids: follows.get(tuple(ids[length:].tolist()), [0])


def index_function(index: Index, space: SidSpace, sid_base: int, length: int) -> PrefixFunction:
    """prefix_allowed_tokens_fn over the CSR arrays: no dictionary, but a walk from the root in every call."""
    first_tokens = [sid_base + offset for offset in space.offsets]

    def allowed(_: int, ids: Tensor) -> list[int]:
        tokens, node = ids[length:].tolist(), 0
        for level in range(len(tokens) + 1):
            begin, end = int(index.children[level][node]), int(index.children[level][node + 1])
            children = index.codes[level][begin:end]
            if level == len(tokens):
                break
            at = int(children.searchsorted(tokens[level] - first_tokens[level]))
            if at == len(children) or children[at] != tokens[level] - first_tokens[level]:
                return [0]
            node = begin + at
        return (children.astype(np.int64) + first_tokens[level]).tolist()

    return allowed


class TrieMask:
    """The trie of an Index for many beams at once: no loop over beams, one masked tensor of scores."""

    def __init__(self, index: Index, space: SidSpace, sid_base: int) -> None:
        self.sizes = space.sizes
        self.first_tokens = [sid_base + offset for offset in space.offsets]
        self.codes = [torch.from_numpy(np.asarray(array)) for array in index.codes]
        self.children = [torch.from_numpy(np.asarray(array)) for array in index.children]
        # level → parent · size + code of every node of the next depth, ascending: a step down is a binary search in it
        self.keys = [
            torch.from_numpy(np.repeat(np.arange(len(pointers) - 1), np.diff(pointers)) * size + codes)
            for pointers, codes, size in zip(index.children[:-1], index.codes[:-1], space.sizes[:-1], strict=True)
        ]

    def step(self, node_N: Tensor, token_N: Tensor, level: int) -> Tensor:
        """Node that a token of this level leads to, -1 if none. All (N,) int64."""
        keys = self.keys[level]
        key_N = node_N * self.sizes[level] + token_N - self.first_tokens[level]
        at_N = torch.searchsorted(keys, key_N).clamp(max=len(keys) - 1)
        return torch.where((node_N >= 0) & (keys[at_N] == key_N), at_N, -1)

    def walk(self, tokens_NL: Tensor) -> Tensor:
        """Node of each row of tokens, from the root. tokens: (N, level). Returns (N,) int64."""
        node_N = torch.zeros(len(tokens_NL), dtype=torch.int64)
        for level in range(tokens_NL.shape[1]):
            node_N = self.step(node_N, tokens_NL[:, level], level)
        return node_N

    def apply(self, score_NV: Tensor, node_N: Tensor, level: int) -> Tensor:
        """A new (N, V): the scores of the children of each row's node, -inf elsewhere."""
        begin_N = self.children[level][node_N.clamp(min=0)].long()
        count_N = (self.children[level][node_N.clamp(min=0) + 1].long() - begin_N) * (node_N >= 0)
        row_C = torch.repeat_interleave(count_N)
        child_C = begin_N[row_C] + torch.arange(len(row_C)) - (count_N.cumsum(0) - count_N)[row_C]
        token_C = self.codes[level][child_C].long() + self.first_tokens[level]
        masked_NV = torch.full_like(score_NV, _DEAD)
        masked_NV[row_C, token_C] = score_NV[row_C, token_C]
        return masked_NV


class TrieProcessor(LogitsProcessor):
    """TrieMask for generate(), which hands over whole sequences: every call walks from the root. length: P."""

    def __init__(self, mask: TrieMask, length: int) -> None:
        self.mask, self.length = mask, length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (N, P + level), scores: (N, V). Returns (N, V)."""
        level = input_ids.shape[1] - self.length
        return self.mask.apply(scores, self.mask.walk(input_ids[:, self.length :]), level)


def generate_with_function(search: Search, allowed: PrefixFunction) -> list[Beams]:
    """The first peer."""
    return _generate(search, prefix_allowed_tokens_fn=allowed)


def generate_with_processor(search: Search, mask: TrieMask) -> list[Beams]:
    """The second peer."""
    return _generate(search, logits_processor=LogitsProcessorList([TrieProcessor(mask, search.length)]))


@torch.inference_mode()
def _generate(search: Search, **constraint: Any) -> list[Beams]:
    """Everything that bears on the search is said here, nothing is left to the model's generation_config."""
    num_levels = search.space.num_levels
    out = search.model.generate(
        torch.tensor(search.prompts),
        attention_mask=torch.ones(len(search.prompts), search.length, dtype=torch.int64),
        num_beams=search.width,
        num_return_sequences=search.width,
        max_new_tokens=num_levels,
        do_sample=False,
        early_stopping=False,
        length_penalty=0.0,  # scores are sums, as ours
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        renormalize_logits=False,
        remove_invalid_values=False,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=None,  # no token ends a SID, its length does
        pad_token_id=0,
        output_scores=True,  # else sequences_scores is None
        return_dict_in_generate=True,
        **constraint,
    )
    tokens_NL, score_N = out.sequences[:, search.length :], out.sequences_scores
    return _beams(search, tokens_NL.view(-1, search.width, num_levels), score_N.view(-1, search.width))


@torch.inference_mode()
def cached_loop(search: Search, mask: TrieMask) -> list[Beams]:
    """The third peer. The prompt is run once a request, only its last token's logits are computed."""
    model, width, num_requests = search.model, search.width, len(search.prompts)
    cache = DynamicCache(config=model.config)
    out = model(input_ids=torch.tensor(search.prompts), past_key_values=cache, use_cache=True, logits_to_keep=1)
    logp_NV = out.logits[:, -1].float().log_softmax(-1)
    num_tokens = logp_NV.shape[-1]
    # 1. The first token: one row a request, all its children compete.
    node_N = torch.zeros(num_requests, dtype=torch.int64)
    score_BK, token_BK = mask.apply(logp_NV, node_N, 0).topk(width, dim=-1)
    tokens_BKL = token_BK[..., None]
    node_N = mask.step(node_N.repeat_interleave(width), token_BK.flatten(), 0)
    cache.batch_repeat_interleave(width)
    first_row_B1 = torch.arange(num_requests)[:, None] * width
    for level in range(1, search.space.num_levels):
        # 2. One token a beam.
        out = model(input_ids=token_BK.reshape(-1, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logp_NV = out.logits[:, -1].float().log_softmax(-1)
        total_NV = mask.apply(logp_NV, node_N, level) + score_BK.reshape(-1, 1)
        # 3. The best of beams × vocabulary, and where they come from.
        score_BK, best_BK = total_NV.view(num_requests, -1).topk(width, dim=-1)
        parent_BK, token_BK = best_BK // num_tokens, best_BK % num_tokens
        parents = parent_BK[..., None].expand(-1, -1, level)
        tokens_BKL = torch.cat([tokens_BKL.gather(1, parents), token_BK[..., None]], dim=-1)
        # 4. Node and cache of the parents, unless nothing comes after.
        if level + 1 < search.space.num_levels:
            parent_N = (parent_BK + first_row_B1).flatten()
            node_N = mask.step(node_N[parent_N], token_BK.flatten(), level)
            cache.reorder_cache(parent_N)
    return _beams(search, tokens_BKL, score_BK)


def _beams(search: Search, tokens_BKL: Tensor, score_BK: Tensor) -> list[Beams]:
    """Best first, those with a score of -inf or generate()'s -1e9 left out."""
    codes_BKL = search.space.codes(tokens_BKL.numpy(), search.sid_base)
    return [
        Beams(codes_KL[score_K > -1e8], score_K[score_K > -1e8])
        for codes_KL, score_K in zip(codes_BKL, score_BK.numpy(), strict=True)
    ]


@torch.inference_mode()
def floor(search: Search) -> None:
    """The forward passes that no beam search of this width can do without: each token once, each prompt once.

    No tree and no choice: every beam sees all of the cache, through a mask that is one element in memory. The cache is
    transformers' own; one that is not copied at every step was tried and made no difference above the noise.
    """
    backbone, head = search.model.base_model, search.model.get_output_embeddings()
    num_requests, width = len(search.prompts), search.width
    cache = DynamicCache(config=search.model.config)
    hidden = backbone(input_ids=torch.tensor(search.prompts), past_key_values=cache, use_cache=True).last_hidden_state
    head(hidden[:, -1:])
    tokens_BK = torch.full((num_requests, width), search.sid_base)
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for level in range(search.space.num_levels - 1):
        step = backbone(
            input_ids=tokens_BK,
            attention_mask=seen.expand(num_requests, 1, width, cache.get_seq_length() + width),
            position_ids=torch.full((1, width), search.length + level),
            past_key_values=cache,
            use_cache=True,
        )
        head(step.last_hidden_state)


@dataclass(frozen=True)
class Needs:
    """What a search needs at the least. kv_bytes: KV cache with one row a beam, as both generate() and the loop have.

    loop_bytes: that and one layer twice, while it is copied. generate_bytes: the cache and the activations of the
    prefill, which runs every prompt once a beam (of a small model within a twentieth of what was measured).
    generate_over_floor: arithmetic of generate() over that of the floor.
    """

    kv_bytes: int
    loop_bytes: int
    generate_bytes: int
    generate_over_floor: float

    @staticmethod
    def of(search: Search) -> Needs:
        """From the model's configuration; float32."""
        config, length, later = search.model.config, search.length, search.space.num_levels - 1
        layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        kv_dim = config.num_key_value_heads * head_dim
        query_dim = config.num_attention_heads * head_dim
        kv_bytes = search.num_rows * (length + later) * layers * 2 * kv_dim * 4
        # Widest point of a block: a few tensors of the residual's size and three of the feed-forward's inner ones.
        activations = search.num_rows * length * (4 * hidden + 3 * inner) * 4

        def operations(rows: int, prompts: int, tokens: int) -> float:
            """rows: sequences that decode; prompts: prompts run; tokens: decoded per sequence."""
            weights = layers * hidden * (2 * query_dim + 2 * kv_dim + 3 * inner)
            in_prompts = prompts * length * (weights + layers * query_dim * length)
            in_steps = rows * tokens * (weights + layers * query_dim * 2 * length)
            heads = hidden * config.vocab_size * (prompts + rows * tokens)
            return float(2 * (in_prompts + in_steps + heads))

        ratio = operations(search.num_rows, search.num_rows, later) / operations(
            search.num_rows, len(search.prompts), later
        )
        return Needs(kv_bytes, kv_bytes + kv_bytes // layers, kv_bytes + activations, ratio)
