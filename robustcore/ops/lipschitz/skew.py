"""The skew part of a convolution's filter."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robustcore.ops.autograd import arithmetic, needs_grad, raw, register_loop
from robustcore.ops.checks import check_filter
from robustcore.ops.lipschitz.norm_bounds import matrix_norm

_skew = raw.skew.default


class SkewKernel(NamedTuple):
    """The skew part of a weight and the spectral norms of its four reshapes."""

    kernel: Tensor
    norms: Tensor


def skew_kernel(weight: Tensor) -> SkewKernel:
    """``S = (M - T(M)) / 2`` and the spectral norms of its four reshapes to matrices.

    T swaps the channels and flips the taps: the zero-padded convolution with S is a skew map. S is
    skew to the bit in every precision. Its reshapes (out h) x (in w) and (out w) x (in h) have the
    same norm, and so have out x (in h w) and in x (out h w); two decompositions give all four.

    Args:
        weight: ``[C, C, kh, kw]``, floating, odd sides, any strides.

    Returns:
        ``kernel`` as weight, contiguous, and ``norms`` ``[4]``, in the order above; ``sqrt(kh kw)``
        times their minimum bounds the convolution's norm. Differentiable to any order (the norms
        where the largest singular value is simple). Raises TypeError or ValueError naming weight.
    Source: Singla and Feizi, "Fantastic four", 2021; "Skew orthogonal convolutions", 2021.
    """
    kernel = skew(weight)
    c, _, h, w = kernel.shape
    wide = kernel.to(arithmetic(kernel))
    square = wide.permute(0, 2, 1, 3).reshape(c * h, c * w)
    mixed, flat = (matrix_norm("weight", m) for m in (square, wide.reshape(c, -1)))
    return SkewKernel(kernel, torch.stack([mixed, mixed, flat, flat]).to(kernel.dtype))


def skew(weight: Tensor) -> Tensor:
    """The skew part alone, see :func:`skew_kernel`."""
    check_filter("weight", weight)
    if weight.dim() != 4 or weight.shape[0] != weight.shape[1] or 0 in weight.shape:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want [C, C, kh, kw]")
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want odd sides kh, kw")
    if forward_ad._current_level >= 0:
        return (weight - weight.transpose(0, 1).flip(2, 3)) / 2
    return _Skew.apply(weight) if needs_grad(weight) else _skew(weight.contiguous())


def check_skew(name: str, filter: Tensor) -> None:
    """The filter is its own skew part, up to rounding. Reads its values."""
    _SkewCheck.apply(filter.detach(), name)


class _Skew(torch.autograd.Function):
    """A projection, hence its own transpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight):
        return _skew(weight.contiguous())

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return _Skew.apply(grad)


class _SkewCheck(torch.autograd.Function):
    """No derivative: a Function because vmap hands plain tensors to those."""

    @staticmethod
    def forward(filter, name):
        filter = filter.contiguous()
        if filter.numel():
            distance, size = (_skew(filter) - filter).abs().amax(), filter.abs().amax()
            if bool(distance > 64 * torch.finfo(filter.dtype).eps * size):
                raise ValueError(
                    f"{name}: is not skew: it differs from its skew part by {float(distance):.3g}; "
                    "want ops.skew_kernel(weight).kernel"
                )
        return filter.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, filter, name):
        for one in filter.movedim(in_dims[0], 0):
            _SkewCheck.apply(one, name)
        return filter.new_empty(info.batch_size, 0), 0


@torch.library.register_fake("robustcore::skew")
def _(weight):
    return torch.empty_like(weight)


register_loop(_skew, Tensor.contiguous)
