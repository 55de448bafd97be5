"""Residual blocks, centering, activations and pools that cannot stretch."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_floating,
    require_int,
    require_module,
    require_parameter_form,
    require_positive,
)
from robustcore.lipschitz.base import LipschitzModule
from robustcore.lipschitz.bounds import lipschitz_bound
from robustcore.lipschitz.export import Exported, Mixed, export, shifted


class Residual(LipschitzModule):
    """``(1 - t) x + t f(x)``, t = sigmoid(logit): 1-Lipschitz where f is, of x's shape.

    Args:
        inner: f, a module that :func:`lipschitz_bound` understands.
        share: t at the start, in (0, 1); it is learned.

    Source: Trockman and Kolter, "Orthogonalizing convolutional layers with the Cayley transform",
    2021, for the convex combination.
    """

    bounded_inside = True

    def __init__(self, inner: nn.Module, share: float = 0.5) -> None:
        super().__init__()
        require_module("inner", inner)
        share = require_positive("share", share)
        if share >= 1:
            raise ValueError(f"share: got {share}, want a number strictly between 0 and 1")
        self.inner = inner
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        y: Tensor = self.inner(require_floating("x", x))
        return torch.lerp(x.to(y.dtype), y, torch.sigmoid(self.logit).to(y.dtype))

    def lipschitz_bound(self) -> float:
        """``1 - t + t bound(f)``."""
        share = float(torch.sigmoid(self.logit.detach().double()))
        bound = 1 - share + share * lipschitz_bound(self.inner)
        return bound if bound <= 1 else bound * (1 + 1e-6)  # t is rounded

    def export(self) -> nn.Module:
        """The same of the exported f."""
        return Mixed(export(self.inner), torch.sigmoid(self.logit)).train(self.training)


class BatchCentering(LipschitzModule):
    """Subtracts the channels' mean: of the batch in training, the running one in eval.

    Of ``[N, C, *D]``, over all but the channels; then adds a learned ``bias``. It is BatchNorm
    without the division, which has no bound: its slope is 1.

    Args:
        num_features: C.
        momentum: part of the batch's mean that goes into the running one, in (0, 1].
        device, dtype: of ``bias`` and ``running_mean``.
    """

    running_mean: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_int("num_features", num_features, 1, 2**31)
        momentum = require_positive("momentum", momentum)
        if momentum > 1:
            raise ValueError(f"momentum: got {momentum}, want a number in (0, 1]")
        require_parameter_form(device, dtype)
        self.num_features, self.momentum = num_features, momentum
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros_like(self.bias.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        if require_floating("x", x).dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"x: got shape {list(x.shape)}, want [N, {self.num_features}, *D]")
        mean = self.running_mean
        if self.training and x.numel():
            mean = x.transpose(0, 1).flatten(1).mean(1).to(mean.dtype)
            self.running_mean.lerp_(mean.detach(), self.momentum)
        return x + (self.bias - mean).to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    def export(self) -> nn.Module:
        """The sum with a constant."""
        return Exported(shifted, shift=self.bias - self.running_mean).train(self.training)


class GroupSort(LipschitzModule):
    """Sorts each group of channels, ascending: a permutation of the inputs.

    Args:
        size: channels of a group, side by side; it divides those of x.

    Source: Anil, Lucas, Grosse, "Sorting out Lipschitz function approximation", 2019.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = require_int("size", size, 1, 2**31)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, *D]`` to the same shape."""
        if require_floating("x", x).dim() < 2 or x.shape[1] % self.size:
            got = list(x.shape)
            raise ValueError(f"x: got shape {got}, want channels that {self.size} divides")
        return group_sort(x, self.size)

    def export(self) -> nn.Module:
        """The same in torch."""
        return Exported(partial(group_sort, size=self.size)).train(self.training)


class Abs(LipschitzModule):
    """The absolute value: it keeps the norm."""

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        return require_floating("x", x).abs()

    def export(self) -> nn.Module:
        """``torch.abs``."""
        return Exported(torch.abs).train(self.training)


class L2NormPool2d(LipschitzModule):
    """The l2 norm of each channel's windows, which do not overlap.

    Args:
        kernel_size: side of the windows, and their stride.
    """

    def __init__(self, kernel_size: int = 2) -> None:
        super().__init__()
        self.kernel_size = require_int("kernel_size", kernel_size, 1, 2**31)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C, H / k, W / k]``; the gradient at 0 is 0."""
        k = self.kernel_size
        if require_floating("x", x).dim() != 4 or x.shape[2] % k or x.shape[3] % k:
            got = list(x.shape)
            raise ValueError(f"x: got shape {got}, want [N, C, H, W], sides that {k} divides")
        return l2_norms(x, k)

    def export(self) -> nn.Module:
        """The same in torch."""
        return Exported(partial(l2_norms, size=self.kernel_size)).train(self.training)


def group_sort(x: Tensor, size: int) -> Tensor:
    groups: Tensor = x.unflatten(1, (-1, size))
    return groups.sort(dim=2).values.flatten(1, 2)


def l2_norms(x: Tensor, size: int) -> Tensor:
    """Of windows of that side."""
    windows: Tensor = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    norms: Tensor = torch.linalg.vector_norm(windows, dim=(3, 5))
    return norms
