"""What a model says where nothing holds it to SIDs: every token of its vocabulary may follow. A measure, never served.

Two ways: draws, whose shares are shares of the model's probability, and the best of a beam search, which is what a
`generate` without a constraint would return. Where each leaves the SIDs is said by the level: a text token, a control
token or a code of another level leaves as much as a code that no live item has there.

Shapes: B requests, K draws or beams, L levels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.retrieval.decoder import Prompt
from models.retrieval.item_decoder import open_decoder

if TYPE_CHECKING:
    from models.language.words import Vocabulary
    from models.retrieval.live_index import Epoch


@torch.inference_mode()
def draw_tokens(model: Any, prompts: Sequence[Prompt], uniforms: np.ndarray, device: torch.device | str) -> np.ndarray:
    """Independent draws of L tokens after each prompt from the model's own distribution.

    uniforms: (B, K, L) in [0, 1), one a token, by which it is drawn, so that no request depends on its batch. Returns
    token ids, (B, K, L) int64.
    """
    num_rows, num_draws, length = uniforms.shape
    decoder = open_decoder(model, prompts, num_draws * (length - 1), device)
    parents = torch.zeros(num_rows, num_draws, dtype=torch.int64, device=device)
    drawn = []
    for step in range(length):
        logp = decoder.log_probabilities(0, _vocabulary_size(model), over_slice=False)
        reached = logp.double().exp().cumsum(-1).expand(-1, num_draws, -1).contiguous()
        wanted = torch.from_numpy(np.ascontiguousarray(uniforms[:, :, step, None])).to(device) * reached[..., -1:]
        token = torch.searchsorted(reached, wanted, right=True)[..., 0].clamp(max=reached.shape[-1] - 1)
        drawn.append(token)
        if step + 1 < length:
            decoder.append(parents, token)
            parents = torch.arange(num_draws, device=device).expand(num_rows, -1)
    return torch.stack(drawn, dim=-1).cpu().numpy()


@torch.inference_mode()
def best_tokens(
    model: Any, prompts: Sequence[Prompt], length: int, width: int, device: torch.device | str
) -> np.ndarray:
    """The `width` most probable sequences of `length` tokens that a beam search finds, best first.

    Returns token ids, (B, K, L) int64.
    """
    decoder = open_decoder(model, prompts, width * (length - 1), device)
    score = torch.zeros(len(prompts), 1, dtype=decoder.score_type, device=device)
    tokens = torch.zeros(len(prompts), 1, 0, dtype=torch.int64, device=device)
    for step in range(length):
        logp = decoder.log_probabilities(0, _vocabulary_size(model), over_slice=False) + score[..., None]
        score, place = logp.flatten(1).topk(min(width, logp[0].numel()))
        parent, token = place // logp.shape[-1], place % logp.shape[-1]
        tokens = torch.cat([tokens.gather(1, parent[..., None].expand(-1, -1, step)), token[..., None]], dim=-1)
        if step + 1 < length:
            decoder.append(parent, token)
    return tokens.cpu().numpy()


def leaves_at(tokens: np.ndarray, vocabulary: Vocabulary, epoch: Epoch) -> np.ndarray:
    """The level, from 1, at which each sequence is no longer a SID of a live item; 0 for those that are one.

    tokens: (…, L) token ids. Returns (…) int64.
    """
    space = vocabulary.space
    codes = tokens.reshape(-1, space.num_levels) - vocabulary.sid_base - np.asarray(space.offsets)
    codes = np.where((codes >= 0) & (codes < np.asarray(space.sizes)), codes, -1)
    segments = [segment for segment in (epoch.base, epoch.delta) if segment is not None]
    depth = np.max([segment.index.depth_of(codes) for segment in segments], axis=0)
    whole = depth == space.num_levels
    depth[whole] = np.where(epoch.has_sids(codes[whole]), space.num_levels, space.num_levels - 1)
    return np.where(depth == space.num_levels, 0, depth + 1).reshape(tokens.shape[:-1])


def _vocabulary_size(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
