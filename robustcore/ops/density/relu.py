"""ReLU with the double backward that an input gradient's needs.

torch's own gives its argument a gradient of zeros in the double backward, which is filled and added
like any other. Here it has none.
"""

import torch
from torch import Tensor

from robustcore.ops.autograd import apply, graph_wanted

_threshold_backward = torch.ops.aten.threshold_backward.default


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """``max(x, 0)`` of any shape, in x itself if wished; differentiable to any order."""
    result: Tensor = apply(_ReLUInPlace if inplace else _ReLU, x)
    return result


class _ReLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return apply(_Positive, grad, y.detach()) if graph_wanted() else _threshold(grad, y)


class _ReLUInPlace(_ReLU):
    generate_vmap_rule = False  # which cannot write into its input

    @staticmethod
    def forward(x):
        return torch.relu_(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_dirty(output)
        ctx.save_for_backward(output)


class _Positive(torch.autograd.Function):
    """grad where y is above 0, else 0: linear in grad, and y counts as a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, y):
        return _threshold(grad, y)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, v):
        (y,) = ctx.saved_tensors
        return apply(_Positive, v, y) if graph_wanted() else _threshold(v, y), None


def _threshold(grad: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _threshold_backward(grad, y, 0)
    return result
