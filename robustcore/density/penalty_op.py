"""A whole penalty as one op: what ``torch.compile`` sees is first-order code."""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_classes,
    require_module,
)
from robustcore.density.gradients import check_x
from robustcore.ops.autograd import constant_when_compiled
from robustcore.ops.checks import check_tensor

_numbers = itertools.count()
_alive: weakref.WeakValueDictionary[int, PenaltyOp] = weakref.WeakValueDictionary()


class PenaltyOp:
    """One of the penalties of a model as a single op, exact, for use inside ``torch.compile``.

    ::

        penalty = PenaltyOp(density.marginal_density_penalty, model)

        @torch.compile(fullgraph=True)
        def step(x, y):
            return cross_entropy(model(x), y) + 0.1 * penalty(x)

    The compiler has no double backward; here it needs none. The op computes the penalty and, where
    they are wanted, its gradients in the model's parameters in its forward pass, by double
    backward, and hands them out in its backward pass. It takes part in no further differentiation,
    has no gradient in x, and calls the model once itself: not compiled, not under autocast, on
    copies of its buffers, so that running statistics are those of your own call.

    Args:
        penalty: a function of this package, called as ``penalty(model, x, target=target,
            mode="double_backward", **options)``.
        model: a module, to logits ``[N, K]``. Its parameters, at each call, are what gradients are
            for; options, training mode and structure may change between calls too.
        options: of the penalty; ``reduction`` "mean" or "sum".

    Calling it with x ``[N, *D]`` and, if you like, a target ``[N]`` int64 gives the penalty, a
    scalar of float32 at least. It has to outlive the compiled code that calls it. Raises what the
    penalty raises, TypeError and ValueError naming the argument.
    """

    def __init__(self, penalty: Callable[..., Tensor], model: nn.Module, **options: Any) -> None:
        require_callable("penalty", penalty)
        require_module("model", model)
        require_choice("reduction", options.get("reduction", "mean"), ("mean", "sum"))
        for name in {"logits", "mode", "target"} & set(options):
            raise ValueError(f"{name}: the op sets it itself")
        # What torch.compile made of a model would be compiled again, for a double backward.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.penalty, self.options = penalty, options
        self._register()

    def __call__(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        return _call(self._number, self.model, x, target)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._register()

    def _register(self) -> None:
        self._number = next(_numbers)
        _alive[self._number] = self

    def _evaluate(
        self, x: Tensor, target: Tensor | None, parameters: Sequence[Tensor], wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        leaves = [p.detach().requires_grad_(wanted) for p in parameters]
        state = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        state.update(zip(names, leaves, strict=True))

        def model(x: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(self.model, state, (x,))
            return logits

        with torch.set_grad_enabled(wanted):
            value = self.penalty(model, x, target=target, mode="double_backward", **self.options)
        if not wanted:
            return value, []
        gradients = torch.autograd.grad(value, leaves, materialize_grads=True) if leaves else ()
        return value.detach(), list(gradients)


_Penalty = TypeVar("_Penalty", bound=Callable[..., Tensor])


def exact_when_compiled(penalty: _Penalty) -> _Penalty:
    """A penalty that inside torch.compile is a PenaltyOp of its model, in mode "auto"."""

    @functools.wraps(penalty)
    def call(*arguments: Any, **options: Any) -> Tensor:
        if torch.compiler.is_compiling() and options.get("mode", "auto") == "auto":
            return _as_op(penalty, *arguments, **options)
        return penalty(*arguments, **options)

    return call  # type: ignore[return-value]


def _as_op(
    penalty: Callable[..., Tensor],
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    logits: Tensor | None = None,
    mode: str = "auto",
    target: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if not isinstance(model, nn.Module):
        raise ValueError(
            'mode: "auto" inside torch.compile wants a torch.nn.Module, whose parameters it sees; '
            'got a function; want a PenaltyOp, or mode="finite_difference"'
        )
    if options.get("reduction", "mean") == "none":
        raise ValueError(
            'reduction: got "none"; inside torch.compile want "mean" or "sum", or '
            'mode="finite_difference"'
        )
    return _call(_op_of(penalty, model, tuple(options), tuple(options.values())), model, x, target)


@constant_when_compiled
def _op_of(
    penalty: Callable[..., Tensor], model: nn.Module, names: Sequence[str], values: Sequence[Any]
) -> int:
    """The number of such an op, which lives as long as the model does."""
    kept: dict[Any, PenaltyOp] = vars(model).setdefault("_robustcore_penalties", {})
    key = (penalty, *names, *map(repr, values))
    if key not in kept:
        kept[key] = PenaltyOp(penalty, model, **dict(zip(names, values, strict=True)))
    return kept[key]._number


def _call(number: int, model: nn.Module, x: Tensor, target: Tensor | None) -> Tensor:
    check_x(x)
    if target is not None:
        check_tensor("target", target)
        if target.dim() < 2:  # of tokens it is checked when logits are there
            require_classes("target", target, len(x))
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Decided here: inside the op there is no telling.
    wanted = torch.is_grad_enabled()
    outputs = torch.ops.robustcore.penalty(x.detach(), target, parameters, wanted, number)
    value: Tensor = outputs[0]
    return value


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads for :func:`_penalty`, of each process its own: a fork leaves threads behind.

    One is enough but where a model holds a PenaltyOp itself: its op waits for another.
    """
    return ThreadPoolExecutor(1000, "robustcore penalty")


@torch.library.custom_op("robustcore::penalty", mutates_args=())
def _penalty(
    x: Tensor, target: Tensor | None, parameters: Sequence[Tensor], wanted: bool, number: int
) -> tuple[Tensor, list[Tensor]]:
    """The penalty and, if wanted, its gradients in the parameters."""
    op = _alive.get(number)
    if op is None:
        raise RuntimeError("the PenaltyOp of this compiled code is gone; keep it as long as that")
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None

    def work() -> tuple[Tensor, list[Tensor]]:
        with torch.cuda.stream(stream):
            return op._evaluate(x, target, parameters, wanted)

    # Inside an op's kernel autograd is off for the thread, beyond what enable_grad turns on; in a
    # thread of its own it is not.
    return _threads(os.getpid()).submit(work).result()


@_penalty.register_fake
def _(
    x: Tensor, target: Tensor | None, parameters: Sequence[Tensor], wanted: bool, number: int
) -> tuple[Tensor, list[Tensor]]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    gradients = [torch.empty_like(p) for p in parameters] if wanted else []
    return x.new_empty([], dtype=dtype), gradients


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    gradients = [(grad * g).to(g.dtype) for g in ctx.saved_tensors]
    return None, None, gradients, None, None


@_penalty.register_vmap
def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise ValueError("x: a PenaltyOp is of one batch, not of torch.func.vmap's; want the penalty")


_penalty.register_autograd(_backward, setup_context=_setup_context)
