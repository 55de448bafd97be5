"""ops.skew_kernel, conv_norm_bound, conv_spectral_bound: against dense operators."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipschitz.dense import convolution_matrix, matrix_of, skew_weight
from robustcore import ops
from testing import assert_close, assert_same, check_gradients, relayouts

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def weights(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix.double(), ord=2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 3, 3), (17, 17, 1, 5), (33, 33, 3, 1)])
def test_skew_part(shape, dtype, device):
    m = weights(*shape, dtype=dtype).to(device)
    kernel, norms = ops.skew_kernel(m)
    expected = (m - m.transpose(0, 1).flip(2, 3)) / 2
    assert_close(kernel, (m.double() - m.double().transpose(0, 1).flip(2, 3)) / 2)
    assert_same(kernel, -kernel.transpose(0, 1).flip(2, 3) + 0.0)  # skew to the bit
    for laid in relayouts(m).values():
        assert_same(ops.skew_kernel(laid).kernel, kernel)
    c, _, h, w = shape
    reshapes = [
        expected.permute(0, 2, 1, 3).reshape(c * h, c * w),
        expected.permute(0, 3, 1, 2).reshape(c * w, c * h),
        expected.reshape(c, -1),
        expected.transpose(0, 1).reshape(c, -1),
    ]
    assert norms.tolist() == pytest.approx([norm(r) for r in reshapes], rel=2e-2, abs=1e-6)


def test_skew_convolution_is_skew():
    matrix = convolution_matrix(ops.skew_kernel(weights(3, 3, 5, 3)).kernel, 6, 4)
    assert_same(matrix, -matrix.T)


def test_skew_gradients():
    m = weights(3, 3, 3, 3).requires_grad_()
    check_gradients(lambda m: ops.skew_kernel(m).kernel, m)
    assert torch.autograd.gradcheck(lambda m: ops.skew_kernel(m).norms, m)
    stacked = weights(4, 3, 3, 3, 3)
    mapped = torch.func.vmap(lambda m: ops.skew_kernel(m).kernel, 2)(stacked.movedim(0, 2))
    assert_same(mapped, torch.stack([ops.skew_kernel(m).kernel for m in stacked]))
    torch.library.opcheck(torch.ops.robustcore.skew.default, (m.detach(),))


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


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (2, 5, 1, 1), (3, 3, 2, 4), (6, 1, 5, 3)])
def test_spectral_bound(shape, stride):
    kernel = weights(*shape)
    padding = (shape[2] // 2, shape[3] // 2)
    matrix = matrix_of(
        lambda x: torch.conv2d(x, kernel, stride=stride, padding=padding), shape[1], 8, 7
    )
    bound = ops.conv_spectral_bound(kernel, stride)
    assert norm(matrix) <= float(bound) * (1 + 1e-12)
    check_gradients(lambda k: ops.conv_spectral_bound(k, stride), kernel.requires_grad_())


def test_spectral_bound_of_a_skew_kernel_bounds_the_norm():
    kernel = skew_weight(4, 5)
    assert norm(convolution_matrix(kernel, 6, 6)) <= float(ops.conv_spectral_bound(kernel))


K = torch.zeros(2, 2, 3, 3)
BAD = [
    (lambda: ops.skew_kernel(torch.zeros(2, 3, 3, 3)), ValueError, r"weight: got shape \[2, 3,"),
    (lambda: ops.skew_kernel(torch.zeros(2, 2, 2, 3)), ValueError, "weight: .* want odd sides"),
    (lambda: ops.skew_kernel(K.int()), TypeError, "weight: got torch.int32"),
    (lambda: ops.conv_norm_bound(K, grid=2), ValueError, "grid: got 2, want an int in .3, "),
    (lambda: ops.conv_norm_bound(K[0]), ValueError, "kernel: got shape"),
    (lambda: ops.conv_norm_bound(None), TypeError, "kernel: got NoneType"),
    (lambda: ops.conv_spectral_bound(K, 0), ValueError, "stride: got 0"),
    (lambda: ops.conv_spectral_bound(K[None]), ValueError, "kernel: got shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
