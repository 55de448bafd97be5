"""What answers to part of an image: a masked model, or a function that hides in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_broadcast, require_callable
from robustcore.masking.model import MaskedModel

Predictor: TypeAlias = Callable[[Tensor, Tensor], Any]
"""A function of images ``[N | 1, C, H, W]`` and masks ``[N, 1, H, W]`` to the model's output."""


def as_predictor(model: Any) -> Predictor:
    """A module as one that takes masks; a function of (x, mask) as it is."""
    if isinstance(model, nn.Module):
        require_eval(model)
        return model if isinstance(model, MaskedModel) else MaskedModel(model)
    if isinstance(model, type) or not callable(model):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model: got {got}, want a torch.nn.Module or a function of (x, mask)")
    return model  # type: ignore[no-any-return]


def require_eval(model: Any) -> None:
    """Refuses a module in training mode: an answer would depend on the batch, or on chance."""
    if not isinstance(model, nn.Module):
        return
    # A MaskedModel's own flag says nothing: it is new, and the model in it may have been for long.
    parts = model.children() if isinstance(model, MaskedModel) else (model,)
    if any(module.training for part in parts for module in part.modules()):
        raise ValueError(
            "model: is in training mode, in which an answer depends on the rest of the batch or on "
            "chance; call eval()"
        )


def replaced(model: nn.Module, value: float | Sequence[float] | Tensor) -> Predictor:
    """The usual way to hide, to compare with: what is hidden is set to ``value``.

    Values of a mask between 0 and 1 weigh image and value, so that with ``value=0`` the image is
    multiplied by its mask, as RISE does.

    Args:
        model: takes images ``[N, C, H, W]``, floating.
        value: a number, one a channel, or an image ``[C, H, W]`` (a blurred one, say), in the units
            of the images: grey, or the data's mean.

    Returns:
        A function of (x, mask) to the model's output, for all that explains or evaluates.

    Raises TypeError, ValueError naming the argument.
    """
    require_callable("model", model)
    values = _as_image(value)

    def predict(x: Tensor, mask: Tensor) -> Any:
        require_eval(model)
        fill = require_broadcast("value", values, x[:1]).to(x)
        if mask.dtype == torch.bool:
            return model(torch.where(mask, x, fill))
        mask = mask.to(x.dtype)
        # Not a product alone: a NaN of what is hidden would pass.
        between = torch.where(mask > 0, torch.lerp(fill, x, mask), fill)
        return model(torch.where(mask == 1, x, between))

    return predict


def _as_image(value: Any) -> Tensor:
    """A number, one a channel or an image as float64 ``[1, C or 1, H or 1, W or 1]``."""
    try:
        values = torch.as_tensor(value)
        odd = values.is_complex() or values.is_nested or values.layout != torch.strided
        if odd or values.dtype == torch.bool:
            raise TypeError
        values = values.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        got = f"got {value!r}"
        raise TypeError(f"value: {got}, want a number, one a channel or an image") from None
    want = "want a finite number, one a channel or an image [C, H, W]"
    if values.dim() not in (0, 1, 3) or values.numel() == 0:
        raise ValueError(f"value: got shape {list(values.shape)}, {want}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"value: got {value!r}, {want}")
    return values.unsqueeze(0) if values.dim() == 3 else values.view(1, -1, 1, 1)
