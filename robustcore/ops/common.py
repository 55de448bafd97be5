"""What ops share: checks of their arguments, and rules."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robustcore import _C  # noqa: F401  (registers torch.ops.robustcore)


def check_images(x: Any, seed: Any, memory_format: Any) -> None:
    """What every op that samples wants of its first arguments."""
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: got a 0-d tensor, want [B, *D]")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed!r}, want an int in [0, 2**64)")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"memory_format: got {memory_format}, want contiguous_format or channels_last"
        )


def check_out_dtype(out: Tensor, dtype: torch.dtype | None) -> None:
    if dtype is not None and out.dtype != dtype:
        raise ValueError(f"out: got {out.dtype}, want dtype {dtype}")


def check_floating(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: got {type(t).__name__}, want a tensor (see robustcore.as_tensor)")
    if not t.is_floating_point():
        raise TypeError(f"{name}: got {t.dtype}, want a floating dtype")


def stream_arguments(
    seed: int, image_offset: int | Tensor, sample_offset: int | Tensor
) -> tuple[int, int, int, Tensor | None, Tensor | None]:
    """The ops' five arguments of the stream: offsets as values, and as tensors the kernel reads."""
    images, samples = _offset(image_offset), _offset(sample_offset)
    # The schema's integers are signed.
    return seed - 2**64 if seed >= 2**63 else seed, images[0], samples[0], images[1], samples[1]


def _offset(offset: int | Tensor) -> tuple[int, Tensor | None]:
    return (0, offset) if isinstance(offset, Tensor) else (offset, None)


def per_channel(name: str, value: Any, x: Tensor) -> Tensor | None:
    """value as a tensor ``[1, C or 1, 1, ...]`` on x's device."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        value = _on_device(value, dtype, x.device)
    channels = x.shape[1] if x.dim() > 1 else 1
    if value.dim() > 1 or (value.numel() != 1 and value.numel() != channels):
        raise ValueError(
            f"{name}: got shape {list(value.shape)}, want one value or {channels}, one a channel"
        )
    return value.reshape(1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else value.reshape(1)


def _on_device(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor. On a GPU by kernels that write them: a copy from the host would wait."""
    if device.type == "cuda":
        if isinstance(value, (int, float)):
            return torch.full((), value, dtype=dtype, device=device)
        if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
            return torch.stack([torch.full((), v, dtype=dtype, device=device) for v in value])
    return torch.tensor(value, dtype=dtype, device=device)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative is asked for; a raw op has none, and forward mode would not notice."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def sum_to(t: Tensor, like: Tensor) -> Tensor:
    """t summed over the dimensions in which ``like`` was broadcast."""
    dims = [d for d in range(t.dim()) if like.shape[d] == 1]
    return (t.sum(dims, keepdim=True) if dims else t).to(like.dtype)


def _strides(sizes: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Strides of a dense tensor whose dimensions vary fastest in ``order``."""
    strides: list[Any] = [1] * len(sizes)
    stride: Any = 1
    for d in order:
        strides[d] = stride
        stride = stride * torch.sym_max(sizes[d], 1)
    return strides


def fake_samples(x, num_samples, dtype, channels_last):
    """An empty ``[B, S, *D]``."""
    sizes = [x.shape[0], num_samples, *x.shape[1:]]
    order = [2, 4, 3, 1, 0] if channels_last else range(len(sizes) - 1, -1, -1)
    return torch.empty_strided(sizes, _strides(sizes, order), dtype=dtype, device=x.device)


def fake_out(*arguments):
    return None


def map_calls(op, info, in_dims, arguments):
    """vmap as a loop: the noise depends on the index inside a call, so calls cannot be merged."""
    results = [
        op(*[a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)])
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], tuple):
        columns = tuple(torch.stack(column) for column in zip(*results, strict=True))
        return columns, tuple(0 for _ in columns)
    return torch.stack(results), 0


def register_loop(op):
    torch.library.register_vmap(
        op.name(),
        lambda info, in_dims, *arguments: map_calls(op, info, in_dims, arguments),
    )
