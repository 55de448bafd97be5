"""What ``Smooth`` asks of images, models and sample sizes before anything is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcore.common.checks import require_int, require_probability, require_values
from robustcore.common.interop import as_tensor
from robustcore.smoothing.theory.distributions import Distribution
from robustcore.smoothing.theory.grids import MAX_ALPHA

# The counter space of the noise ops.
MAX_IMAGES, MAX_SAMPLES = 2**48, 2**40
LEAST_ALPHA = 1e-50
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_sizes(
    n0: Any, n: Any, alpha: Any, noise: Distribution | None = None
) -> tuple[int, int, float]:
    """Samples of selection and estimation, and the failure probability."""
    n0 = require_int("n0", n0, 1, MAX_SAMPLES)
    n = require_int("n", n, 1, MAX_SAMPLES - n0)
    return n0, n, require_level(alpha, noise)


def require_level(alpha: Any, noise: Distribution | None = None) -> float:
    """The failure probability: of whose parts, for looks and classes, bounds can still be computed,
    and below 1/4 where votes may differ by their place in a batch.
    """
    level: float = require_probability("alpha", alpha)
    if level < LEAST_ALPHA:
        raise ValueError(f"alpha: got {level}, want at least {LEAST_ALPHA}")
    if noise is not None and noise.sound and level >= MAX_ALPHA:
        raise ValueError(f"alpha: got {level}, want a number below {MAX_ALPHA} for noise on a grid")
    return level


def require_enough(what: str, n: int, smallest: int, alpha: float) -> None:
    """ValueError where ``n`` unanimous votes would not do."""
    if n < smallest:
        raise ValueError(
            f"n: got {n}, too few to {what} at alpha={alpha} even if all samples agree; "
            f"want at least {smallest}"
        )


def require_batch(x: Any, input_dims: int = 3) -> tuple[Tensor, bool]:
    """x as a batch ``[B, *D]`` of inputs of so many dimensions, and whether it was a single one.

    NumPy arrays are taken as they are. A warning where values are not in [0, 1].
    """
    x = require_values("x", _from_numpy(x))
    if x.dtype not in DTYPES:
        raise TypeError(f"x: got {x.dtype}, want a floating dtype, pixels in [0, 1]")
    single = x.dim() == input_dims
    if not single and x.dim() != input_dims + 1:
        one = _one_input(input_dims)
        raise ValueError(f"x: got shape {list(x.shape)}, want [{one}] or [B, {one}]{_HINT}")
    images: Tensor = (x.unsqueeze(0) if single else x).detach()
    if images[0:1].numel() == 0 and len(images):
        raise ValueError(f"x: got shape {list(x.shape)}, want at least one pixel")
    if len(images):
        low, high = torch.stack(images.aminmax()).tolist()
        if not (-torch.inf < low and high < torch.inf):
            raise ValueError("x: got NaN or infinite pixels, want finite ones in [0, 1]")
        # What is no image has units of its own.
        if input_dims == 3 and (low < 0 or high > 1):
            warnings.warn(
                f"x: pixels range from {low:.4g} to {high:.4g}, outside [0, 1]. sigma and the "
                "radii are in the units of x; to normalise, give Smooth mean and std",
                UserWarning,
                stacklevel=4,
            )
    return images, single


def require_input(x: Tensor, input_dims: int) -> None:
    """ValueError unless x is one input."""
    if x.dim() != input_dims:
        want = _one_input(input_dims)
        raise ValueError(f"x: got shape {list(x.shape)}, want one input [{want}]{_HINT}")


_HINT = "; input_dims says how many dimensions are one input"
_DIMENSIONS = {1: ("D",), 2: ("C", "T"), 3: ("C", "H", "W"), 4: ("C", "D", "H", "W")}


def _one_input(input_dims: int) -> str:
    return ", ".join(_DIMENSIONS.get(input_dims, (f"{input_dims} dimensions",)))


def _from_numpy(x: Any) -> Any:
    """An array as a tensor, of its own memory where torch can have it; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.kind not in "fiu":
        raise TypeError(f"x: got an array of {x.dtype}, want a floating dtype")
    # torch has no negative strides and no foreign byte order.
    return as_tensor(np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(x.shape))


def require_form(dtype: Any, memory_format: Any) -> None:
    """Of what models receive; None: the dtype of the images."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}, want a torch.dtype")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}, want one of {', '.join(map(str, DTYPES))}")
    wanted = "contiguous_format or channels_last"
    if not isinstance(memory_format, torch.memory_format):
        raise TypeError(f"memory_format: got {memory_format!r}, want {wanted}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format: got {memory_format}, want {wanted}")


def place_of(models: Sequence[Any]) -> torch.device | None:
    """Where the first parameter of the models is; None without one."""
    for model in models:
        if isinstance(model, nn.Module):
            for parameter in model.parameters():
                return parameter.device
    return None


def dtype_for(models: Sequence[Any], images: Tensor) -> torch.dtype:
    """What the models receive unless told: the images' dtype, or what modules can take of it.

    float64 images of a float32 module are float32 there, after the noise. Half precision goes to
    any module, by autocast.
    """
    if images.dtype in (torch.float16, torch.bfloat16):
        return images.dtype
    modules = [model for model in models if isinstance(model, nn.Module)]
    own = [p.dtype for module in modules for p in module.parameters() if p.dtype in DTYPES]
    return images.dtype if not own or images.dtype in own else own[0]


def warn_if_training(model: Any, name: str = "base_classifier") -> None:
    """A model whose votes depend on each other certifies nothing."""
    if isinstance(model, nn.Module) and any(
        module.training and not _only_calls(module) for module in model.modules()
    ):
        warnings.warn(
            f"{name} is in training mode: BatchNorm then makes a vote depend on the other "
            "votes of its batch and dropout is random, so no certificate holds; call .eval()",
            UserWarning,
            stacklevel=4,
        )


def _only_calls(module: nn.Module) -> bool:
    """Whether a module's own flag means nothing, since it only calls others, which have theirs.

    A wrapper is made in training mode, around a model that may long be in eval mode.
    """
    name = type(module).__name__
    return type(module) in _CONTAINERS or name in ("DistributedDataParallel", "OptimizedModule")


_CONTAINERS = (nn.DataParallel, nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Share of a call's samples that may be NaN: above, nothing that is answered means anything.
MOST_NAN = 0.5


def speak_of_nan(invalid: int, samples: int, silent: bool) -> bool:
    """Warns, unless silent, that so many samples had no vote; ValueError where most had none."""
    said = (
        f"base_classifier: gave NaN for {invalid} of {samples} samples, which vote for no class "
        "(float16 overflows above 65504, bfloat16 does not)"
    )
    if invalid > MOST_NAN * samples:
        raise ValueError(said)
    if not silent:
        warnings.warn(said, UserWarning, stacklevel=4)
    return True
