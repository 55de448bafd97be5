"""Orthogonal layers with one explicit filter: convolutions, their transposes, linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from robustcore.common.checks import (
    require_choice,
    require_flag,
    require_floating,
    require_int,
    require_parameter_form,
)
from robustcore.lipschitz.base import Filtered, require_finite
from robustcore.lipschitz.filters import Shape, certified_filter, orthogonal_filter
from robustcore.lipschitz.layers import FilteredLinear, of_dtype
from robustcore.ops.autograd import arithmetic, is_channels_last


class _Orthogonal(Filtered):
    """The free matrices of an orthogonal filter, and the filter in training and in eval."""

    bases: Tensor | None

    def __init__(self, shape: Shape, outputs: int, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        require_flag("bias", bias)
        require_parameter_form(device, dtype)
        self._shape = shape
        self.weight = nn.Parameter(torch.empty(shape.weight, device=device, dtype=dtype))
        for name, size in (("bases", shape.bases if shape.steps else None),
                           ("bias", (outputs,) if bias else None)):  # fmt: skip
            empty = None if size is None else nn.Parameter(self.weight.new_empty(size))
            self.register_parameter(name, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthonormal matrices of a uniform distribution; bias uniform within 1 / sqrt(fan in)."""
        matrices = [*self.weight, *(() if self.bases is None else self.bases.flatten(0, 1))]
        for matrix in matrices:
            if matrix.numel():
                nn.init.orthogonal_(matrix)
        if self.bias is not None:
            taps = self._shape.inputs * math.prod(self._shape.kernel_size)
            nn.init.uniform_(self.bias, -(taps**-0.5), taps**-0.5)

    def made(self) -> Tensor:
        """The filter of training."""
        return self._laid_out(orthogonal_filter(self._shape, *self._wide()))

    def derive(self) -> tuple[Tensor, float]:
        """The filter and its bound."""
        require_finite(self, "weight", "bases")
        filter, bound = certified_filter(self._shape, self.weight, self.bases)
        return self._laid_out(filter), bound

    def _wide(self) -> tuple[Tensor, Tensor | None]:
        """The parameters in a dtype that matrices are decomposed in."""
        dtype = arithmetic(self.weight)
        return self.weight.to(dtype), None if self.bases is None else self.bases.to(dtype)

    def _laid_out(self, filter: Tensor) -> Tensor:
        """``[groups, *kernel_size, outputs, inputs]`` as ``[out, in / groups, *kernel_size]``."""
        return filter.movedim((-2, -1), (1, 2)).flatten(0, 1).contiguous()


