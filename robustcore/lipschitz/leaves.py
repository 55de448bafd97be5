"""Modules that state their own bound, as one operation each of a traced graph.

While a model is traced, such a module's forward is a marker that carries its path: nobody looks
inside, and what stands around it (hooks, sums, a second use) is in the graph as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from robustcore.common.graph import BATCH, trace

# What a subclass may have of its own without changing what its class's lipschitz_bound() speaks of.
_HARMLESS = {"__init__", "extra_repr", "reset_parameters", "lipschitz_bound"}
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


@torch.library.custom_op("robustcore_lipschitz::bounded_layer", mutates_args=())
def bounded_layer(x: Tensor, path: str, sizes: list[int]) -> Tensor:
    """Stands for the forward of the module at ``path`` in a graph that is never run."""
    return x.new_zeros((len(x), *sizes))


@bounded_layer.register_fake
def _(x: Tensor, path: str, sizes: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], *sizes))


def is_leaf(node: fx.Node) -> bool:
    return node.target is torch.ops.robustcore_lipschitz.bounded_layer.default


def leaf_path(node: fx.Node) -> str:
    return str(node.args[1])


def own_bound(model: nn.Module, path: str) -> float:
    """What the module at ``path`` says; TypeError where it is no number >= 0."""
    module: Any = model.get_submodule(path)
    bound = float(module.lipschitz_bound())
    if not 0 <= bound < math.inf:
        raise TypeError(f"{_name(path)}: its lipschitz_bound() is {bound}, want a number >= 0")
    return bound


def states_bound(module: nn.Module) -> bool:
    """Whether a module's method ``lipschitz_bound()`` speaks of the forward that it has.

    Not where a subclass or the instance has replaced something that the class with the method has
    too, nor where hooks may change what goes on inside: such a module is looked into.
    """
    if not callable(getattr(module, "lipschitz_bound", None)):
        return False
    if getattr(module, "bounded_inside", False):
        return False
    if len(list(module.modules())) > 1 and any(getattr(torch_module, n) for n in _GLOBAL_HOOKS):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules() if m is not module):
        return False
    if "lipschitz_bound" in vars(module):
        return True
    order = type(module).__mro__
    says = next(
        i for i, kind in enumerate(order)
        if "lipschitz_bound" in vars(kind)
        or (kind.__module__.startswith("robustcore.") and hasattr(kind, "lipschitz_bound"))
    )  # fmt: skip
    speaks_of = order[says]
    replaced = {name for kind in order[:says] for name in vars(kind) if hasattr(speaks_of, name)}
    replaced |= {name for name in vars(module) if callable(getattr(speaks_of, name, None))}
    return all(name in _HARMLESS or name.startswith("__") for name in replaced)


@contextmanager
def evaluated_once(model: nn.Module) -> Iterator[None]:
    """Parametrized tensors as they are now, for all that reads them inside.

    So the bound is of the very weights that run, also where each evaluation would change a state.
    """
    modules = [m for m in model.modules() if parametrize.is_parametrized(m)]
    with torch.no_grad():
        values = {
            (id(m), name): getattr(m, name).detach()
            for m in modules for name in m.parametrizations  # type: ignore[union-attr]
        }  # fmt: skip
    with parametrize.cached():
        parametrize._cache.update(values)
        yield


def trace_with_leaves(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """:func:`robustcore.common.graph.trace` with a marker for each module that states its bound.

    The model runs once on zeros, so that the markers know the sizes of what comes out.
    """
    leaves = {name: m for name, m in model.named_modules() if states_bound(m)}
    sizes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
    example = torch.zeros((BATCH, *x.shape[1:]), dtype=x.dtype, device=x.device)
    with _replaced(leaves, lambda name, run: _recorder(name, run, sizes)), torch.no_grad():
        model(example)
    with _replaced(leaves, lambda name, run: _marker(name, run, sizes)):
        return trace(model, x)


@contextmanager
def _replaced(leaves: dict[str, nn.Module], make: Any) -> Iterator[None]:
    before = {name: module.__dict__.get("forward") for name, module in leaves.items()}
    try:
        for name, module in leaves.items():
            module.__dict__["forward"] = make(name, module.forward)
        yield
    finally:
        for name, module in leaves.items():
            module.__dict__.pop("forward", None)
            if before[name] is not None:
                module.__dict__["forward"] = before[name]


def _recorder(name: str, run: Any, sizes: dict[Any, tuple[int, ...]]) -> Any:
    @functools.wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        x = _only(name, args, kwargs)
        shape = tuple(x.shape)
        y = run(*args, **kwargs)
        if not isinstance(y, Tensor) or y.dim() == 0 or len(y) != shape[0]:
            raise TypeError(f"{_name(name)}: gives no tensor of as many rows, so its "
                            "lipschitz_bound() cannot count")  # fmt: skip
        sizes[name, shape[1:]] = tuple(y.shape[1:])
        return y

    return forward


def _marker(name: str, run: Any, sizes: dict[Any, tuple[int, ...]]) -> Any:
    @functools.wraps(run)  # torch.export reads the names of a forward's arguments
    def forward(*args: Any, **kwargs: Any) -> Any:
        x = _only(name, args, kwargs)
        return bounded_layer(x, name, list(sizes[name, tuple(x.shape[1:])]))

    return forward


def _only(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise TypeError(f"{_name(name)}: its lipschitz_bound() speaks of one tensor, and it was "
                        f"called with {len(given)} arguments")  # fmt: skip
    return given[0]


def _name(path: str) -> str:
    return f"model.{path}" if path else "model"
