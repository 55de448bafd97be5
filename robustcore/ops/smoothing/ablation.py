"""Ops of the smoothing family that ablate: pixels at random, or all but a window."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import fake_nothing, needs_grad, raw, register_loop, sum_to
from robustcore.ops.checks import check_images, check_out_dtype, per_channel
from robustcore.ops.smoothing.samples import fake_samples
from robustcore.ops.stream import stream_arguments

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
    check_images(x, seed, memory_format)
    rest = (num_samples, k, *stream_arguments(seed, image_offset, sample_offset))
    return _ablate("pixels", x, rest, fill, mean, std, dtype, memory_format, out)


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
    check_images(x, 0, memory_format)
    if x.dim() != 4:
        raise ValueError(f"x: got shape {list(x.shape)}, want [B, C, H, W]")
    patch_h, patch_w = _pair("size", size)
    stride_h, stride_w = _pair("stride", stride)
    if positions is None:
        if stride_h < 1 or stride_w < 1:
            raise ValueError(f"stride: got {stride}, want at least 1")
        positions = (0, -(-x.shape[2] // stride_h) * -(-x.shape[3] // stride_w))
    first, last = _pair("positions", positions)
    if last < first:
        raise ValueError(f"positions: got {positions}, want (first, last + 1)")
    rest = (last - first, first, patch_h, patch_w, stride_h, stride_w)
    return _ablate("patches", x, rest, fill, mean, std, dtype, memory_format, out)


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    integers = all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not integers:
        raise TypeError(f"{name}: got {value!r}, want an int or two")
    return pair


def _ablate(
    kind: str, x: Tensor, rest: tuple[Any, ...], fill: Any, mean: Any, std: Any,
    dtype: torch.dtype | None, memory_format: torch.memory_format, out: Tensor | None,
) -> Tensor:  # fmt: skip
    if x.dim() < 3:
        raise ValueError(f"x: got shape {list(x.shape)}, want [B, C, *D]")
    dtype = dtype or (x.dtype if out is None else out.dtype)
    values, filled = _encode(x, fill, mean, std)
    channels_last = memory_format == torch.channels_last
    if out is None:
        if needs_grad(values, filled):
            return _Ablation.apply(values, filled, kind, rest, dtype, channels_last)
        return _ABLATE[kind](values, filled, *rest, dtype, channels_last)
    if needs_grad(values, filled):
        raise ValueError("out: cannot be given when an input requires a gradient")
    check_out_dtype(out, dtype)
    _ABLATE_OUT[kind](values, filled, *rest, channels_last, out)
    return out


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
    filled = fill.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if mean is None and std is None:
        return x, filled
    shift, scale = 0 if mean is None else mean, 1 if std is None else std
    return (x.to(filled.dtype) - shift) / scale, (filled - shift) / scale


class _Ablation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values, fill, kind, rest, dtype, channels_last):
        return _ABLATE[kind](values, fill, *rest, dtype, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        values, fill, ctx.kind, ctx.rest, _, _ = inputs
        ctx.dtype = values.dtype
        ctx.save_for_backward(fill)

    @staticmethod
    def backward(ctx, grad):
        (fill,) = ctx.saved_tensors
        kept = _KeptSums.apply(grad, ctx.kind, ctx.rest)
        grad_fill = None
        if ctx.needs_input_grad[1]:
            grad_fill = sum_to(grad.sum(1, dtype=kept.dtype) - kept, fill)
        return kept.to(ctx.dtype), grad_fill, None, None, None, None


class _KeptSums(torch.autograd.Function):
    """The adjoint of an ablation with zeros: sums of grad over the samples that keep the pixel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, kind, rest):
        return _SUMS[kind](grad, *rest[1:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, ctx.kind, ctx.rest = inputs
        ctx.dtype = grad.dtype

    @staticmethod
    def backward(ctx, total):
        if needs_grad(total):
            return _Ablation.apply(total, None, ctx.kind, ctx.rest, ctx.dtype, False), None, None
        return _ABLATE[ctx.kind](total, None, *ctx.rest, ctx.dtype, False), None, None


def _fake_ablation(values, fill, num_samples, *arguments):
    return fake_samples(values, num_samples, *arguments[-2:])


def _fake_kept_sums(grad, *arguments):
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return grad.new_empty([grad.shape[0], *grad.shape[2:]], dtype=dtype)


for _op in _ABLATE.values():
    torch.library.register_fake(_op.name(), _fake_ablation)
for _op in _ABLATE_OUT.values():
    torch.library.register_fake(_op.name(), fake_nothing)
for _op in _SUMS.values():
    torch.library.register_fake(_op.name(), _fake_kept_sums)
for _op in (*_ABLATE.values(), *_SUMS.values()):
    register_loop(_op)
