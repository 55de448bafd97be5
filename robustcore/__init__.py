"""Accelerated, differentiable PyTorch ops for robust machine learning."""

import torch  # noqa: F401  (first: it loads the libtorch that the extension links to)

from robustcore import density, lipschitz, ops, smoothing
from robustcore._build import __version__, build_info
from robustcore.common.interop import as_tensor

__all__ = ["__version__", "as_tensor", "build_info", "density", "lipschitz", "ops", "smoothing"]
