"""Accelerated, differentiable PyTorch ops for robust machine learning."""

import importlib.util

if importlib.util.find_spec("robustcore._C") is None:
    raise ImportError(
        f"{__path__[0]} is robustcore's source without its compiled part: start Python in another "
        "folder to use the installed package, or compile in place with `pip install -e .`"
    )

import torch  # noqa: F401  (first: it loads the libtorch that the extension links to)

from robustcore import attacks, density, influence, lipschitz, masking, ops, smoothing
from robustcore._build import __version__, build_info, get_include
from robustcore.common.interop import as_tensor

__all__ = [
    "__version__",
    "as_tensor",
    "attacks",
    "build_info",
    "density",
    "get_include",
    "influence",
    "lipschitz",
    "masking",
    "ops",
    "smoothing",
]
