"""Copies of images, ``[B, S, *D]``: how the fake kernels lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def fake_samples(x: Tensor, num_samples: Any, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An empty ``[B, S, *D]``."""
    sizes = [x.shape[0], num_samples, *x.shape[1:]]
    order = [2, 4, 3, 1, 0] if channels_last else range(len(sizes) - 1, -1, -1)
    return torch.empty_strided(sizes, _strides(sizes, order), dtype=dtype, device=x.device)


def _strides(sizes: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Strides of a dense tensor whose dimensions vary fastest in ``order``."""
    strides: list[Any] = [1] * len(sizes)
    stride: Any = 1
    for d in order:
        strides[d] = stride
        stride = stride * torch.sym_max(sizes[d], 1)
    return strides
