"""Images and masks for the tests of ops."""

import torch


def case(n=2, c=4, h=12, w=11, share=0.1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64).to(dtype)
    mask = (torch.rand(n, 1, h, w, generator=generator) < share).to(dtype)
    return x, mask
