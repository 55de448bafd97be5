"""Norms of input gradients through float16, scaled so that nothing on the way underflows.

Input gradients are small, and a penalty's cotangents smaller: the mean over a batch of a norm has
derivatives of 1 / (N sqrt(D)) in each pixel. Of that float16, whose least number is 6e-8, keeps
little. Backward passes are linear, so each is taken times a power of two of its own, and divided by
it in float32. As with any loss scale, one at which something overflows is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from robustcore import ops
from robustcore.ops.density.grad_norm import dual_direction

START, LOWER = 2.0**12, 2.0**-4


def has_float16(model: Any, *tensors: Tensor | None) -> bool:
    """Whether gradients pass through float16, as far as can be seen."""
    there = [t for t in tensors if isinstance(t, Tensor)]  # what is none is refused later
    if any(t.dtype == torch.float16 for t in there):
        return True
    device = there[0].device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return True
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return any(p.dtype == torch.float16 for p in parameters)


def scaled_gradient(gradient: Callable[[float], Tensor]) -> Tensor:
    """``gradient(scale) / scale``, where that is finite."""
    scale = START
    while True:
        g = gradient(scale)
        if scale <= 1 or g.isfinite().all():
            return g / scale
        scale *= LOWER


def scaled_norm(g: Tensor, p: float) -> Tensor:
    """``grad_norm(g, p)``, whose derivatives in the leaves of its graph are taken under a scale."""
    norm = ops.grad_norm(g, p)
    leaves = _leaves(norm)
    result: Tensor = _ScaledNorm.apply(  # type: ignore[no-untyped-call]
        (norm, dual_direction(g.detach(), p)), *leaves
    )
    return result


def _leaves(t: Tensor) -> list[Tensor]:
    """What gradients of t accumulate in."""
    leaves, seen = [], set()
    nodes: list[Node | None] = [t.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [n for n, _ in node.next_functions]
    return leaves


class _ScaledNorm(torch.autograd.Function):
    """The norms, without their graph, which is gone through when a gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, inner: tuple[Tensor, Tensor], *leaves: Tensor) -> Tensor:
        ctx.inner, ctx.leaves = inner, leaves
        return inner[0].detach().clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        norm, direction = ctx.inner
        rows = grad.view(-1, *[1] * (direction.dim() - 1))
        largest = (rows * direction).abs().amax()
        scale = START * torch.where(largest > 0, largest, 1).log2().ceil().neg().exp2()
        while True:
            grads = torch.autograd.grad(
                norm, ctx.leaves, grad * scale, retain_graph=True, allow_unused=True
            )
            if scale < grad.new_tensor(2.0**-40) or _finite(grads):
                break
            scale = scale * LOWER
        return None, *[None if g is None else (g.float() / scale).to(g.dtype) for g in grads]


def _finite(grads: Sequence[Tensor | None]) -> bool:
    return all(bool(g.isfinite().all()) for g in grads if g is not None)
