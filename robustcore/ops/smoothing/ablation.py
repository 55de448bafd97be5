"""Images ablated: all but some pixels drawn at random, or all but a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import (
    arithmetic,
    fake_nothing,
    needs_grad,
    raw,
    register_loop,
    sum_to,
)
from robustcore.ops.checks import check_images, check_integer, pair, per_channel
from robustcore.ops.smoothing.samples import fake_samples
from robustcore.ops.stream import Offsets, stream_arguments

_ABLATE = {kind: getattr(raw, f"ablate_{kind}").default for kind in ("pixels", "patches")}
_ABLATE_OUT = {kind: getattr(raw, f"ablate_{kind}_out").default for kind in _ABLATE}
_SUMS = {kind: getattr(raw, f"ablate_{kind}_sums").default for kind in _ABLATE}


def ablate_pixels(
    x: Tensor,
    num_samples: int,
    k: int,
    *,
    seed: int,
    image_offset: int | Tensor = 0,
    sample_offset: int | Tensor = 0,
    fill: float | Sequence[float] | Tensor | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Copies of images of which exactly k pixels each are kept, drawn without replacement.

    The pixels kept depend on (seed, image index, sample index) alone: the same on CPU and GPU,
    whatever the batch, the layout, the dtype and the number of threads or devices. Every set of k
    pixels is equally likely. A sample costs min(k, d - k) draws and one write an element. The
    stream is documented in ``csrc/smoothing/ablation.h`` and stays as it is within a major version.

    Args:
        x: images ``[B, C, *D]``, floating, any strides, pixels in [0, 1]; d is the number of
            elements of ``D``, at most 2**24. All channels of a pixel are kept or ablated together.
        num_samples: S, copies of each image.
        k: pixels to keep, in [0, d].
        seed: in [0, 2**64).
        image_offset: image b has index ``image_offset + b``; indices are below 2**48.
        sample_offset: sample s has index ``sample_offset + s``; indices are below 2**40. Either
            offset may be a 0-d int64 tensor on x's device; its value is not checked.
        fill: what an ablated pixel becomes, in the units of x: a float, or one a channel (the mean
            of the data, say). None: the NULL encoding, 2C channels ``[x, 1 - x]``, all of them zero
            where ablated, which no pixel is.
        mean, std: per-channel normalisation ``(v - mean) / std`` of kept and filled pixels; not
            with the NULL encoding.
        dtype: of the output; default that of x.
        memory_format: ``torch.channels_last`` lays out so the ``[B * S, C, H, W]`` view.
        out: receives the result instead of a new tensor; exactly its shape and layout. Not
            differentiable.

    Returns:
        ``[B, S, 2C or C, *D]`` of ``dtype``.

    Raises TypeError or ValueError naming the argument.
    Differentiable, to any order, in x, fill, mean and std. Forward-mode AD is refused.
    Under ``torch.func.vmap`` every mapped call keeps the same pixels. Autocast leaves it alone.

    Source: Levine and Feizi, "Robustness certificates for sparse adversarial attacks by randomized
    ablation", 2020.
    """
    dtype, channels_last = check_images(x, dtype, memory_format, out)
    num_samples = check_integer("num_samples", num_samples, below=1 << 40)
    k = check_integer("k", k)
    stream, offsets = stream_arguments(seed, image_offset, sample_offset, x)
    call = _Call("pixels", num_samples, (k, *stream), dtype, channels_last)
    return _ablate(x, (fill, mean, std), offsets, call, out)


