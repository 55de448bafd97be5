"""Ops of the smoothing family: noise from a counter-based stream, and votes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.ops.autograd import fake_nothing, needs_grad, raw, register_loop, sum_to
from robustcore.ops.checks import check_images, check_out_dtype, per_channel
from robustcore.ops.smoothing.samples import fake_samples
from robustcore.ops.stream import stream_arguments

# By distribution: the noise, the same into a given tensor, and the sums of its backward.
_NOISE = {
    kind: getattr(raw, f"{kind}_noise").default
    for kind in ("gaussian", "uniform", "laplace", "splitting")
}
_NOISE_OUT = {kind: getattr(raw, f"{kind}_noise_out").default for kind in _NOISE}
_AFFINE = ("gaussian", "uniform", "laplace")
_SUMS = {kind: getattr(raw, f"{kind}_noise_sums").default for kind in _AFFINE}


def gaussian_noise(
    x: Tensor,
    num_samples: int,
    sigma: float | Tensor,
    *,
    seed: int,
    image_offset: int | Tensor = 0,
    sample_offset: int | Tensor = 0,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Noisy, normalised copies of images in one pass: ``(x + sigma * z - mean) / std``.

    ``z`` is standard normal and depends on (seed, image index, sample index, element index) alone:
    the same bits on CPU and GPU, whatever the batch, the layout, the dtype and the number of
    threads or devices. It is a float32, |z| < 6.77. The stream is documented in
    ``csrc/common/stream.h`` and stays as it is within a major version. Arithmetic is in
    float32, in float64 if the output is.

    Args:
        x: images ``[B, *D]``, floating, any strides; in pixel units, usually [0, 1].
        num_samples: S, copies of each image.
        sigma: noise level in the units of x: a float, a tensor ``[B]`` (one an image), or a map
            that broadcasts to ``[B, *D]`` (zero where there shall be no noise). A 1-d tensor of
            length B is taken as one an image. Tensors are not checked for negative values.
        seed: in [0, 2**64).
        image_offset: image b has index ``image_offset + b``; indices are below 2**48.
        sample_offset: sample s has index ``sample_offset + s``; indices are below 2**40. Either
            offset may be a 0-d int64 tensor on x's device, which the kernel reads: a captured CUDA
            graph can advance it. Its value is not checked.
        mean, std: per channel (dimension 1 of x): a float, C floats or a tensor ``[C]``.
        dtype: of the output; default that of x.
        memory_format: ``torch.channels_last`` lays out so the ``[B * S, C, H, W]`` view of the
            output.
        out: receives the result instead of a new tensor; exactly its shape and layout. Not
            differentiable.

    Returns:
        ``[B, S, *D]`` of ``dtype``.

    Raises TypeError or ValueError naming the argument.
    Differentiable, to any order, in x and in sigma, mean and std where they are tensors; the noise
    is regenerated in backward, nothing of the output's size is kept. Forward-mode AD is refused
    (torch.compile cannot trace a Function that has it). Under ``torch.func.vmap`` every mapped call
    sees the same noise. Autocast leaves it alone.

    >>> x = torch.zeros(2, 3, 32, 32)
    >>> noisy = gaussian_noise(x, 100, 0.25, seed=1)
    >>> noisy.shape
    torch.Size([2, 100, 3, 32, 32])
    >>> later = gaussian_noise(x[1:], 10, 0.25, seed=1, image_offset=1, sample_offset=90)
    >>> torch.equal(later, noisy[1:, 90:])
    True

    Source: Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing",
    2019; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    return _affine_noise(
        "gaussian", "sigma", x, num_samples, sigma, seed, image_offset, sample_offset, mean, std,
        dtype, memory_format, out,
    )  # fmt: skip


def uniform_noise(
    x: Tensor,
    num_samples: int,
    scale: float | Tensor,
    *,
    seed: int,
    image_offset: int | Tensor = 0,
    sample_offset: int | Tensor = 0,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Noisy, normalised copies of images in one pass: ``(x + scale * u - mean) / std``.

    ``u`` is uniform on [-1, 1], so the standard deviation of the noise is ``scale / sqrt(3)``.
    Everything else, the stream, the arguments, the errors and the derivatives, is as in
    :func:`gaussian_noise`, with ``scale`` in the place of ``sigma``.

    Source: Lee, Yuan, Chang, Jaakkola, "Tight certificates of adversarial robustness for randomly
    smoothed classifiers", 2019; Yang et al., "Randomized smoothing of all shapes and sizes", 2020.
    """
    return _affine_noise(
        "uniform", "scale", x, num_samples, scale, seed, image_offset, sample_offset, mean, std,
        dtype, memory_format, out,
    )  # fmt: skip


