"""Bounds against dense Jacobians in float64."""

import torch
from torch import nn

from robustcore import lipschitz as lip


def jacobian_norm(fn, shape, seed=0, points=4):
    """The largest norm of the Jacobian at a few random points."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(points, *shape, generator=generator, dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(fn, one[None]).reshape(-1, one.numel()) for one in x
    ]
    return float(torch.linalg.svdvals(torch.stack(jacobians)).max())


def check(model, shape, tight=None, example=True):
    """The bound, once it is found to be above the truth, and within ``tight`` of it."""
    model = model.double().eval()
    zeros = torch.zeros(1, *shape, dtype=torch.float64) if example else None
    bound = lip.lipschitz_bound(model, zeros)
    true = jacobian_norm(model, shape)
    assert true <= bound * (1 + 1e-12)
    if tight is not None:
        assert bound <= tight * true
    return bound


class Functional(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


class Thrice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.layer.weight)
        self.layer.weight.data.mul_(3)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x)))