def ablate_patches(
    x: Tensor,
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    positions: tuple[int, int] | None = None,
    fill: float | Sequence[float] | Tensor | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Copies of images of which one window each is kept, at every position or a range of them.

    Position i has its corner at ``(i // n * stride, i % n * stride)`` with ``n = ceil(W /
    stride)``; a window that reaches over an edge goes on at the opposite one. A window as high as
    the image is a band: ``size = stride = (H, s)`` apart from the stride of its columns.

    Args:
        x: images ``[B, C, H, W]``, floating, any strides, pixels in [0, 1], at most 2**24 of them.
        size: of the window: an int, or (height, width); at least 1, at most the image's.
        stride: between neighbouring positions: an int, or (down, right).
        positions: (first, last + 1) of those wanted, default all ``ceil(H / stride) * ceil(W /
            stride)``.

    The other arguments, what is raised and the derivatives are those of :func:`ablate_pixels`.

    Returns:
        ``[B, P, 2C or C, H, W]`` of ``dtype``, P the number of positions.

    Source: Levine and Feizi, "(De)randomized smoothing for certifiable defense against patch
    attacks", 2020.
    """
    dtype, channels_last = check_images(x, dtype, memory_format, out)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [B, C, H, W]")
    size, stride = pair("size", size), pair("stride", stride)
    if positions is None:
        positions = (0, -(-x.shape[2] // stride[0]) * -(-x.shape[3] // stride[1]))
    first, end = pair("positions", positions, 0)
    if end < first:
        raise ValueError(f"positions: got {positions}, want (first, last + 1)")
    call = _Call("patches", end - first, (first, *size, *stride), dtype, channels_last)
    return _ablate(x, (fill, mean, std), (None, None), call, out)


class _Call(NamedTuple):
    """The arguments of an ablation that are no tensors."""

    kind: str
    num_samples: int
    where: tuple[int, ...]  # of pixels k and the stream; of patches the first position, the window
    dtype: torch.dtype
    channels_last: bool


def _where(call: _Call, offsets: Offsets) -> tuple[Any, ...]:
    """What the raw ops take of both."""
    return (*call.where, *offsets) if call.kind == "pixels" else call.where


def _ablate(
    x: Tensor,
    colors: tuple[Any, Any, Any],  # fill, mean, std
    offsets: Offsets,
    call: _Call,
    out: Tensor | None,
) -> Tensor:
    if x.dim() < 3:
        raise ValueError(f"x: got shape {list(x.shape)}, want [B, C, *D]")
    values, fill = _encode(x, *colors)
    if out is None:
        if needs_grad(values, fill):
            return _Ablation.apply(values, fill, *offsets, call)
        return _raw_ablation(values, fill, offsets, call)
    if needs_grad(values, fill):
        raise ValueError("out: cannot be given when an input requires a gradient")
    _ABLATE_OUT[call.kind](
        values, fill, call.num_samples, *_where(call, offsets), call.channels_last, out
    )
    return out


def _raw_ablation(values, fill, offsets, call):
    return _ABLATE[call.kind](
        values, fill, call.num_samples, *_where(call, offsets), call.dtype, call.channels_last
    )


def _encode(x: Tensor, fill: Any, mean: Any, std: Any) -> tuple[Tensor, Tensor | None]:
    """What a kept pixel becomes, and an ablated one: once an image, not once a sample."""
    if fill is None:
        if mean is not None or std is not None:
            name = "mean" if mean is not None else "std"
            raise ValueError(f"{name}: cannot normalise the NULL encoding; give fill, or neither")
        return torch.cat([x, 1 - x], 1), None
    fill, mean, std = (
        per_channel(name, value, x)
        for name, value in (("fill", fill), ("mean", mean), ("std", std))
    )
    filled = fill.to(arithmetic(x))
    if mean is None and std is None:
        return x, filled
    shift, scale = 0 if mean is None else mean, 1 if std is None else std
    return (x.to(filled.dtype) - shift) / scale, (filled - shift) / scale


class _Ablation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values, fill, image_offset, sample_offset, call):
        return _raw_ablation(values, fill, (image_offset, sample_offset), call)

    @staticmethod
    def setup_context(ctx, inputs, output):
        values, fill, *offsets, ctx.call = inputs
        ctx.dtype = values.dtype
        ctx.save_for_backward(fill, *offsets)

    @staticmethod
    def backward(ctx, grad):
        fill, *offsets = ctx.saved_tensors
        kept = _KeptSums.apply(grad, *offsets, ctx.call)
        grad_fill = None
        if ctx.needs_input_grad[1]:
            grad_fill = sum_to(grad.sum(1, dtype=kept.dtype) - kept, fill)
        return kept.to(ctx.dtype), grad_fill, None, None, None


class _KeptSums(torch.autograd.Function):
    """The adjoint of an ablation with zeros: sums of grad over the samples that keep the pixel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, image_offset, sample_offset, call):
        return _SUMS[call.kind](grad, *_where(call, (image_offset, sample_offset)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, *offsets, call = inputs
        ctx.call = call._replace(dtype=grad.dtype, channels_last=False)
        ctx.save_for_backward(*offsets)

    @staticmethod
    def backward(ctx, total):
        offsets = ctx.saved_tensors
        if needs_grad(total):
            grad = _Ablation.apply(total, None, *offsets, ctx.call)
        else:
            grad = _raw_ablation(total, None, offsets, ctx.call)
        return grad, None, None, None


def _fake_ablation(values, fill, num_samples, *arguments):
    return fake_samples(values, num_samples, *arguments[-2:])


def _fake_kept_sums(grad, *arguments):
    return grad.new_empty([grad.shape[0], *grad.shape[2:]], dtype=arithmetic(grad))


for _op in _ABLATE.values():
    torch.library.register_fake(_op.name(), _fake_ablation)
    register_loop(_op)  # what is ablated depends on the index inside a call
for _op in _ABLATE_OUT.values():
    torch.library.register_fake(_op.name(), fake_nothing)
for _op in _SUMS.values():
    torch.library.register_fake(_op.name(), _fake_kept_sums)
    register_loop(_op)
