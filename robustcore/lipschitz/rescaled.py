"""1-Lipschitz layers without orthogonality, whose free filter is rescaled: AOL and SLL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

from robustcore.common.checks import (
    require_floating,
    require_int,
)
from robustcore.lipschitz.base import (
    Filtered,
    LipschitzModule,
    make_parameters,
    needs_gradient,
    require_finite,
    with_gradient,
)
from robustcore.lipschitz.export import Exported
from robustcore.lipschitz.filters import rounded
from robustcore.lipschitz.layers import FilteredLinear, last_features, of_dtype

# A weight whose largest entry, and a channel whose sum of products beside the largest entry is
# below these, is not blown up, so that zero has a gradient.
_LEAST, _LEAST_SUM = 1e-4, 1e-7


def scales(weight: Tensor, q: Tensor | None = None) -> Tensor:
    """``[C]``: factors r of the first dimension with ``norm(diag(r) W) <= 1``, W ``[C, *]``.

    W is a matrix, or the convolution with a filter ``[C, D, k, k]``. Its channels' products with
    all others at all offsets, absolute, sum up to r^(-2), spread by any positive ``exp(q)``.
    """
    largest = weight.detach().abs().amax().clamp(min=_LEAST)
    rows = weight / largest  # the products of what is large overflow
    if rows.dim() == 2:
        products = (rows @ rows.mT).abs()
    else:
        products = conv2d(rows, rows, padding=rows.shape[-1] - 1).abs().sum((2, 3))
    if q is not None:
        spread = (q - q.mean()).clamp(-10, 10)
        products = products * (spread - spread[:, None]).exp()
    eps = torch.finfo(weight.dtype).eps
    return products.sum(1).clamp(min=_LEAST_SUM).rsqrt() * (1 - eps) / largest


class _AOL(Filtered):
    """A free weight ``[out, in, *k]`` times a scale of each input channel."""

    def made(self) -> Tensor:
        """The filter of training."""
        return self._scaled(self.weight)

    def derive(self) -> tuple[Tensor, float]:
        """The filter from float64, and its bound."""
        require_finite(self, "weight")
        exact = self._scaled(self.weight.double())
        taps = exact.reshape(*exact.shape[:2], -1).permute(2, 0, 1)[None]
        filter, bound = rounded(taps, 1.0, self.weight.dtype)
        return filter[0].permute(1, 2, 0).reshape(exact.shape).contiguous(), bound

    def _scaled(self, weight: Tensor) -> Tensor:
        return weight * scales(weight.transpose(0, 1)).view(-1, *[1] * (weight.dim() - 2))


class AOLLinear(FilteredLinear, _AOL):
    """Almost orthogonal: a linear map whose inputs are scaled until it cannot stretch.

    Args:
        in_features, out_features, bias: as ``nn.Linear``: ``[*, in_features]`` to ``[*,
            out_features]``.
        device, dtype: of the parameters.

    Raises TypeError or ValueError naming the argument.
    Source: Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz
    networks", 2022.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_features(in_features, out_features)
        shape = out_features, in_features
        make_parameters(self, shape, nn.init.orthogonal_, out_features, bias, device, dtype)


