"""ops.conv_spectral_bound: above the norm of the dense operator, differentiable."""

import pytest
import torch

from lipschitz.dense import convolution_matrix, matrix_of, skew_weight
from lipschitz.weights import norm, weights
from robustcore import ops
from testing import check_gradients


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2, 3, 3), 0), "stride: got 0"),
        ((torch.zeros(1, 2, 2, 3, 3),), "kernel: got shape"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.conv_spectral_bound(*arguments)
