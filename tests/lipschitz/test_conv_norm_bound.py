"""ops.conv_norm_bound: above the norm of the dense operator, and near it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.dense import convolution_matrix, matrix_of
from lipschitz.weights import norm, weights
from robustcore import ops


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_bound_holds_and_is_tight(out, inner, h, w, skew, seed):
    kernel = weights(out, inner, h, w, seed=seed)
    if skew:
        kernel = ops.skew_kernel(weights(out, out, h | 1, w | 1, seed=seed)).kernel
        _, inner, h, w = kernel.shape
    bound = float(ops.conv_norm_bound(kernel, 16))
    # Zero padding, and circular on a small and a large image.
    matrices = [matrix_of(lambda x: torch.conv2d(x, kernel, padding=(h // 2, w // 2)), inner, 6, 5)]
    for side in (7, 12):
        symbols = torch.fft.fft2(circular(kernel, side)).permute(2, 3, 0, 1)
        matrices.append(symbols)
    norms = [float(torch.linalg.matrix_norm(m, ord=2).max()) for m in matrices]
    assert max(norms) <= bound
    factor = math.prod(math.cos(math.pi * (k - 1) / 32) for k in (h, w))
    grid = torch.fft.fft2(circular(kernel, 16)).permute(2, 3, 0, 1)
    expected = float(torch.linalg.matrix_norm(grid, ord=2).max()) / factor
    assert expected <= bound * (1 + 1e-12)
    assert bound <= expected * (1 + 1e-6) + 1e-300


def circular(kernel, side):
    """The kernel wrapped onto a torus of that side."""
    wrapped = kernel.new_zeros(*kernel.shape[:2], side, side)
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            wrapped[:, :, i % side, j % side] += kernel[:, :, i, j]
    return wrapped


def test_published_bound_is_looser():
    m = weights(32, 32, 3, 3) / math.sqrt(32)
    kernel, norms = ops.skew_kernel(m)
    kernel = 0.7 * kernel / norms.min()
    true = norm(convolution_matrix(kernel, 5, 5))
    bound = float(ops.conv_norm_bound(kernel))
    assert true < bound < 1.1 * true + 0.1
    assert float(ops.conv_spectral_bound(kernel)) == pytest.approx(2.1)


def test_batches_and_degenerate_kernels():
    kernels = torch.stack([weights(3, 2, 3, 3, seed=s) for s in range(4)]).reshape(2, 2, 3, 2, 3, 3)
    each = [[float(ops.conv_norm_bound(k)) for k in row] for row in kernels]
    assert ops.conv_norm_bound(kernels).tolist() == each
    assert ops.conv_norm_bound(kernels).dtype == torch.float64
    assert float(ops.conv_norm_bound(torch.zeros(2, 2, 3, 3))) == 0
    assert float(ops.conv_norm_bound(1e-200 * weights(2, 2, 3, 3))) < 1e-198
    one = weights(4, 4, 1, 1)
    assert float(ops.conv_norm_bound(one)) == pytest.approx(norm(one[:, :, 0, 0]), rel=1e-6)
    for bad in (float("inf"), float("nan")):
        broken = torch.zeros(2, 2, 1, 1)
        broken[0, 0] = bad
        assert not math.isfinite(float(ops.conv_norm_bound(broken)))
    # Many equal eigenvalues: every frequency is a maximum.
    identity = torch.eye(5).reshape(5, 5, 1, 1)
    assert float(ops.conv_norm_bound(identity)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 2, 3, 3), 2), ValueError, "grid: got 2, want an int in .3, "),
        ((torch.zeros(2, 3, 3),), ValueError, "kernel: got shape"),
        ((None,), TypeError, "kernel: got NoneType"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.conv_norm_bound(*arguments)
