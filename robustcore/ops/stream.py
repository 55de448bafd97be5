"""Where in the counter stream an op draws, see csrc/common/stream.h."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustcore.ops.checks import check_device, check_integer, check_tensor


class Stream(NamedTuple):
    """The key, and the indices of the first image and sample as far as they are known on the host.

    To them the kernel adds what :data:`Offsets` hold. In the order of the raw ops' arguments.
    """

    seed: int
    image_offset: int
    sample_offset: int


# 0-d tensors that the kernel reads, of images and of samples. They are tensors among a Function's
# arguments, so they are no part of the Stream.
Offsets = tuple[Tensor | None, Tensor | None]


def stream_arguments(
    seed: Any, image_offset: Any, sample_offset: Any, x: Tensor
) -> tuple[Stream, Offsets]:
    """A public op's arguments as those of the raw op."""
    seed = signed_seed(seed)
    images = _offset("image_offset", image_offset, 1 << 48, x)
    samples = _offset("sample_offset", sample_offset, 1 << 40, x)
    return Stream(seed, images[0], samples[0]), (images[1], samples[1])


def signed_seed(seed: Any) -> int:
    """A seed as the schemas have it, whose integers are signed."""
    seed = check_integer("seed", seed, below=1 << 64)
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _offset(name: str, offset: Any, below: int, x: Tensor) -> tuple[int, Tensor | None]:
    if not isinstance(offset, Tensor):
        return check_integer(name, offset, below=below), None
    check_tensor(name, offset)
    check_device(name, offset, x)
    if offset.dtype != torch.int64 or offset.dim() != 0:
        raise ValueError(
            f"{name}: got {offset.dtype} of shape {list(offset.shape)}, want a 0-d int64 tensor"
        )
    return 0, offset
