"""What the tests of the sampling ops take: a seed of both halves of the key, and images."""

import torch

SEED = 0xC0FFEE1234567890
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