def laplace_noise(
    x: Tensor,
    num_samples: int,
    scale: float | Tensor,
    *,
    seed: int,
    image_offset: int | Tensor = 0,
    sample_offset: int | Tensor = 0,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Noisy, normalised copies of images in one pass: ``(x + scale * v - mean) / std``.

    ``v`` is Laplace of density ``exp(-|v|) / 2``, cut off at |v| < 22.2, so the standard deviation
    of the noise is ``scale * sqrt(2)``. Everything else, the stream, the arguments, the errors and
    the derivatives, is as in :func:`gaussian_noise`, with ``scale`` in the place of ``sigma``.

    Source: Teng, Lee, Yuan, "l1 adversarial robustness certificates: a randomized smoothing
    approach", 2019; Yang et al., "Randomized smoothing of all shapes and sizes", 2020.
    """
    return _affine_noise(
        "laplace", "scale", x, num_samples, scale, seed, image_offset, sample_offset, mean, std,
        dtype, memory_format, out,
    )  # fmt: skip


def splitting_noise(
    x: Tensor,
    num_samples: int,
    scale: float,
    *,
    seed: int,
    derandomized: bool = False,
    image_offset: int | Tensor = 0,
    sample_offset: int | Tensor = 0,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Split, normalised copies of images in one pass: ``(split(x) - mean) / std``.

    Thresholds ``s + j * 2 * scale`` cut the line; the value of a pixel is the middle of that piece
    of [0, 1] which it falls into. At random, s is uniform in (0, 2 * scale), each pixel's own.
    Derandomized, there are ``L = splitting_levels(scale)`` samples: sample i of a pixel has ``s =
    ((offset + i) mod L + 1/2) / 255``, the offset drawn once a pixel from ``seed`` and the same for
    every image. There the value is exact for 8-bit images, an integer over 1020 rounded once.

    Args:
        x: images ``[B, *D]``, floating, any strides, pixels in [0, 1]; derandomized, multiples of
            1/255 (they are rounded to them).
        scale: half the distance of the thresholds, above 0, in the units of x.
        sample_offset: derandomized, sample_offset + num_samples may not exceed L (the value of a
            tensor is taken modulo L).

    The other arguments, the returns and what is raised are those of :func:`gaussian_noise`. The
    result is piecewise constant in x: its gradient is zero wherever it exists, and none is
    recorded.

    Source: Levine and Feizi, "Improved, deterministic smoothing for l1 certified robustness", 2021.
    """
    check_images(x, seed, memory_format)
    scale = float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, want a finite number above 0")
    levels = splitting_levels(scale) if derandomized else 0
    arguments = (
        x.detach(), num_samples, scale, levels, _detached(per_channel("mean", mean, x)),
        _detached(per_channel("std", std, x)),
        *stream_arguments(seed, image_offset, sample_offset),
    )  # fmt: skip
    channels_last = memory_format == torch.channels_last
    if out is None:
        return _NOISE["splitting"](*arguments, dtype or x.dtype, channels_last)
    check_out_dtype(out, dtype)
    _NOISE_OUT["splitting"](*arguments, channels_last, out)
    return out


def splitting_levels(scale: float) -> int:
    """L, the number of samples of derandomized splitting: ``2 * scale * 255``, rounded down.

    Raises ValueError where that is no integer in [1, 2**20). Source: Levine and Feizi, 2021.
    """
    # A scale written as L / 510 may have been rounded below it.
    levels = math.floor(510 * scale * (1 + 1e-12))
    if not 1 <= levels < 2**20:
        raise ValueError(f"scale: got {scale}, which gives {levels} levels, want 1 to 2**20 - 1")
    return levels


def _affine_noise(
    kind: str, level_name: str, x: Tensor, num_samples: int, sigma: float | Tensor, seed: int,
    image_offset: int | Tensor, sample_offset: int | Tensor, mean: Any, std: Any,
    dtype: torch.dtype | None, memory_format: torch.memory_format, out: Tensor | None,
) -> Tensor:  # fmt: skip
    check_images(x, seed, memory_format)
    sigma_value, sigma_map = 0.0, None
    if isinstance(sigma, Tensor):
        sigma_map = _level_map(level_name, sigma, x)
    else:
        sigma_value = float(sigma)
    arguments = (
        sigma_map, per_channel("mean", mean, x), per_channel("std", std, x),
        *stream_arguments(seed, image_offset, sample_offset),
    )  # fmt: skip
    channels_last = memory_format == torch.channels_last
    if out is None:
        return _apply_noise(
            kind, x, num_samples, sigma_value, *arguments, dtype or x.dtype, channels_last
        )
    if needs_grad(x, *arguments[:3]):
        raise ValueError("out: cannot be given when an input requires a gradient")
    check_out_dtype(out, dtype)
    _NOISE_OUT[kind](x, num_samples, sigma_value, *arguments, channels_last, out)
    return out


def _detached(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach()


def _level_map(name: str, sigma: Tensor, x: Tensor) -> Tensor:
    """The noise level with x's number of dimensions."""
    if not sigma.is_floating_point():
        sigma = sigma.to(torch.float32)
    if sigma.dim() > x.dim():
        raise ValueError(
            f"{name}: got shape {list(sigma.shape)}, want one that broadcasts to {list(x.shape)}"
        )
    if sigma.dim() == 1 and sigma.shape[0] == x.shape[0]:
        return sigma.reshape(-1, *[1] * (x.dim() - 1))
    return sigma.reshape(*[1] * (x.dim() - sigma.dim()), *sigma.shape)


def _apply_noise(kind: str, x: Tensor, num_samples: int, sigma: float, *arguments: Any) -> Tensor:
    """The raw op where nothing needs a gradient: it is several times cheaper to call."""
    if needs_grad(x, *arguments[:3]):
        return _AffineNoise.apply(x, num_samples, sigma, *arguments, kind)
    return _NOISE[kind](x, num_samples, sigma, *arguments)


class _AffineNoise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x, num_samples, sigma, sigma_map, mean, std, seed, image_offset, sample_offset,
        image_offset_tensor, sample_offset_tensor, dtype, channels_last, kind,
    ):  # fmt: skip
        return _NOISE[kind](
            x, num_samples, sigma, sigma_map, mean, std, seed, image_offset, sample_offset,
            image_offset_tensor, sample_offset_tensor, dtype, channels_last,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, ctx.sigma, sigma_map, mean, std, *stream = inputs[:11]
        ctx.stream, ctx.kind = stream[:3], inputs[-1]
        ctx.save_for_backward(x, sigma_map, mean, std, *stream[3:])

    @staticmethod
    def backward(ctx, grad):
        x, sigma_map, mean, std, *offsets = ctx.saved_tensors
        need_x, _, _, need_sigma, need_mean, need_std = ctx.needs_input_grad[:6]
        # d out = (dx + z dsigma - dmean - out dstd) / std, and every term needs only the sums over
        # samples of grad and of grad * z.
        total, noise_total = _NoiseSums.apply(
            grad, *ctx.stream, *offsets, need_sigma or need_std, ctx.kind
        )
        if std is not None:
            total, noise_total = total / std, noise_total / std if need_sigma or need_std else None
        grads: list[Tensor | None] = [None] * 14
        if need_x:
            grads[0] = total.to(x.dtype)
        if need_sigma:
            grads[3] = sum_to(noise_total, sigma_map)
        if need_mean:
            grads[4] = -sum_to(total, mean)
        if need_std:
            shift = x.to(total.dtype) if mean is None else x.to(total.dtype) - mean
            level = ctx.sigma if sigma_map is None else sigma_map
            grads[5] = -sum_to((shift * total + level * noise_total) / std, std)
        return tuple(grads)


class _NoiseSums(torch.autograd.Function):
    """The adjoint of the noise op: sums over samples of grad and of grad * z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad, seed, image_offset, sample_offset, image_offset_tensor, sample_offset_tensor,
        with_noise, kind,
    ):  # fmt: skip
        return _SUMS[kind](
            grad, seed, image_offset, sample_offset, image_offset_tensor, sample_offset_tensor,
            with_noise,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, *stream, ctx.with_noise, ctx.kind = inputs
        ctx.num_samples, ctx.dtype, ctx.stream = grad.shape[1], grad.dtype, stream[:3]
        ctx.save_for_backward(*stream[3:])

    @staticmethod
    def backward(ctx, total, noise_total):
        if ctx.with_noise:
            # The adjoint of the adjoint is the noise op itself.
            grad = _apply_noise(
                ctx.kind, total, ctx.num_samples, 0.0, noise_total, None, None, *ctx.stream,
                *ctx.saved_tensors, ctx.dtype, False,
            )  # fmt: skip
        else:
            grad = total.to(ctx.dtype).unsqueeze(1)
            grad = grad.expand(-1, ctx.num_samples, *[-1] * (total.dim() - 1))
        return grad, None, None, None, None, None, None, None


def _fake_noise(x, num_samples, *arguments):
    return fake_samples(x, num_samples, *arguments[-2:])


def _fake_sums(grad, *arguments):
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    sizes = [grad.shape[0], *grad.shape[2:]]
    return (
        grad.new_empty(sizes, dtype=dtype),
        grad.new_empty(sizes if arguments[-1] else [0], dtype=dtype),
    )


for _op in _NOISE.values():
    torch.library.register_fake(_op.name(), _fake_noise)
for _op in _NOISE_OUT.values():
    torch.library.register_fake(_op.name(), fake_nothing)
for _op in _SUMS.values():
    torch.library.register_fake(_op.name(), _fake_sums)


for _op in (*_NOISE.values(), *_SUMS.values()):
    register_loop(_op)
