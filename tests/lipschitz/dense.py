"""Dense matrices of convolutions and layers, in float64: what the fast code is compared with."""

import functools

import torch


def basis(channels, height, width):
    n = channels * height * width
    return torch.eye(n, dtype=torch.float64).reshape(n, channels, height, width)


def matrix_of(fn, channels, height, width):
    """The matrix of a linear (or, its bias taken off, affine) map of one image."""
    images = basis(channels, height, width)
    with torch.no_grad():
        return (fn(images) - fn(torch.zeros_like(images[:1]))).flatten(1).T


def convolution_matrix(kernel, height, width):
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    return matrix_of(
        lambda x: torch.conv2d(x, kernel, padding=padding), kernel.shape[1], height, width
    )


def skew_weight(channels, side, *, norm=1.0, seed=0, dtype=torch.float64):
    """A skew kernel whose convolution has about the given norm."""
    kernel, size = _skew_kernel(channels, side, seed)
    return (kernel * (norm / size)).to(dtype)


@functools.cache  # the norm is that of a dense matrix, and many tests take the same kernel
def _skew_kernel(channels, side, seed):
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(channels, channels, side, side, generator=generator, dtype=torch.float64)
    s = m - m.transpose(0, 1).flip(2, 3)
    return s, torch.linalg.matrix_norm(convolution_matrix(s, 4, 4), 2)
