"""Orthogonal layers by Cayley's transform: of a matrix, or of a convolution at each frequency."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle

from robustcore.common.checks import (
    require_floating,
    require_int,
)
from robustcore.lipschitz.base import (
    LipschitzModule,
    make_parameters,
    needs_gradient,
    require_finite,
    with_gradient,
)
from robustcore.lipschitz.export import Exported
from robustcore.lipschitz.filters import rounded
from robustcore.lipschitz.layers import FilteredLinear, of_dtype
from robustcore.ops.autograd import arithmetic
from robustcore.ops.lipschitz.polar import cayley, distance


class CayleyLinear(FilteredLinear):
    """A linear map with orthonormal rows or columns: the Cayley transform of its free matrix.

    Args:
        in_features, out_features, bias: as ``nn.Linear``: ``[*, in_features]`` to ``[*,
            out_features]``.
        device, dtype: of the parameters.

    ``(I - A) (I + A)^(-1)``, A the skew part; of an oblong matrix, as published. A weight whose
    norm is beyond ``eps^(-1/3)`` counts as one of that norm. Raises TypeError or ValueError naming
    the argument.
    Source: Trockman and Kolter, "Orthogonalizing convolutional layers with the Cayley transform",
    2021.
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
        make_parameters(self, shape, _start, out_features, bias, device, dtype)

    def made(self) -> Tensor:
        """The matrix of training, ``[out_features, in_features]``."""
        return cayley(_limited(self.weight.to(arithmetic(self.weight))))

    def derive(self) -> tuple[Tensor, float]:
        """The matrix from float64, and its bound."""
        require_finite(self, "weight")
        exact = cayley(_limited(self.weight.double()))
        matrix, bound = rounded(exact[None], math.sqrt(1 + distance(exact)), self.weight.dtype)
        return matrix[0], bound


class CayleyConv2d(LipschitzModule):
    """An orthogonal convolution under circular padding: Cayley's transform at each frequency.

    ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``. The Fourier transform of the filter
    is a matrix a frequency, whose transform maps the image's coefficients: exactly orthogonal for
    images of any size, and a filter as large as the image. A stride rearranges pixels into channels
    first. Where ``out < in * stride**2`` it is the adjoint of an isometry.

    One solve of C x C a frequency: in training at each step, in eval once a size of image, kept
    until the weight changes. Wide layers on large images are better made of OrthogonalConv2d.

    Args:
        in_channels, out_channels, stride, bias: as ``nn.Conv2d``.
        kernel_size: of the free filter; images have, after the stride, sides no smaller.
        device, dtype: of the parameters.

    A weight whose norm is beyond ``eps^(-1/3)`` counts as one of that norm. Fourier transforms are
    computed in float32 at least, under autocast too. Raises TypeError or ValueError naming the
    argument.
    Source: Trockman and Kolter, "Orthogonalizing convolutional layers with the Cayley transform",
    2021.
    """

    runs_as_exported = False  # but by Fourier transforms
    weight: nn.Parameter
    bias: Tensor | None

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
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("kernel_size", kernel_size),
            ("stride", stride),
        ):
            require_int(name, value, 1, 2**31)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = kernel_size, stride
        shape = (out_channels, in_channels * stride**2, kernel_size, kernel_size)
        make_parameters(self, shape, _start, out_channels, bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        if require_floating("x", x).dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: got shape {list(x.shape)}, want [N, {self.in_channels}, H, W]")
        low = self.stride * self.kernel_size
        if any(n % self.stride or n < low for n in x.shape[2:]):
            raise ValueError(
                f"x: got shape {list(x.shape)}, want sides of at least {low} that the stride "
                f"{self.stride} divides"
            )
        dtype = of_dtype(x, self.weight.dtype).dtype
        if x.shape[0] == 0:  # of nothing there is no Fourier transform
            return self.forward(x.new_zeros(1, *x.shape[1:]))[:0]
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(arithmetic(self.weight))
            if self.stride > 1:
                x = pixel_unshuffle(x, self.stride)
            size = x.shape[2], x.shape[3]
            waves = torch.fft.rfft2(x).permute(2, 3, 1, 0)
            turned = self._matrices(*size) @ waves
            y: Tensor = torch.fft.irfft2(turned.permute(3, 2, 0, 1), size).to(dtype)
            return y if self.bias is None else y + self.bias.to(dtype).view(-1, 1, 1)

    def lipschitz_bound(self) -> float:
        """1, by the scaling of each frequency. Raises ValueError if the weight is not finite."""
        self.kept()
        return 1.0

    def derive(self) -> dict[tuple[int, int], Tensor]:
        """The matrices of eval, by the sides of the images that were there."""
        require_finite(self, "weight")
        return {}

    def export(self, height: int | None = None, width: int | None = None) -> nn.Module:
        """The layer in products of torch, without parameters, for images of one size.

        Args:
            height, width: of x; default: those of the images that eval has seen, if of one size.
        """
        sizes = list(self.kept())
        if height is None and width is None:
            if len(sizes) != 1:
                raise ValueError(f"height: got None after {len(sizes)} sizes of images, want one")
            size = sizes[0]
        else:
            low, s = self.stride * self.kernel_size, self.stride
            size = tuple(
                require_int(name, n, low, 2**31) // s
                for name, n in (("height", height), ("width", width))
            )
        matrices = self._kept_matrices(*size)
        assert matrices is not None
        real, imaginary = matrices.real.flatten(0, 1), matrices.imag.flatten(0, 1)
        upper = torch.cat([real, -imaginary], 2)
        turn = torch.cat([upper, torch.cat([imaginary, real], 2)], 1)
        forth, back = (t.to(turn) for t in _fourier(*size))
        tensors: Any = {"forth": forth, "turn": turn, "back": back, "bias": self.bias}
        function = partial(_by_frequency, stride=self.stride, size=size)
        return Exported(function, **tensors).train(self.training)

    def _matrices(self, height: int, width: int) -> Tensor:
        """``[H, W / 2 + 1, out, in]``, complex."""
        kept = None if self.training else self._kept_matrices(height, width)
        if kept is not None and not needs_gradient(self):
            return kept
        turns = self._turns(self.weight, height, width)
        return turns if kept is None else with_gradient(kept, turns)

    def _kept_matrices(self, height: int, width: int) -> Tensor | None:
        """What eval keeps for one size; a compiled graph makes its own of a size not yet seen."""
        kept: dict[tuple[int, int], Tensor] = self.kept()
        if (height, width) not in kept and not torch.compiler.is_compiling():
            with torch.no_grad():
                exact = self._turns(self.weight.double(), height, width)
                dtype = arithmetic(self.weight)
                eps = torch.finfo(dtype).eps
                # An entry's rounding is at most eps / 2 of it: eps sqrt(C) / 2 of a matrix.
                norm = math.sqrt(1 + distance(exact)) * (1 + 1e-10)
                norm *= 1 + eps * math.sqrt(min(exact.shape[-2:]))
                kept[height, width] = (exact / norm).to(dtype.to_complex())
        return kept.get((height, width))

    def _turns(self, weight: Tensor, height: int, width: int) -> Tensor:
        filter = _limited(weight.to(arithmetic(weight)))
        k, before = self.kernel_size, (self.kernel_size - 1) // 2
        # A convolution of torch's is a correlation: its symbol is the conjugate of the filter's.
        centred = pad(filter, (0, width - k, 0, height - k)).roll((-before, -before), (2, 3))
        return cayley(torch.fft.rfft2(centred).conj().permute(2, 3, 0, 1))

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, bias={self.bias is not None}"
        )


