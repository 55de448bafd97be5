"""An input for a model that says what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Sides of images that are tried: a linear layer after a flatten allows for one alone.
_SIDES = (32, 28, 16, 8, 64, 224, 48, 24, 12, 6, 4, 96, 128, 256, 299)
_DIMENSIONS: tuple[tuple[type[nn.Module], int], ...] = (
    (nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3),
    (nn.ConvTranspose1d, 1), (nn.ConvTranspose2d, 2), (nn.ConvTranspose3d, 3),
    (nn.BatchNorm1d, 0), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3),
)  # fmt: skip


def made_up(model: nn.Module) -> Tensor:
    """Zeros ``[1, *D]`` that the model takes.

    Raises ValueError where its first layer does not say what it takes, or no usual size fits.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    form: dict[str, Any] = {} if parameter is None else {
        "dtype": parameter.dtype, "device": parameter.device
    }  # fmt: skip
    reason: Exception | None = None
    for sizes in _candidates(model):
        example = torch.zeros(1, *sizes, **form)
        try:
            with torch.no_grad():
                model(example)
        except Exception as error:
            reason = error
        else:
            return example
    raise ValueError(
        f"example: want one, none was found that {type(model).__name__} takes ({reason})"
    ) from reason


def _candidates(model: nn.Module) -> Iterator[tuple[int, ...]]:
    channels, dimensions = 4, 2  # where no layer says
    for module in model.modules():
        if hasattr(module, "in_features"):
            yield (int(str(module.in_features)),)
            return
        size = getattr(module, "in_channels", getattr(module, "num_features", None))
        size = getattr(module, "channels", None) if size is None else size
        if isinstance(size, int):
            known = (n for kind, n in _DIMENSIONS if isinstance(module, kind))
            weight = getattr(module, "weight", None)
            by_weight = weight.dim() - 2 if isinstance(weight, Tensor) and weight.dim() > 2 else 2
            channels, dimensions = size, next(known, by_weight)
            break
    for side in _SIDES[: 1 if dimensions == 0 else None]:
        yield (channels, *[side] * dimensions)