class OrthogonalLinear(FilteredLinear, _Orthogonal):
    """A linear map with orthonormal rows or columns: the polar factor of its free matrix.

    Args:
        in_features, out_features, bias: as ``nn.Linear``: ``[*, in_features]`` to ``[*,
            out_features]``.
        device, dtype: of the parameters.

    Trains from any value of ``weight``. Raises TypeError or ValueError naming the argument.
    Source: Anil, Lucas, Grosse, "Sorting out Lipschitz function approximation", 2019.
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
        self._set_features(in_features, out_features)
        shape = Shape(1, in_features, out_features, (), ())
        super().__init__(shape, out_features, bias, device, dtype)


class _OrthogonalConv(_Orthogonal):
    """What convolutions of one to three dimensions share; a subclass says how many."""

    dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = "same",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "circular",
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if require_int(name, value, 1, 2**31) % require_int("groups", groups, 1, 2**31):
                raise ValueError(f"{name}: got {value}, want a multiple of {groups} groups")
        size, step = (
            self._each(name, value, 1)
            for name, value in (("kernel_size", kernel_size), ("stride", stride))
        )
        if any(k < s for k, s in zip(size, step, strict=True)):
            raise ValueError(
                f"kernel_size: got {kernel_size}, want at least the stride {stride}: "
                "pixels that nothing reads are lost"
            )
        apart = self._each("dilation", dilation, 1)
        if any(math.gcd(d, s) > 1 for d, s in zip(apart, step, strict=True)):
            raise ValueError(
                f"dilation: got {dilation}, want one without a common divisor with the stride "
                f"{stride}: no such filter keeps the norm"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = size, step, apart
        require_choice("padding_mode", padding_mode, ("circular", "zeros"))
        self.padding_mode, self.padding = padding_mode, padding
        self._reach = [d * (k - 1) for d, k in zip(apart, size, strict=True)]
        self._pads = self._padded(padding)
        shape = self._filter_shape(in_channels // groups, out_channels // groups)
        super().__init__(shape, out_channels, bias, device, dtype)

    def _each(self, name: str, value: Any, low: int) -> tuple[int, ...]:
        """One integer a dimension."""
        many = list(value) if isinstance(value, (tuple, list)) else [value] * self.dims
        if len(many) != self.dims:
            raise ValueError(f"{name}: got {value}, want an integer or {self.dims}")
        return tuple(require_int(name, one, low, 2**31) for one in many)

    def _padded(self, padding: Any) -> list[tuple[int, int]]:
        """What is added before and behind each dimension."""
        if isinstance(padding, str):
            require_choice("padding", padding, ("same", "valid"))
            if padding == "valid":
                return [(0, 0)] * self.dims
            # Where stride divides the side, nothing reads the last pixel behind.
            wraps = self.padding_mode == "circular"
            return [
                (reach // 2, reach // 2 if wraps and s > 1 else (reach + 1) // 2)
                for reach, s in zip(self._reach, self.stride, strict=True)
            ]
        pads = self._each("padding", padding, 0)
        if self.padding_mode == "circular":
            for p, reach in zip(pads, self._reach, strict=True):
                if 2 * p > reach:
                    raise ValueError(
                        f"padding: got {padding}, want at most {reach // 2} with circular padding: "
                        "more counts pixels twice"
                    )
        return [(p, p) for p in pads]

    @property
    def _wraps(self) -> bool:
        pads = self.padding == "same" or any(map(any, self._pads))
        return self.padding_mode == "circular" and pads

    def _filter_shape(self, inputs: int, outputs: int) -> Shape:
        return Shape(self.groups, inputs, outputs, self.kernel_size, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, *D]`` to ``[N, out, *D']``; with padding "same", D' is ceil(D / stride)."""
        want = f"want [N, {self.in_channels}{', n' * self.dims}]"
        if require_floating("x", x).dim() != 2 + self.dims or x.shape[1] != self.in_channels:
            raise ValueError(f"x: got shape {list(x.shape)}, {want}")
        return self._map(of_dtype(x, self.weight.dtype))

    def _map(self, x: Tensor) -> Tensor:
        if self._wraps:
            if any(n % s for n, s in zip(x.shape[2:], self.stride, strict=True)):
                raise ValueError(
                    f"x: got shape {list(x.shape)}, want sides that the stride {self.stride} "
                    "divides: circular padding keeps the norm of no other"
                )
            x, inside = wrap(x, self._pads), [0] * self.dims
        elif all(before == behind for before, behind in self._pads):
            inside = [before for before, _ in self._pads]
        else:
            x, inside = pad(x, _backwards(self._pads)), [0] * self.dims
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[self.dims - 1]
        return convolve(x, self.filter, self.bias, self.stride, inside, self.dilation, self.groups)

    def export(self) -> nn.Module:
        """The layer as an ``nn.Conv``, after a padding layer where that cannot say the padding."""
        symmetric = all(before == behind for before, behind in self._pads)
        padding: Any = [before for before, _ in self._pads] if symmetric else 0
        form = (self.in_channels, self.out_channels, self.kernel_size, self.stride, padding,
                self.dilation, self.groups, self.bias is not None)  # fmt: skip
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.dims - 1]
        layer: nn.Module = self._fill(kind(*form, self.padding_mode if symmetric else "zeros"))
        name = "CircularPad" if self._wraps else "ZeroPad"
        if symmetric:
            return layer
        return nn.Sequential(self._padding_layer(name, self._pads), layer).train(self.training)

    def _padding_layer(self, name: str, pads: list[tuple[int, int]]) -> nn.Module:
        return getattr(nn, f"{name}{self.dims}d")(tuple(_backwards(pads)))  # type: ignore

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, padding_mode={self.padding_mode!r}, "
            f"bias={self.bias is not None}"
        )


class OrthogonalConv1d(_OrthogonalConv):
    """Orthogonal convolution of signals ``[N, in, n]``; arguments are those of OrthogonalConv2d."""

    dims = 1


class OrthogonalConv2d(_OrthogonalConv):
    """A convolution that keeps the norm, with one explicit filter: it infers as ``nn.Conv2d``.

    Under circular padding it is orthogonal: the adjoint of an isometry where ``out <= in *
    stride**2``, else an isometry. Under zero padding, or none, it is 1-Lipschitz and not quite
    orthogonal at the border. The free parameters are ``weight``, whose polar factor is the filter
    of a patch of stride x stride pixels, and ``bases``, which span the projectors of pairs of taps
    that lengthen it; any values give such a filter. In eval it is computed in float64 and kept.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as ``nn.Conv2d``.
        padding: "same" (ceil(n / stride) outputs, half of the filter's reach before), "valid", or
            numbers.
        padding_mode: "circular", which wants sides that the stride divides, or "zeros".
        device, dtype: of the parameters.

    Raises TypeError or ValueError naming the argument; so are those refused that have no such
    filter: a kernel smaller than the stride, a dilation with a divisor of the stride, circular
    padding beyond "same". A group of one channel is a shift.
    Source: Li et al., "Preventing gradient attenuation in Lipschitz constrained convolutional
    networks" (BCOP), 2019; Boissin et al., "An adaptive orthogonal convolution scheme", 2025.
    """

    dims = 2


