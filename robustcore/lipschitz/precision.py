"""Float32 at its own precision, whatever was set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn
_MKLDNN: Any = torch.backends.mkldnn
_BACKENDS: tuple[Any, ...] = (torch.backends, _CUDNN, _MKLDNN)
_OPERATIONS: tuple[Any, ...] = (
    _CUDNN.conv, _CUDNN.rnn, torch.backends.cuda.matmul,
    _MKLDNN.conv, _MKLDNN.matmul, _MKLDNN.rnn,
)  # fmt: skip

# One of them agrees with any state of the older interface.
_AGREEING = (("ieee",) * 6, ("tf32",) * 6, ("tf32", "tf32", "tf32", "bf16", "bf16", "bf16"))


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 convolutions and matrix products at full precision: no TF32, no autocast.

    A context; :func:`robustcore.lipschitz.certify` is inside it already. Whatever
    ``torch.backends`` was set to, by either of its interfaces, is as before afterwards.
    """
    seen = [place.fp32_precision for place in (*_BACKENDS, *_OPERATIONS)]
    before = _own_settings()
    flags = _flags()
    _set_flags((False, "highest"))
    _set(("ieee",) * len(_OPERATIONS))
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _set_flags(flags)
        _set(before)
        for place, value in zip((*_BACKENDS, *_OPERATIONS), seen, strict=True):
            if place.fp32_precision != value:  # what it follows is not all that it looks at
                place.fp32_precision = value


def _flags() -> tuple[Any, ...]:
    """The older interface's, which raises unless the newer one's settings agree with it."""
    found: list[Any] = []
    for read in (lambda: torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        for settings in _AGREEING:
            _set(settings)
            try:
                found.append(read())
            except RuntimeError:
                continue
            break
        else:
            found.append(None)
    return tuple(found)


def _set_flags(flags: tuple[Any, ...]) -> None:
    tf32, matmul = flags
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)


def _set(values: Iterable[str]) -> None:
    for operation, value in zip(_OPERATIONS, values, strict=True):
        operation.fp32_precision = value


def _own_settings() -> list[str]:
    """Of each operation; "none" where it follows its backend, whose value a look alone gives."""
    backends = []
    for backend in _BACKENDS:
        backends.append(backend.fp32_precision)
        backend.fp32_precision = "none"
    own = [operation.fp32_precision for operation in _OPERATIONS]
    for backend, value in reversed(list(zip(_BACKENDS, backends, strict=True))):
        backend.fp32_precision = value
    return own
