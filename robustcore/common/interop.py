"""Tensors from other array libraries, without a copy."""

import warnings
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack


def as_tensor(array: Any) -> torch.Tensor:
    """A torch tensor that shares the memory of ``array``.

    Args:
        array: a torch tensor, or anything with DLPack (NumPy, CuPy, JAX, ...) or the CUDA array
            interface. Shape, dtype and device stay as they are.

    Raises TypeError if ``array`` offers neither protocol or has a dtype that torch lacks,
    ValueError if its memory cannot be shared as it lies (negative strides). A read-only array gives
    a tensor that must not be written to; our ops never write to their inputs.
    """
    if isinstance(array, torch.Tensor):
        return array
    if isinstance(array, np.ndarray):
        return _from_numpy(array)
    if hasattr(array, "__dlpack__"):
        return from_dlpack(array)
    if hasattr(array, "__cuda_array_interface__"):
        return torch.as_tensor(array, device="cuda")
    raise TypeError(
        f"array: got {type(array).__name__}, want one with __dlpack__ or __cuda_array_interface__"
    )


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    # Not through DLPack, which refuses read-only arrays in some NumPy versions.
    if any(stride < 0 for stride in array.strides):
        raise ValueError(
            f"array: got negative strides {array.strides}, which torch cannot share; "
            "want numpy.ascontiguousarray(array)"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"array: got dtype {array.dtype}, which torch cannot share") from error
