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
    image_offset: int | Tensor = 0,
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
            ``torch.manual_seed`` repeats a training run; under torch.compile the noise is then at a
            random place of the stream of seed 0 instead, drawn on the device without a break of the
            graph, and step and image_offset mean nothing (bands and blocks need a seed there).
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
    step = require_int("step", step, 0, 2**40)
    sample_offset: int | Tensor = step
    if seed is None and torch.compiler.is_compiling() and _has_offsets(sigma):
        # The host may not read what is drawn; 87 random bits of the counter are as good as a key.
        seed = 0
        image_offset = torch.randint(2**47, (), device=x.device)
        sample_offset = torch.randint(2**40, (), device=x.device)
    elif seed is None:
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
    if isinstance(sigma, Distribution):
        return sigma.augment(x, step=sample_offset, **arguments)
    return ops.gaussian_noise(x, 1, sigma, sample_offset=sample_offset, **arguments).squeeze(1)


def _has_offsets(sigma: float | Tensor | Distribution) -> bool:
    """Whether the noise takes its place in the stream as a tensor."""
    return not isinstance(sigma, Distribution) or sigma.offsets_on_device
