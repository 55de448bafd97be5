"""Random weights of convolutions, and norms, for the tests of kernels and their bounds."""

import torch


def weights(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix.double(), ord=2))
