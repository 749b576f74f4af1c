"""What a frozen quantiser clips, and which codebooks count as collapsed if nobody says otherwise."""

import numpy as np
import pytest

from models.semantic_ids.frozen_quantizer import Quantizer, QuantizerParams
from models.semantic_ids.quantizer import refuse_collapse
from models.semantic_ids.vectors import Vectors
from plumline.errors import RefusedError


def report(usage: float, evenness: float) -> dict:
    level = {"size": 1000, "used": round(1000 * usage), "usage": usage, "perplexity": 1000 * evenness}
    return {"num_items": 4000, "levels": [level]}


def test_half_of_the_codes_in_use_and_a_fifth_of_their_evenness_are_enough() -> None:
    refuse_collapse(report(0.5, 0.2), QuantizerParams(codebooks=(1000,)))


@pytest.mark.parametrize(("usage", "evenness"), [(0.499, 0.2), (0.5, 0.199)])
def test_less_is_a_collapse(usage: float, evenness: float) -> None:
    with pytest.raises(RefusedError, match="level 1 uses"):
        refuse_collapse(report(usage, evenness), QuantizerParams(codebooks=(1000,)))


def test_values_count_up_to_four_times_what_was_seen_in_training() -> None:
    """One number a vector, and codes at 0, 1, 2 … 9: beyond the limit all vectors are the same."""
    one, nothing = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    weights = {"mean.0": nothing, "scale.0": np.ones(1, np.float32), "project.weight": one, "project.bias": nothing}
    weights["codebooks.0"] = np.arange(10, dtype=np.float32)[:, None]
    quantizer = Quantizer.freeze("rq_kmeans", {"x": 1}, (10,), weights, {"input": 1.0, "latent": 16.0})
    values = np.array([[1.0], [3.0], [4.0], [5.0], [8.0]], np.float32)
    vectors = Vectors(list("abcde"), {"x": values}, {"x": np.ones(5, bool)})
    assert quantizer.encode(vectors).ravel().tolist() == [1, 3, 4, 4, 4]
