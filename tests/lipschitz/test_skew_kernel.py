"""ops.skew_kernel: skew to the bit, and the norms of its reshapes."""

import pytest
import torch

from lipschitz.dense import convolution_matrix
from lipschitz.weights import norm, weights
from robustcore import ops
from testing import assert_close, assert_same, check_gradients, relayouts

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


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


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.zeros(2, 3, 3, 3), ValueError, r"weight: got shape \[2, 3,"),
        (torch.zeros(2, 2, 2, 3), ValueError, "weight: .* want odd sides"),
        (torch.zeros(2, 2, 3, 3).int(), TypeError, "weight: got torch.int32"),
    ],
)
def test_bad_input(weight, error, message):
    with pytest.raises(error, match=message):
        ops.skew_kernel(weight)