def _fourier(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The transform of images and its inverse as real matrices, of the half that is kept."""
    images = torch.eye(height * width, dtype=torch.float64)
    waves = torch.fft.rfft2(images.view(-1, height, width), norm="ortho").flatten(1)
    # The inverse is linear over the reals.
    units = torch.eye(waves.shape[1], dtype=torch.float64)
    both = torch.complex(torch.cat([units, 0 * units]), torch.cat([0 * units, units]))
    both = both.view(-1, height, width // 2 + 1)
    back = torch.fft.irfft2(both, (height, width), norm="ortho").flatten(1)
    return torch.cat([waves.real, waves.imag], 1), back


def _by_frequency(
    x: Tensor, forth: Tensor, turn: Tensor, back: Tensor, bias: Tensor | None, stride: int,
    size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """A CayleyConv2d of eval mode for one size of image, Fourier transforms as real matrices."""
    x = pixel_unshuffle(x, stride) if stride > 1 else x
    waves = x.flatten(2) @ forth  # [N, in, 2 F]: real parts, imaginary parts
    waves = waves.unflatten(2, (2, -1)).permute(3, 2, 1, 0).flatten(1, 2)  # [F, 2 in, N]
    turned = (turn @ waves).unflatten(1, (2, -1))  # [F, 2, out, N]
    y: Tensor = (turned.permute(3, 2, 1, 0).flatten(2) @ back).unflatten(2, size)
    return y if bias is None else y + bias.view(-1, 1, 1)


def _start(weight: Tensor) -> None:
    nn.init.normal_(weight, std=math.prod(weight.shape[1:]) ** -0.5)


def _limited(weight: Tensor) -> Tensor:
    """The weight, shortened where its transform would have no digits left."""
    largest = weight.detach().abs().amax().clamp(min=1)
    norm = largest * torch.linalg.vector_norm((weight / largest).detach())
    return weight.mul((torch.finfo(weight.dtype).eps ** (-1 / 3) / norm).clamp(max=1))
