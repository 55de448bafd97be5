"""What the cases are made of: inputs that are the same on every device, and derivatives."""

from typing import NamedTuple

import torch

FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LAST = torch.channels_last


class Case(NamedTuple):
    """``run(device)`` gives the tensors that the devices are compared by."""

    op: str
    name: str
    run: object
    exact: bool = True


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def uniform(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def with_gradients(fn, device, *inputs, orders=1):
    """fn's value, its gradient along fixed numbers, and that gradient's own gradient."""
    inputs = [t.to(device).requires_grad_() for t in inputs]
    value = fn(*inputs)
    upstream = normal(*value.shape, dtype=value.dtype, seed=7).to(device)
    first = torch.autograd.grad(value, inputs, upstream, create_graph=orders > 1)
    results = [value, *first]
    if orders > 1:
        along = [normal(*t.shape, dtype=t.dtype, seed=8).to(device) for t in first]
        results += torch.autograd.grad(first, inputs, along)
    return [t.detach() for t in results]
