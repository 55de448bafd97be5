"""What ``Smooth`` asks of images, models and sample sizes before anything is drawn."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_int, require_probability, require_values

# The counter space of the noise ops.
MAX_IMAGES, MAX_SAMPLES = 2**48, 2**40
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_sizes(n0: Any, n: Any, alpha: Any) -> tuple[int, int, float]:
    """Samples of selection and estimation, and the failure probability."""
    n0 = require_int("n0", n0, 1, MAX_SAMPLES)
    n = require_int("n", n, 1, MAX_SAMPLES - n0)
    return n0, n, require_probability("alpha", alpha)


def require_enough(what: str, n: int, smallest: int, alpha: float) -> None:
    """ValueError where ``n`` unanimous votes would not do."""
    if n < smallest:
        raise ValueError(
            f"n: got {n}, too few to {what} at alpha={alpha} even if all samples agree; "
            f"want at least {smallest}"
        )


def require_batch(x: Any) -> Tensor:
    """x as a batch ``[B, C, H, W]``; a warning where its pixels are not in [0, 1]."""
    x = require_values("x", x)
    if x.dtype not in DTYPES:
        raise TypeError(f"x: got {x.dtype}, want a floating dtype, pixels in [0, 1]")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: got shape {list(x.shape)}, want [C, H, W] or [B, C, H, W]")
    images: Tensor = (x if x.dim() == 4 else x.unsqueeze(0)).detach()
    if images[0:1].numel() == 0 and len(images):
        raise ValueError(f"x: got shape {list(x.shape)}, want at least one pixel")
    if len(images):
        low, high = torch.stack(images.aminmax()).tolist()
        if not (-torch.inf < low and high < torch.inf):
            raise ValueError("x: got NaN or infinite pixels, want finite ones in [0, 1]")
        if low < 0 or high > 1:
            warnings.warn(
                f"x: pixels range from {low:.4g} to {high:.4g}, outside [0, 1]. sigma and the "
                "radii are in the units of x; to normalise, give Smooth mean and std",
                UserWarning,
                stacklevel=4,
            )
    return images


def warn_if_training(model: Any) -> None:
    """A model whose votes depend on each other certifies nothing."""
    if isinstance(model, nn.Module) and any(m.training for m in model.modules()):
        warnings.warn(
            "base_classifier is in training mode: BatchNorm then makes a vote depend on the other "
            "votes of its batch and dropout is random, so no certificate holds; call .eval()",
            UserWarning,
            stacklevel=4,
        )
