"""Fixed-point assignment: exact whatever the order of summation, and the float32 search never decides a near tie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.assignment import Codebook, Layer, bits_for, exponent_for, in_threads, to_fixed


def slow_nearest(residual: np.ndarray, codebook: np.ndarray) -> list[int]:
    """Python's own integers: no rounding anywhere; the lower code on a tie."""
    rows = []
    for row in residual.astype(int).tolist():
        distances = [
            sum((a - b) ** 2 for a, b in zip(row, code, strict=True)) for code in codebook.astype(int).tolist()
        ]
        rows.append(distances.index(min(distances)))
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5, 40]), st.sampled_from([3, 2**12, 2**20]), st.booleans())
def test_nearest_is_that_of_exact_arithmetic(seed: int, num_codes: int, reach: int, close: bool) -> None:
    """With `close`, all codes lie within a few units of one another far from zero: float32 cannot tell them apart."""
    generator = np.random.default_rng(seed)
    residual = generator.integers(-reach, reach + 1, (8, 6)).astype(np.float64)
    codebook = generator.integers(-reach, reach + 1, (num_codes, 6)).astype(np.float64)
    if close:
        codebook = codebook[:1] + generator.integers(-1, 2, (num_codes, 6))
        codebook = np.clip(codebook, -(2**20), 2**20)
    assert Codebook(codebook).nearest(residual).tolist() == slow_nearest(residual, codebook)


def test_nearest_of_nothing_and_of_one_code() -> None:
    assert Codebook(np.ones((4, 3))).nearest(np.zeros((0, 3))).tolist() == []
    assert Codebook(np.zeros((1, 3))).nearest(np.ones((2, 3))).tolist() == [0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 500]), st.booleans())
def test_a_layer_is_exact(seed: int, width: int, relu: bool) -> None:
    generator = np.random.default_rng(seed)
    bits = bits_for(width)
    weight, bias = generator.normal(size=(3, width)), generator.normal(size=3)
    layer = Layer.of(weight, bias, entering=bits - 3, leaving=bits - 6, relu=relu, bits=bits)
    x = to_fixed(generator.normal(size=(4, width)), bits - 3, bits)
    exact = x.astype(int).astype(object) @ layer.weight.T.astype(int).astype(object) + layer.bias.astype(int)
    if relu:
        exact = np.maximum(exact, 0)
    expected = to_fixed(exact.astype(np.float64), layer.shift, bits)
    assert all(abs(value) < 2**53 for value in exact.ravel())
    assert np.array_equal(layer(x), expected)
    order = generator.permutation(width)
    turned = Layer(layer.weight[:, order], layer.bias, layer.shift, relu, bits)
    assert np.array_equal(turned(np.ascontiguousarray(x[:, order])), expected)
    floats = x * 2.0 ** -(bits - 3) @ weight.T + bias
    floats = np.maximum(floats, 0) if relu else floats
    unclipped = np.abs(floats) < 2.0**5
    assert np.allclose((expected * 2.0 ** -(bits - 6))[unclipped], floats[unclipped], atol=0.02 if bits < 20 else 1e-3)


@pytest.mark.parametrize("width", [1, 2, 384, 4096, 10_000, 2**20])
def test_sums_of_products_fit_a_float64(width: int) -> None:
    assert (width + 1) * 2 ** (2 * bits_for(width)) <= 2**53
    assert bits_for(width) == 20 or (width + 1) * 2 ** (2 * bits_for(width) + 2) > 2**52  # no fewer than fit, up to 20


def test_exponents_leave_headroom_and_clip_what_exceeds_it() -> None:
    exponent = exponent_for(3.0, 20, 4.0)
    assert 12 * 2.0**exponent <= 2**20 < 12 * 2.0 ** (exponent + 1)
    assert exponent_for(0.0, 20, 4.0) == 20
    assert to_fixed(np.array([1e9, -1e9, 3.0]), exponent, 20).tolist() == [2**20, -(2**20), 3 * 2**exponent]


def test_threads_keep_the_order_and_raise_what_was_raised() -> None:
    assert list(in_threads(lambda x: x * x, range(50), 3)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // (x - 3), range(9), 2))
