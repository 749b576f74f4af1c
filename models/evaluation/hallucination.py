"""How often the model would name what is not there, if nothing held it: hallucination over the whole vocabulary.

Not a stage: a part of `models/evaluation/scores.py`. What is served is constrained and cannot hallucinate; this says
how much of the model's probability the constraint has to throw away, and at which level it goes astray. A text token
and a code of another level count as much as a SID of no live item (PLUM 2.3 speaks of such SIDs: below 5% after SFT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.evaluation import metrics
from plumline.stage import hash_seed

if TYPE_CHECKING:
    from models.evaluation.queries import Ruler
    from models.retrieval.retriever import Request, Retriever

NUM_DRAWS = 32
_BATCH = 8


def measure_hallucination(
    retriever: Retriever, requests: Sequence[Request], users: Sequence[str], ruler: Ruler, *, k: int, width: int
) -> dict[str, Any]:
    """hallucination_rate: the share of the model's probability that is on no SID of a live item (NUM_DRAWS draws a
    request). hallucination_by_level: the same by the level, from 1, at which it leaves; they sum to the rate.
    hallucination_best: the share of no live item's SID among the k best of a beam search without the index. Standard
    errors by bootstrap over users (`_se`). requests: at least one. users: who asks, one a request.
    """
    from models.retrieval.free_search import best_tokens, draw_tokens, leaves_at

    words, levels = retriever.vocabulary, retriever.vocabulary.space.num_levels
    prompts = [retriever.prompt(request).read for request in requests]
    drawn, best = np.zeros((len(prompts), NUM_DRAWS, levels), np.int64), np.zeros((len(prompts), k, levels), np.int64)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for batch in (order[at : at + _BATCH] for at in range(0, len(order), _BATCH)):
        uniforms = [np.random.default_rng(hash_seed(ruler.seed, n)).random((NUM_DRAWS, levels)) for n in batch]
        asked = [prompts[number] for number in batch]
        drawn[batch] = draw_tokens(retriever.model, asked, np.stack(uniforms), retriever.device)
        best[batch] = best_tokens(retriever.model, asked, levels, max(width, k), retriever.device)[:, :k]
    left, left_best = (leaves_at(tokens, words, retriever.epoch) for tokens in (drawn, best))
    by_level = [float(np.mean(left == level)) for level in range(1, levels + 1)]
    found: dict[str, Any] = {"hallucination_by_level": by_level}
    for name, astray in (("hallucination_rate", left > 0), ("hallucination_best", left_best > 0)):
        rates = metrics.bootstrap_mean(
            astray.mean(axis=1), np.asarray(users), seed=ruler.seed, num_samples=ruler.num_samples
        )
        found |= {name: rates.mean, f"{name}_se": rates.standard_error}
    return found
