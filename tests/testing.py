"""What every op has to pass, and the tolerances, in one place."""

import math

import pytest
import torch
from hypothesis import strategies as st

from robustcore import build_info

# Of kernels for AVX2 and AVX-512 only: torch's own ops do the work elsewhere.
needs_vectors = pytest.mark.skipif(build_info()["simd"] == "baseline", reason="no baseline kernel")

# Of a result against its float64 reference, relative and absolute.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def assert_close(actual, expected, dtype=None):
    """actual is near the float64 reference, as near as its dtype allows."""
    tolerance = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance
    )


def assert_same(actual, expected):
    """Equal to the bit, NaN included, and equally laid out."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True, check_device=False)


def check_gradients(fn, *inputs):
    """First and second derivatives of fn against finite differences; inputs are float64."""
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


def check_repeatable(fn):
    """The same bits at every call, on any number of threads."""
    threads = torch.get_num_threads()
    try:
        expected = fn()
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert_same(fn(), expected)
    finally:
        torch.set_num_threads(threads)


def relayouts(t):
    """t's values in the memory layouts that models produce, by name."""
    n = t.dim()
    padded = t.new_full([s + 3 for s in t.shape], float("nan"))
    inner = padded[tuple(slice(1, 1 + s) for s in t.shape)]
    inner.copy_(t)
    doubled = t.new_full([*t.shape[:-1], 2 * t.shape[-1]], float("nan"))
    doubled[..., ::2] = t
    layouts = {
        "contiguous": t.contiguous(),
        "slice of a larger tensor": inner,
        "every other element": doubled[..., ::2],
        "transposed": t.transpose(0, n - 1).contiguous().transpose(0, n - 1),
        "flipped dimensions": t.permute(*range(n)[::-1]).contiguous().permute(*range(n)[::-1]),
    }
    if n == 4:
        layouts["channels last"] = t.contiguous(memory_format=torch.channels_last)
    return layouts


def shapes(min_dims=1, max_dims=5, max_side=9):
    """Hypothesis strategy: tensor shapes, empty and size-1 dimensions included."""
    return st.lists(st.integers(0, max_side), min_size=min_dims, max_size=max_dims)


def three_digits_down(value):
    """How a table shows a radius: 3 significant digits, not above it."""
    text = f"{value:.3}"
    if float(text) > value:
        text = f"{float(text) - 10 ** (math.floor(math.log10(value)) - 2):.3}"
    assert 0.99 * value <= float(text) <= value
    return text