class OrthogonalConv3d(_OrthogonalConv):
    """Orthogonal convolution of ``[N, in, n, n, n]``; arguments are those of OrthogonalConv2d."""

    dims = 3


class _OrthogonalConvTranspose(_OrthogonalConv):
    def _padded(self, padding: Any) -> list[tuple[int, int]]:
        pads = super()._padded(padding)
        if self.padding_mode == "circular" and padding != "same" and any(map(any, pads)):
            raise ValueError(
                f"padding: got {padding}, want 'same' or 0 with circular padding: "
                "other images do not come from one"
            )
        return pads

    def _filter_shape(self, inputs: int, outputs: int) -> Shape:
        return Shape(self.groups, outputs, inputs, self.kernel_size, self.stride)

    def _cut(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Circular padding, what is cut on both sides, what is more and less behind; a dimension.

        What is cut or added follows from a full transposed convolution of the wrapped input.
        """
        around, cut, more, less = [], [], [], []
        for (before, _), reach, s in zip(self._pads, self._reach, self.stride, strict=True):
            q = -(-(reach - before) // s) if self._wraps else 0
            missing = s - 1 - (reach - 2 * before) if self.padding == "same" else 0
            around.append(q)
            cut.append(before + q * s)
            more.append(max(0, missing))
            less.append(min(0, missing))
        return around, cut, more, less

    def _map(self, x: Tensor) -> Tensor:
        around, cut, more, less = self._cut()
        convolve = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
        y: Tensor = convolve[self.dims - 1](
            wrap(x, [(q, q) for q in around]), self.filter, self.bias, self.stride, cut, more,
            self.groups, self.dilation,
        )  # fmt: skip
        return pad(y, _backwards([(0, n) for n in less])) if any(less) else y

    def export(self) -> nn.Module:
        """The layer as an ``nn.ConvTranspose``, between padding layers where it has to be."""
        around, cut, more, less = self._cut()
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[self.dims - 1]
        form: Any = (self.in_channels, self.out_channels, self.kernel_size, self.stride, cut, more,
                     self.groups, self.bias is not None, self.dilation)  # fmt: skip
        layers = [self._fill(kind(*form))]
        if any(around):
            layers.insert(0, self._padding_layer("CircularPad", [(q, q) for q in around]))
        if any(less):
            layers.append(self._padding_layer("ZeroPad", [(0, n) for n in less]))
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers).train(self.training)


class OrthogonalConvTranspose1d(_OrthogonalConvTranspose):
    """The same of signals ``[N, in, n]``; arguments are those of OrthogonalConvTranspose2d."""

    dims = 1


class OrthogonalConvTranspose2d(_OrthogonalConvTranspose):
    """The adjoint of ``OrthogonalConv2d(out_channels, in_channels, ...)``: as orthogonal.

    The arguments are those of OrthogonalConv2d; with padding "same" ``[N, in, H, W]`` becomes ``[N,
    out, stride H, stride W]``, with numbers, which want "zeros", the sides of
    ``nn.ConvTranspose2d``.
    """

    dims = 2


class OrthogonalConvTranspose3d(_OrthogonalConvTranspose):
    """The same of volumes ``[N, in, *D]``; arguments are those of OrthogonalConvTranspose2d."""

    dims = 3


def wrap(x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
    """Circular padding of ``[N, C, *D]``; for channels last, which torch's leaves, in a third."""
    for dim, (before, behind) in enumerate(pads, 2):
        n = x.shape[dim]
        if max(before, behind) > n:
            raise ValueError(
                f"x: got shape {list(x.shape)}, want sides of at least {max(before, behind)}, "
                "the padding"
            )
    if not is_channels_last(x):
        return pad(x, _backwards(pads), mode="circular")
    for dim, (before, behind) in enumerate(pads, 2):
        if before or behind:
            n = x.shape[dim]
            first, last = x.narrow(dim, n - before, before), x.narrow(dim, 0, behind)
            x = torch.cat([first, x, last], dim)
    return x


def _backwards(pads: list[tuple[int, int]]) -> list[int]:
    """As torch's padding wants them: the last dimension first."""
    return [side for both in reversed(pads) for side in both]
