"""Layers and whole networks of eval mode in operations of torch alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_module
from robustcore.common.graph import unwrap
from robustcore.lipschitz.leaves import states_bound
from robustcore.lipschitz.norms import digest


def export(model: nn.Module) -> nn.Module:
    """A copy of any model whose layers of this family are what their ``export()`` gives.

    Outputs are those of eval mode, and :func:`lipschitz_bound` and :func:`certify` take the copy as
    they take the model. It needs no operation of robustcore, so torch.export and ONNX read it:
    filters are plain parameters of ``nn.Conv`` and ``nn.Linear``, what has no such layer is an
    :class:`Exported`. Raises TypeError or ValueError naming ``model`` and the layer whose hooks or
    overridden methods an export would lose.
    """
    require_module("model", model)
    model = unwrap(model)
    # What deepcopy finds here takes the place of the layer, wherever the model holds it.
    return copy.deepcopy(model, {id(layer): _exported(name, layer) for name, layer in _own(model)})


def _own(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost layers of this family."""
    if hasattr(module, "lipschitz_bound") and hasattr(module, "export"):
        yield name, module
        return
    for child, inner in module.named_children():
        yield from _own(inner, f"{name}.{child}" if name else child)


def _exported(name: str, layer: Any) -> nn.Module:
    place = f"model.{name}" if name else "model"
    if any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules()):
        raise ValueError(f"{place}: has hooks, which its export would lose; want none")
    if not (states_bound(layer) or getattr(layer, "bounded_inside", False)):
        kind = type(layer).__name__
        raise TypeError(f"{place}: {kind} replaces methods that its export() does not know of")
    exported: nn.Module = layer.export()
    return exported


class Exported(nn.Module):
    """A layer as one function of torch's operations and of tensors that it reads: buffers.

    It states the layer's bound, for the values that it was made with: once they are others,
    ``lipschitz_bound()`` raises ValueError.
    """

    runs_as_exported = True

    def __init__(
        self, function: Callable[..., Tensor], bound: float = 1.0, **tensors: Tensor | None
    ) -> None:
        super().__init__()
        self.function, self.bound, self.names = function, bound, tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self._made_with = self._content()
        self.rounds_once = function in (householder, projection_pool)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.function(x, **{name: getattr(self, name) for name in self.names})

    def lipschitz_bound(self) -> float:
        """The layer's."""
        if self._content() != self._made_with:
            raise ValueError("its buffers are not those that it was exported with: no bound")
        return self.bound

    def _content(self) -> list[bytes]:
        # A wider dtype holds the same values.
        return [digest(tensor.detach().double()) for tensor in self.buffers()]


class Mixed(nn.Module):
    """``(1 - share) x + share f(x)``."""

    share: Tensor

    def __init__(self, inner: nn.Module, share: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("share", share.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        return torch.lerp(x, self.inner(x), self.share)


# ---- Functions of layers -------------------------------------------------------------------------


def maxmin(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


def largest_of_pair(x: Tensor) -> Tensor:
    return torch.maximum(*x.chunk(2, dim=1))


def householder(x: Tensor, theta: Tensor) -> Tensor:
    """``theta``: [C] or, of order 2, [3, C]."""
    a, b = x.chunk(2, dim=1)
    if theta.dim() == 1:
        t = _per_channel(theta, x)
        folds = a * (t / 2).sin() - b * (t / 2).cos() > 0
        pair = [torch.where(folds, r, z) for r, z in zip(_reflected(a, b, t), (a, b), strict=True)]
        return torch.cat(pair, dim=1)
    t0, t1, t2 = (_per_channel(t, x) for t in theta.clamp(0.0, 2 * math.pi))
    phi = torch.remainder(torch.atan2(b, a) - t0 / 2, 2 * math.pi)
    rotated = a * t2.cos() + b * t2.sin(), b * t2.cos() - a * t2.sin()
    pieces = zip((a, b), _reflected(a, b, t0 + t1), rotated, _reflected(a, b, t0), strict=True)
    first, second, third = t1 / 2, (t1 + t2) / 2, math.pi + t2 / 2
    both = [
        torch.where(phi < first, p0, torch.where(phi < second, p1, rest))
        for p0, p1, p2, p3 in pieces
        for rest in [torch.where(phi < third, p2, p3)]
    ]
    return torch.cat(both, dim=1)


def projection_pool(x: Tensor, theta: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    t = _per_channel(theta.clamp(0.0, math.pi), x)
    phi = torch.remainder(torch.atan2(b, a), 2 * math.pi)
    sin, cos = (t / 2).sin(), (t / 2).cos()
    away = torch.where(phi >= (3 * math.pi - t) / 2, -b * cos - a * sin, (a * a + b * b).sqrt())
    return torch.where(phi < (math.pi + t) / 2, b * cos - a * sin, away)


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    return x + _per_channel(shift, x)


def normalized(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (x - shift) / scale


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2)).to(x.dtype)


def _reflected(a: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return a * t.cos() + b * t.sin(), a * t.sin() - b * t.cos()
