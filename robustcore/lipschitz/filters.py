"""Orthogonal filters of convolutions in any number of dimensions, out of free matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustcore.ops.lipschitz.polar import distance, orthonormal_basis, polar_factor

# Of products in double precision, relative, with room to spare.
_ROUNDING = 1 + 1e-10


class Shape(NamedTuple):
    """Of an orthogonal convolution's filter, per group."""

    groups: int
    inputs: int
    outputs: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def steps(self) -> list[int]:
        """The dimension that each pair of blocks lengthens by a tap, one after another."""
        left = [k - s for k, s in zip(self.kernel_size, self.stride, strict=True)]
        return [d for i in range(max(left, default=0)) for d in range(len(left)) if i < left[d]]

    @property
    def inner(self) -> int:
        """Channels between: what the pairs map to itself."""
        return max(self.inputs, self.outputs // math.prod(self.stride) if self.steps else 1)

    @property
    def weight(self) -> tuple[int, int, int]:
        """Of the free matrix that a patch of ``stride`` taps is multiplied with."""
        return self.groups, self.outputs, math.prod(self.stride) * self.inner

    @property
    def bases(self) -> tuple[int, int, int, int]:
        """Of the free matrices that span the pairs' projectors."""
        return len(self.steps), self.groups, self.inner, self.inner // 2


def orthogonal_filter(shape: Shape, weight: Tensor, bases: Tensor | None) -> Tensor:
    """``[groups, *kernel_size, outputs, inputs]``, for any values of the free matrices.

    The polar factor of ``weight`` is an orthogonal filter as large as the stride. Each pair
    ``[P, I - P]``, P the orthogonal projector to the span of a basis, is an orthogonal filter of
    two taps; composed with it, the filter grows by one tap, by one product for all taps. Channels
    that are not there count as zeros. Differentiable to any order.
    Source: Xiao et al., 2018; Li et al. (BCOP), 2019; Boissin et al. (AOC), 2025.
    """
    basis = () if bases is None else orthonormal_basis(bases).unbind()
    return _compose(shape, polar_factor(weight), _projectors(basis))


def certified_filter(shape: Shape, weight: Tensor, bases: Tensor | None) -> tuple[Tensor, float]:
    """The filter from double precision in weight's dtype, and a bound of its convolution's norm.

    Scaled by so little that the bound, its rounding to that dtype included, is 1.
    """
    factor = polar_factor(weight.double())
    basis = () if bases is None else orthonormal_basis(bases.double()).unbind()
    exact = _compose(shape, factor, _projectors(basis))
    # The symbol of a pair is P + z (I - P), |z| = 1, whose norm is 1 up to what P is no projector.
    norm = math.sqrt(1 + distance(factor))
    for one in basis:
        norm *= 1 + 2 * distance(one)
    return rounded(exact, norm, weight.dtype)


def rounded(exact: Tensor, norm: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """A float64 filter ``[groups, *kernel_size, outputs, inputs]`` in a dtype, and its bound.

    ``norm`` is that of the exact one up to products' rounding; it is scaled by so little more that
    the bound is 1.
    """
    exact = exact / (norm * _ROUNDING)
    scale = 1 + 2 * max(_rounding(exact, dtype), torch.finfo(dtype).eps)
    exact = exact / scale
    return exact.to(dtype), max(1.0, 1 / scale + _rounding(exact, dtype))


def _projectors(bases: Sequence[Tensor]) -> list[Tensor]:
    return [basis @ basis.mT for basis in bases]


def _compose(shape: Shape, factor: Tensor, projectors: list[Tensor]) -> Tensor:
    groups, inner = shape.groups, shape.inner
    taps = factor.unflatten(-1, (*shape.stride, inner))  # [groups, outputs, *stride, inner]
    filter = taps.movedim(1, -2)
    for i, dim in enumerate(shape.steps):
        passed = (filter.reshape(groups, -1, inner) @ projectors[i]).view(filter.shape)
        left, right = passed, filter - passed
        if shape.steps[:i].count(dim) % 2:  # the ranks of odd widths even out
            left, right = right, left
        behind = [0, 0] * (filter.dim() - 2 - dim)
        filter = pad(left, [*behind, 0, 1]) + pad(right, [*behind, 1, 0])
    inputs: Tensor = filter[..., : shape.inputs]
    return inputs


def _rounding(filter: Tensor, dtype: torch.dtype) -> float:
    """Bound of the norm of the convolution with what a dtype cannot hold of the filter."""
    lost = torch.linalg.matrix_norm(filter.to(dtype).double() - filter)  # one a tap
    return float(lost.reshape(len(lost), -1).sum(1).max())
