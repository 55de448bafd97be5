"""1-Lipschitz layers without orthogonality: AOL and SLL, whose filter is rescaled; Cayley."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

from robustcore.common.checks import (
    require_flag,
    require_floating,
    require_int,
    require_parameter_form,
)
from robustcore.lipschitz.base import LipschitzModule, with_gradient
from robustcore.lipschitz.layers import of_dtype
from robustcore.ops.lipschitz.polar import cayley

# Of the sums in float64 and of their rounding to float32.
_MARGIN = 1 + 1e-6


class _Rescaled(LipschitzModule):
    """A free filter ``[out, in, k, k]``, and the sums of its Gram matrix that bound it."""

    bias: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], bias: int, kernel_size: int, device: object, dtype: object
    ) -> None:
        super().__init__()
        if require_int("kernel_size", kernel_size, 1, 2**31) % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size!r}, want an odd integer")
        require_parameter_form(device, dtype)
        self.kernel_size = kernel_size
        form = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(*shape, kernel_size, kernel_size, **form))  # type: ignore
        nn.init.orthogonal_(self.weight)
        empty = nn.Parameter(self.weight.new_zeros(bias)) if bias else None
        self.register_parameter("bias", empty)

    def _rows(self, weight: Tensor) -> Tensor:
        """The weight with the channels first whose Gram matrix counts."""
        return weight

    def _sums(self, weight: Tensor) -> Tensor:
        """``[C]``: of each channel, the absolute products with all at all offsets."""
        rows = self._rows(weight)
        products = conv2d(rows, rows, padding=rows.shape[-1] - 1)
        tiny = torch.finfo(self.weight.dtype).tiny
        return products.abs().sum((1, 2, 3)).clamp(min=tiny) * _MARGIN

    def derive(self) -> Tensor:
        """The sums in float64, rounded to the weight's dtype."""
        if not bool(self.weight.isfinite().all()):
            raise ValueError("weight: is not finite, the layer has no bound")
        return self._sums(self.weight.double()).to(self.weight.dtype)

    def _scales(self) -> Tensor:
        if self.training:
            with torch.autocast(self.weight.device.type, enabled=False):
                return self._sums(self.weight)
        kept: Tensor = self.kept()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return with_gradient(kept, self._sums(self.weight))
        return kept

    def lipschitz_bound(self) -> float:
        """1, by the sums. Raises ValueError if the weight is not finite."""
        self.kept()
        return 1.0

    def _images(self, x: Tensor, channels: int) -> Tensor:
        if require_floating("x", x).dim() != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(f"x: got shape {list(x.shape)}, want [N, {channels}, H, W]")
        return of_dtype(x, self.weight.dtype)


class AOLConv2d(_Rescaled):
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
        for name, value in (
            ("in_channels", in_channels), ("out_channels", out_channels), ("stride", stride)
        ):  # fmt: skip
            require_int(name, value, 1, 2**31)
        outputs = out_channels if require_flag("bias", bias) else 0
        super().__init__((out_channels, in_channels), outputs, kernel_size, device, dtype)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H', W']``."""
        x = self._images(x, self.in_channels) * self._scales().rsqrt().view(-1, 1, 1)
        return conv2d(x, self.weight, self.bias, self.stride, self.kernel_size // 2)

    def export(self) -> nn.Conv2d:
        """The layer as an ``nn.Conv2d``."""
        size = self.kernel_size
        layer = nn.Conv2d(self.in_channels, self.out_channels, size, self.stride, size // 2,
                          bias=self.bias is not None)  # fmt: skip
        scaled = self.weight.detach() * self.kept().rsqrt().view(1, -1, 1, 1)
        layer.weight = nn.Parameter(scaled)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone())
        return layer.train(self.training)


class SLLConv2d(_Rescaled):
    """A residual layer ``x - 2 W^T T^(-1) relu(W x + b)``, T the diagonal that bounds ``W W^T``.

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
        super().__init__((hidden, channels), hidden, kernel_size, device, dtype)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        x, reach = self._images(x, self.channels), self.kernel_size // 2
        inner = conv2d(x, self.weight, self.bias, padding=reach).relu()
        inner = inner * (2 / self._scales()).view(-1, 1, 1)
        return x - conv_transpose2d(inner, self.weight, padding=reach)


class CayleyLinear(LipschitzModule):
    """A linear map with orthonormal rows or columns: the Cayley transform of its free matrix.

    Args:
        in_features, out_features, bias: as ``nn.Linear``: ``[*, in_features]`` to ``[*,
            out_features]``.
        device, dtype: of the parameters.

    ``(I - A) (I + A)^(-1)``, A the skew part; of an oblong matrix, as published. Raises TypeError
    or ValueError naming the argument.
    Source: Trockman and Kolter, "Orthogonalizing convolutional layers with the Cayley transform",
    2021.
    """

    bias: Tensor | None

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
        require_int("in_features", in_features, 1, 2**31)
        require_int("out_features", out_features, 1, 2**31)
        require_flag("bias", bias)
        require_parameter_form(device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype)
        )
        nn.init.normal_(self.weight, std=in_features**-0.5)
        zeros = nn.Parameter(self.weight.new_zeros(out_features)) if bias else None
        self.register_parameter("bias", zeros)

    def derive(self) -> tuple[Tensor, float]:
        """The matrix from float64, and its norm's bound."""
        if not bool(self.weight.isfinite().all()):
            raise ValueError("weight: is not finite, the layer has no bound")
        matrix = cayley(self.weight.double()) / (1 + 4 * torch.finfo(self.weight.dtype).eps)
        rounded = matrix.to(self.weight.dtype)
        norm = float(torch.linalg.matrix_norm(rounded.double(), ord=2)) * (1 + 1e-12)
        return rounded, max(1.0, norm)

    def matrix(self) -> Tensor:
        """``[out_features, in_features]``, orthonormal."""
        if self.training:
            with torch.autocast(self.weight.device.type, enabled=False):
                return cayley(self.weight)
        kept: Tensor = self.kept()[0]
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return with_gradient(kept, cayley(self.weight))
        return kept

    def lipschitz_bound(self) -> float:
        """1, or the norm of the rounded matrix. Raises ValueError if the weight is not finite."""
        bound: float = self.kept()[1]
        return bound

    def forward(self, x: Tensor) -> Tensor:
        """``[*, in_features]`` to ``[*, out_features]``."""
        if require_floating("x", x).dim() < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: got shape {list(x.shape)}, want [*, {self.in_features}]")
        return linear(of_dtype(x, self.weight.dtype), self.matrix(), self.bias)
