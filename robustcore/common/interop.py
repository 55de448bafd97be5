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
            interface. Shape, dtype and device stay as they are, and the current stream waits for
            the one that the interface names.

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
        # torch reads the pointer but not `stream`, that of the work which still fills the memory.
        tensor = torch.as_tensor(array, device="cuda")
        _wait_for(array.__cuda_array_interface__.get("stream"), tensor.device)
        return tensor
    raise TypeError(
        f"array: got {type(array).__name__}, want one with __dlpack__ or __cuda_array_interface__"
    )


def _wait_for(stream: int | None, device: torch.device) -> None:
    """The current stream goes on when that one has done what it was given so far.

    ``stream`` is as in version 3 of the interface: None, nothing to wait for; 1 and 2, the legacy
    and the per-thread default stream; else a pointer.
    """
    if stream is None:
        return
    if stream == 0:
        raise ValueError("array: got stream 0 in __cuda_array_interface__, which is ambiguous")
    if stream == 1:  # torch's default stream is the legacy one, which it knows as 0
        other = torch.cuda.default_stream(device)
    else:
        other = torch.cuda.ExternalStream(stream, device=device)
    torch.cuda.current_stream(device).wait_stream(other)


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