class AOLConv2d(_AOL):
    """Almost orthogonal: a convolution whose input channels are scaled until it cannot stretch.

    ``[N, in, H, W]`` to ``[N, out, ceil(H / stride), ceil(W / stride)]``, zero padding.

    Args:
        in_channels, out_channels, kernel_size, stride, bias: as ``nn.Conv2d``; kernel_size is odd.
        device, dtype: of the parameters.

    Raises TypeError or ValueError naming the argument.
    Source: Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz
    networks", 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels), ("out_channels", out_channels), ("stride", stride)
        ):  # fmt: skip
            require_int(name, value, 1, 2**31)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.kernel_size = k = _odd(kernel_size)
        shape = out_channels, in_channels, k, k
        make_parameters(self, shape, nn.init.orthogonal_, out_channels, bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H', W']``."""
        x = _images(x, self.in_channels, self.weight)
        return conv2d(x, self.filter, self.bias, self.stride, self.kernel_size // 2)

    def export(self) -> nn.Conv2d:
        """The layer as an ``nn.Conv2d``."""
        form = (self.in_channels, self.out_channels, self.kernel_size, self.stride)
        plain = nn.Conv2d(*form, self.kernel_size // 2, bias=self.bias is not None)
        return self._fill(plain)  # type: ignore[no-any-return]


class _SLL(LipschitzModule):
    """A free weight ``[hidden, in, *k]``, and a scale of each of its outputs."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, shape: tuple[int, ...], device: Any, dtype: Any) -> None:
        super().__init__()
        make_parameters(self, shape, nn.init.orthogonal_, shape[0], True, device, dtype)
        self.q = nn.Parameter(self.weight.new_zeros(shape[0]))

    def derive(self) -> Tensor:
        """The scales, from float64."""
        require_finite(self, "weight", "q")
        exact = scales(self.weight.double(), self.q.double())
        return (exact * (1 - torch.finfo(self.weight.dtype).eps)).to(self.weight.dtype)

    def _scales(self) -> Tensor:
        kept: Tensor | None = None if self.training else self.kept()
        if kept is not None and not needs_gradient(self):
            return kept
        with torch.autocast(self.weight.device.type, enabled=False):
            fresh = scales(self.weight, self.q)
        return fresh if kept is None else with_gradient(kept, fresh)

    def lipschitz_bound(self) -> float:
        """1, by the scales. Raises ValueError if a parameter is not finite."""
        self.kept()
        return 1.0

    def _exported(self, function: Any) -> nn.Module:
        tensors = {"weight": self.weight, "bias": self.bias, "scale": self.kept()}
        return Exported(function, **tensors).train(self.training)


class SLLLinear(_SLL):
    """A residual layer ``x - 2 W^T D relu(W x + b)``, D the diagonal with ``D <= (W W^T)^(-1)``.

    ``[*, features]`` to the same shape.

    Args:
        features: of x.
        hidden: features of W x; default: ``features``.
        device, dtype: of the parameters.

    Raises TypeError or ValueError naming the argument.
    Source: Araujo et al., "A unified algebraic perspective on Lipschitz neural networks", 2023.
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_int("features", features, 1, 2**31)
        hidden = features if hidden is None else require_int("hidden", hidden, 1, 2**31)
        super().__init__((hidden, features), device, dtype)
        self.in_features = features

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        x = last_features(x, self.in_features, self.weight)
        return _residual(x, self.weight, self.bias, self._scales())

    def export(self) -> nn.Module:
        """Two products with one matrix."""
        return self._exported(_residual)


class SLLConv2d(_SLL):
    """A residual layer ``x - 2 W^T D relu(W x + b)`` of the convolution W, see :class:`SLLLinear`.

    ``[N, channels, H, W]`` to the same shape, zero padding.

    Args:
        channels: of x.
        hidden: channels of W x; default: ``channels``.
        kernel_size: odd.
        device, dtype: of the parameters.

    Raises TypeError or ValueError naming the argument.
    Source: Araujo et al., "A unified algebraic perspective on Lipschitz neural networks", 2023.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        kernel_size: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_int("channels", channels, 1, 2**31)
        hidden = channels if hidden is None else require_int("hidden", hidden, 1, 2**31)
        k = _odd(kernel_size)
        super().__init__((hidden, channels, k, k), device, dtype)
        self.channels, self.kernel_size = channels, k

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        x = _images(x, self.channels, self.weight)
        return _residual_of_images(x, self.weight, self.bias, self._scales())

    def export(self) -> nn.Module:
        """Two convolutions with one filter."""
        return self._exported(_residual_of_images)


def _residual(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    inner = linear(x, weight, bias).relu() * scale
    return x - linear(2 * inner * scale, weight.mT)


def _residual_of_images(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    reach, scale = weight.shape[-1] // 2, scale.view(-1, 1, 1)
    inner = conv2d(x, weight, bias, padding=reach).relu() * scale
    return x - conv_transpose2d(2 * inner * scale, weight, padding=reach)


def _odd(kernel_size: Any) -> int:
    if require_int("kernel_size", kernel_size, 1, 2**31) % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size!r}, want an odd integer")
    return int(kernel_size)


def _images(x: Any, channels: int, weight: Tensor) -> Tensor:
    if require_floating("x", x).dim() != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, {channels}, H, W]")
    return of_dtype(x, weight.dtype)
