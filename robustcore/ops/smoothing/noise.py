"""Noise from a counter-based stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import require_flag
from robustcore.ops.autograd import needs_grad
from robustcore.ops.checks import (
    check_device,
    check_images,
    check_integer,
    check_number,
    check_tensor,
    per_channel,
)
from robustcore.ops.smoothing.noise_autograd import LEVEL, NOISE, NOISE_OUT, Call, sample
from robustcore.ops.stream import stream_arguments


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
        "gaussian", x, num_samples, sigma, (seed, image_offset, sample_offset), (mean, std),
        (dtype, memory_format, out),
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
        "uniform", x, num_samples, scale, (seed, image_offset, sample_offset), (mean, std),
        (dtype, memory_format, out),
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
        "laplace", x, num_samples, scale, (seed, image_offset, sample_offset), (mean, std),
        (dtype, memory_format, out),
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
    dtype, channels_last = check_images(x, dtype, memory_format, out)
    num_samples = check_integer("num_samples", num_samples, below=1 << 40)
    scale = check_number("scale", scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, want a finite number above 0")
    levels = splitting_levels(scale) if require_flag("derandomized", derandomized) else 0
    stream, offsets = stream_arguments(seed, image_offset, sample_offset, x)
    mean, std = _detached(per_channel("mean", mean, x)), _detached(per_channel("std", std, x))
    arguments = (x.detach(), num_samples, scale, levels, mean, std, *stream, *offsets)
    if out is None:
        return NOISE["splitting"](*arguments, dtype, channels_last)
    NOISE_OUT["splitting"](*arguments, channels_last, out)
    return out


def splitting_levels(scale: float) -> int:
    """L, the number of samples of derandomized splitting: ``2 * scale * 255``, rounded down.

    Raises TypeError or ValueError where that is no integer in [1, 2**20). Source: Levine and Feizi,
    2021.
    """
    # A scale written as L / 510 may have been rounded below it.
    levels = 510 * check_number("scale", scale) * (1 + 1e-12)
    if not 1 <= levels < 2**20:
        raise ValueError(f"scale: got {scale}, which gives {levels:g} levels, want 1 to 2**20 - 1")
    return math.floor(levels)


def _affine_noise(
    kind: str,
    x: Tensor,
    num_samples: int,
    sigma: float | Tensor,
    stream: tuple[Any, Any, Any],  # seed, image_offset, sample_offset
    normalisation: tuple[Any, Any],  # mean, std
    output: tuple[Any, Any, Tensor | None],  # dtype, memory_format, out
) -> Tensor:
    dtype, channels_last = check_images(x, *output)
    num_samples = check_integer("num_samples", num_samples, below=1 << 40)
    sigma_map = None
    if isinstance(sigma, Tensor):
        sigma_map = _sigma_map(LEVEL[kind], sigma, x)
        sigma = 0.0
    else:
        sigma = check_number(LEVEL[kind], sigma)
    mean, std = normalisation
    mean, std = per_channel("mean", mean, x), per_channel("std", std, x)
    on_host, offsets = stream_arguments(*stream, x)
    call = Call(kind, num_samples, sigma, on_host, dtype, channels_last)
    out = output[2]
    if out is None:
        return sample(x, sigma_map, mean, std, offsets, call)
    if needs_grad(x, sigma_map, mean, std):
        raise ValueError("out: cannot be given when an input requires a gradient")
    NOISE_OUT[kind](
        x, num_samples, sigma, sigma_map, mean, std, *on_host, *offsets, channels_last, out
    )
    return out


def _detached(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach()


def _sigma_map(name: str, sigma: Tensor, x: Tensor) -> Tensor:
    """The noise level with x's number of dimensions."""
    check_tensor(name, sigma)
    check_device(name, sigma, x)
    if sigma.is_complex() or sigma.is_quantized:
        raise TypeError(f"{name}: got {sigma.dtype}, want a floating dtype")
    if not sigma.is_floating_point():
        sigma = sigma.to(torch.float32)
    if sigma.dim() > x.dim():
        raise ValueError(
            f"{name}: got shape {list(sigma.shape)}, want one that broadcasts to {list(x.shape)}"
        )
    if sigma.dim() == 1 and sigma.shape[0] == x.shape[0]:
        return sigma.reshape(-1, *[1] * (x.dim() - 1))
    return sigma.reshape(*[1] * (x.dim() - sigma.dim()), *sigma.shape)
