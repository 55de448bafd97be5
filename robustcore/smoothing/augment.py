"""Noise augmentation for training a base classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import (
    require_floating,
    require_int,
    require_not_negative,
    require_seed,
)
from robustcore.common.normalize import check_channel_values
from robustcore.smoothing.theory.distributions import Distribution


def noise_augment(
    x: Tensor,
    sigma: float | Tensor | Distribution,
    *,
    seed: int | None = None,
    step: int = 0,
    image_offset: int = 0,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """One noisy, normalised copy of each image: ``(x + sigma * z - mean) / std`` in one pass.

    Args:
        x: images ``[B, ...]``, floating, in pixel units.
        sigma: noise level in the units of x: a float, a tensor ``[B]``, or a map that broadcasts to
            x; the one that will be certified is the usual choice. Or another distribution, of
            whose samples it is one: images ``[B, C, H, W]``, and its own shape of them.
        seed: of the noise, in [0, 2**64). None draws one from torch's default generator, so that
            ``torch.manual_seed`` repeats a training run.
        step: index of the copy, in [0, 2**40): with a given seed, count it up from step to step
            (or from epoch to epoch) to get new noise.
        image_offset: x[b] is image ``image_offset + b`` of the noise stream.
        mean, std: per-channel normalisation: a float, C of them or a tensor ``[C]``.
        dtype: of the result, by default that of x.

    Returns:
        A tensor shaped (but for ablations with the NULL encoding) and laid out (contiguous or
        channels_last) as x.

    Raises TypeError or ValueError, naming the argument.
    Differentiable in x and in sigma, mean and std where they are tensors.
    Source: Lecuyer et al., 2019; Cohen et al., 2019.
    """
    if not isinstance(sigma, (Tensor, Distribution)):
        sigma = require_not_negative("sigma", sigma)
    require_floating("x", x)
    if not isinstance(image_offset, Tensor):
        image_offset = require_int("image_offset", image_offset, 0, 2**48)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}, want a torch.dtype")
    for name, value in (("mean", mean), ("std", std)):
        if not isinstance(value, Tensor):
            check_channel_values(name, value)
    if seed is None:
        seed = int(torch.empty((), dtype=torch.int64).random_())
    channels_last = (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    arguments: dict[str, Any] = {
        "seed": require_seed(seed),
        "image_offset": image_offset,
        "mean": mean,
        "std": std,
        "dtype": dtype,
        "memory_format": torch.channels_last if channels_last else torch.contiguous_format,
    }
    step = require_int("step", step, 0, 2**40)
    if isinstance(sigma, Distribution):
        return sigma.augment(x, step=step, **arguments)
    return ops.gaussian_noise(x, 1, sigma, sample_offset=step, **arguments).squeeze(1)
