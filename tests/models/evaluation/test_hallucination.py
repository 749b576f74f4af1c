"""The share of the model's probability that is on no live item's SID, against every live SID scored exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.evaluation import hallucination
from models.evaluation.hallucination import measure_hallucination
from models.evaluation.queries import Ruler
from models.retrieval.beam_check import score_all
from models.retrieval.retriever import Request, Retriever

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def speaker(world: Any) -> Retriever:
    """A model that prefers codes to text, as a trained one does."""
    folders = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    retriever = Retriever.load(**folders, weights=world.sft / "weights", device="cpu")
    model, words = copy.deepcopy(retriever.model), retriever.vocabulary
    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[words.sid_base :] = 6.0
    head.weight, head.bias = torch.nn.Parameter(0.1 * head.weight), torch.nn.Parameter(bias)
    return replace(retriever, model=model)


def test_the_rate_is_what_live_sids_lack_of_all_probability(
    speaker: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_draws = 600
    monkeypatch.setattr(hallucination, "NUM_DRAWS", num_draws)
    words = speaker.vocabulary
    requests = [Request(history=[(f"item{n:02d}", 0), (f"item{23 - n:02d}", n * DAY_MS)]) for n in range(12)]
    users = [f"user{n}" for n in range(12)]
    found = measure_hallucination(speaker, requests, users, Ruler(3, 50), k=10, width=10)
    live = np.unique([speaker.codes_of[item] for item in speaker.live_items], axis=0)
    about = {"space": words.space, "sid_base": words.sid_base, "device": "cpu"}
    wanted, first = [], []
    for request in requests:
        prompt = speaker.prompt(request).token_ids
        wanted.append(1 - np.exp(score_all(speaker.model, prompt, live, **about)).sum())
        with torch.inference_mode():
            logits = speaker.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        kept = words.sid_base + np.unique(live[:, 0])
        first.append(1 - float(torch.softmax(logits.double(), dim=-1)[kept].sum()))
    by_level = found["hallucination_by_level"]
    for rate, share in ((np.mean(wanted), found["hallucination_rate"]), (np.mean(first), by_level[0])):
        assert 0.3 < rate < 0.99
        assert share == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / (12 * num_draws)))
    assert len(by_level) == 3
    assert sum(by_level) == pytest.approx(found["hallucination_rate"])
    assert 0 < found["hallucination_rate_se"] < 0.05
    assert 0 <= found["hallucination_best"] <= 1
    assert found == measure_hallucination(speaker, requests, users, Ruler(3, 50), k=10, width=10)
