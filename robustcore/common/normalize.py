"""Per-channel normalisation as tensors that stay on their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Normalization:
    """mean and std of an image's channels, turned once per device into tensors ``[C]``.

    Args:
        mean, std: a float for all channels, C floats or a tensor ``[C]``; None: not this step.

    Raises ValueError, naming the argument: not finite, std not above 0, or of a wrong length.
    """

    def __init__(
        self,
        mean: float | Sequence[float] | Tensor | None,
        std: float | Sequence[float] | Tensor | None,
    ) -> None:
        self._mean, self._std = check_channel_values("mean", mean), check_channel_values("std", std)
        if self._std is not None and not bool((self._std > 0).all()):
            raise ValueError(f"std: got {std}, want numbers above 0")
        self._cache: dict[
            tuple[torch.device, torch.dtype, int], tuple[Tensor | None, Tensor | None]
        ] = {}

    def on(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """mean and std, each ``[C]``, for images ``[B, C, ...]``."""
        # Kept, because copying them to a GPU at every batch would wait for it.
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        key = (images.device, dtype, images.shape[1])
        if key not in self._cache:
            self._cache[key] = tuple(  # type: ignore[assignment]
                None if values is None else _expand(name, values, key[2]).to(images.device, dtype)
                for name, values in (("mean", self._mean), ("std", self._std))
            )
        return self._cache[key]


def check_channel_values(name: str, value: Any) -> Tensor | None:
    """A number, or one a channel, as float64 on the CPU; None as it is."""
    if value is None:
        return None
    try:
        values = torch.as_tensor(value).detach()
        if values.dtype == torch.bool or values.is_complex() or values.layout != torch.strided:
            raise TypeError
        values = values.to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}: got {value!r}, want a number or one a channel") from None
    if values.dim() > 1 or values.numel() == 0 or not bool(values.isfinite().all()):
        raise ValueError(f"{name}: got {value!r}, want a finite number or one a channel")
    return values


def _expand(name: str, values: Tensor, channels: int) -> Tensor:
    if values.numel() not in (1, channels):
        raise ValueError(
            f"{name}: got {values.numel()} values for images of {channels} channels, "
            "want one or one a channel"
        )
    return values.expand(channels)
