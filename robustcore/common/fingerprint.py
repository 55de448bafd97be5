"""What a captured step depends on of a model, and whether one should be captured at all."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def surprising(model: Any) -> bool:
    """Whether Python code of the model may be meant to run at every batch.

    That of a replay does not run: what a function closes over, what hooks do, what training mode
    counts would be as at the capture.
    """
    if not isinstance(model, nn.Module):
        return True
    kinds = (torch.jit.ScriptModule, nn.DataParallel)
    return any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or isinstance(module, kinds)
        # torch.compile may have graphs of its own.
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def fingerprint(model: Any) -> Any:
    """What a captured step depends on of a model: its modules, all they hold, where tensors lie.

    The values of tensors are not in it; a replay reads them. Two models of one fingerprint run the
    same kernels on the same memory.
    """
    if not isinstance(model, nn.Module):
        return object()  # equal to nothing: there is no telling
    return _state(model, set())


# Of a module's own: what the rest of `held` looks at apart, and what no forward reads.
_OF_MODULE = set(vars(nn.Module())) - {"training"}
_PLAIN = (int, float, bool, str, type(None))


def held(model: nn.Module) -> list[Any]:
    """What a trace of a model freezes and :func:`fingerprint` has too, a hundred times as fast.

    Which modules there are, their classes and plain attributes (strides, rates, thresholds, sizes),
    and of parameters and buffers the names, sizes and dtypes, and which of them are one.
    """
    found: list[Any] = []
    order: dict[int, int] = {}
    seen: set[int] = set()
    for module in model.modules():
        found += (module, type(module))
        own = vars(module)
        for name, value in own.items():
            if name not in _OF_MODULE:
                kind = type(value)
                found += (name, kind, value if kind in _PLAIN else _state(value, seen))
        for table in (own["_parameters"], own["_buffers"]):
            for name, tensor in table.items():
                found.append(name)
                if tensor is not None:
                    found += (order.setdefault(id(tensor), len(order)), tensor.shape, tensor.dtype)
    return found


class _Same:
    """Equal to the very same object alone, which it keeps, so that no other one takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _state(value: Any, seen: set[int]) -> Any:
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return type(value), repr(value)
    if isinstance(value, Tensor):
        form = type(value), value.shape, value.dtype, value.device
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.layout != torch.strided:
            return _Same(value), form
        return value.data_ptr(), value.stride(), form
    if id(value) in seen:
        return _Same(value)
    seen.add(id(value))
    if isinstance(value, (list, tuple)):
        return type(value), [_state(v, seen) for v in value]
    if isinstance(value, dict):
        return type(value), [(_state(k, seen), _state(v, seen)) for k, v in value.items()]
    if isinstance(value, nn.Module):
        return type(value), _state(vars(value), seen)
    if isinstance(value, (type, ModuleType)) or not hasattr(value, "__dict__"):
        return _Same(value)
    return _Same(value), _state(vars(value), seen)
