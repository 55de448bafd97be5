"""The exponential of a skew convolution, applied to images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robustcore.common.checks import require_flag
from robustcore.ops.autograd import loop, needs_grad, transforming
from robustcore.ops.checks import check_floating, check_like
from robustcore.ops.lipschitz.recurrence import (
    adjoint,
    adjoint_of_x,
    evaluate,
    filter_gradient,
    prepare,
    reference,
)
from robustcore.ops.lipschitz.series import Series, exp_series
from robustcore.ops.lipschitz.series_block import chosen
from robustcore.ops.lipschitz.skew import check_skew

_DEFAULT_TOL = {
    torch.float64: 1e-14,
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 1e-2,
}


def conv_exp(
    x: Tensor,
    kernel: Tensor,
    *,
    radius: float,
    tol: float | None = None,
    degree: int | None = None,
    method: str = "chebyshev",
    contractive: bool = False,
    recompute: bool = False,
    fused: bool | None = None,
    check: bool = True,
) -> Tensor:
    """``exp(conv) x``, conv being the zero-padded convolution with a skew kernel: orthogonal.

    One convolution a degree of :func:`exp_series`. On the CPU, float32 3 x 3 kernels of at least 24
    channels run all degrees of a few images at a time, in cache, with Winograd's convolution; else
    each convolution is torch's, followed by one fused pass. The backward pass uses that the
    transpose of the convolution is the one with ``-kernel``; the gradient of the kernel is that of
    the polynomial, exactly.

    Args:
        x: ``[N, C, H, W]``, floating, any strides; channels_last is kept, and is what the CPU
            computes in.
        kernel: ``[C, C, kh, kw]`` of x's dtype, odd sides, skew: ``kernel[o, i] = -flip(kernel[i,
            o])`` (see :func:`skew_kernel`).
        radius: at least the norm of the convolution (see :func:`conv_norm_bound`). If it is not,
            the result is still a polynomial of the convolution, but no bound holds.
        tol, degree: at most one: the error wanted, relative to norm(x), or the degree. Default: the
            tol that suits the dtype, 1e-6 in float32, 1e-14 in float64. A 1 x 1 kernel without
            ``degree`` is one matrix exponential.
        method: ``chebyshev``, or ``taylor`` for weights trained with that.
        contractive: scale so that the map is 1-Lipschitz in exact arithmetic, see
            :func:`exp_series`.
        recompute: keep x alone for backward and compute the rest again. Default: also
            ``degree - 1`` tensors of x's size.
        fused: on a GPU, all degrees in one kernel on the tensor cores (compute capability 8.0 or
            newer, float32 and bfloat16, 3 x 3, 32, 64 or 128 channels, maps that its shared memory
            holds, whole or in tiles) in place of cuDNN's convolutions. None: where a table of
            measured shapes says it is faster; True: ValueError where it cannot run.
        check: refuse a kernel that is not skew. Costs one pass over the kernel on the CPU; kernels
            on a GPU are not checked, which would wait for them.

    Returns:
        ``[N, C, H, W]``.

    Rounding adds an error of a few units in the last place of norm(x) per degree, in the
    convolutions' own precision: on a GPU float32 convolutions use TF32 unless told otherwise, the
    fused kernel never does. Its result is channels_last, and the same in every run on one device
    and in every batch, but not to the bit that of convolutions. Where
    the series itself is further than 1e-5 from the exponential (a training degree), a coarser
    Winograd tile rounds up to seven times as much, about 1e-6.
    Differentiable to any order in x and kernel; under autocast it runs in the lower precision.
    Raises TypeError or ValueError naming the argument.
    Source: Singla and Feizi, "Skew orthogonal convolutions", 2021.
    """
    _check_arguments(x, kernel)
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, kernel = x.to(dtype), kernel.to(dtype)
    if tol is None and degree is None:
        tol = _DEFAULT_TOL[x.dtype]
    series = exp_series(radius, tol, degree, method=method, contractive=contractive)
    if fused is not None:
        series = series._replace(fused=require_flag("fused", fused))
        chosen(x, kernel, series)
    recompute, check = require_flag("recompute", recompute), require_flag("check", check)
    if check and x.device.type == "cpu" and not torch.compiler.is_compiling():
        check_skew("kernel", kernel)
    if degree is None and tuple(kernel.shape[2:]) == (1, 1):
        wide = kernel if kernel.dtype == torch.float64 else kernel.float()
        matrix = torch.linalg.matrix_exp(wide[:, :, 0, 0])
        return torch.conv2d(x, matrix.to(x.dtype)[:, :, None, None])
    return apply_series(x, kernel, series, recompute)


def _check_arguments(x: Any, kernel: Any) -> None:
    check_floating("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, H, W]")
    if x.dtype not in _DEFAULT_TOL:
        raise TypeError(f"x: got {x.dtype}, want float32, float64, float16 or bfloat16")
    check_like("kernel", kernel, x)
    shape = list(kernel.shape)
    if len(shape) != 4 or shape[0] != shape[1] or shape[2] % 2 == 0 or shape[3] % 2 == 0:
        raise ValueError(f"kernel: got shape {shape}, want [C, C, kh, kw] with odd kh, kw")
    if x.shape[1] != kernel.shape[0]:
        raise ValueError(f"x: got {x.shape[1]} channels, want the kernel's {kernel.shape[0]}")


def apply_series(x: Tensor, filter: Tensor, series: Series, recompute: bool = False) -> Tensor:
    """The polynomial ``series`` of the convolution with ``filter``, applied to x, unchecked."""
    if series.degree == 0 or x.numel() == 0:
        return x * series.coefficients[0] + 0 * filter.sum()
    if forward_ad._current_level >= 0:  # Functions have no rule for it
        return reference(x, filter, series)
    if needs_grad(x, filter) or transforming():  # which our own kernel does not know
        y: Tensor = _ConvExp.apply(x, filter, series, recompute)[0]
        return y
    return evaluate(x, prepare(x, filter, series), series, keep=False)[0]


class _ConvExp(torch.autograd.Function):
    @staticmethod
    def forward(x, filter, series, recompute):
        return evaluate(x, prepare(x, filter, series), series, keep=not recompute)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, filter, ctx.series, ctx.recompute = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, filter, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, _):
        x, filter, kept = ctx.saved_tensors
        if grad is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # create_graph: through operations that torch differentiates
            series = ctx.series
            vjp = torch.func.vjp(lambda x, filter: reference(x, filter, series), x, filter)[1]
            return *vjp(grad), None, None
        prepared = prepare(x, filter, ctx.series)
        if not ctx.needs_input_grad[1]:
            return adjoint_of_x(grad, prepared, ctx.series), None, None, None
        grad_x, work = adjoint(x, prepared, kept, grad, ctx.series, ctx.needs_input_grad[0])
        return grad_x, filter_gradient(x, work, ctx.series), None, None

    @staticmethod
    def vmap(info, in_dims, x, filter, series, recompute):
        if in_dims[1] is None:  # images are independent: the mapped dimension joins them
            x = x.movedim(in_dims[0], 0)
            y, kept = _ConvExp.apply(x.flatten(0, 1), filter, series, recompute)
            return (y.unflatten(0, x.shape[:2]), kept), (0, None)

        def one(x, filter):
            return _ConvExp.apply(x, filter, series, recompute)[0]

        return (loop(one, info, in_dims[:2], (x, filter))[0], x.new_empty(0)), (0, None)
