"""Where the raw ops come from, and what their Functions, fake kernels and vmap rules need.

A public function calls the raw op where no derivative is asked for (:func:`needs_grad`), else a
``torch.autograd.Function`` in the ``setup_context`` form. None of them has a ``jvp``: torch.compile
cannot trace a Function that has one, so forward-mode AD is refused, by torch's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from robustcore import _C  # noqa: F401  (importing it registers the ops)

raw = torch.ops.robustcore

_F = TypeVar("_F", bound=Callable[..., Any])

# Whether the engine's present run goes on to a node. It is torch's own, and not public: what is
# public, needs_input_grad, says what could have a gradient, not what was asked for, and a penalty
# asks for that of the input alone. Without it all gradients are computed: as right, only slower.
_will_execute = getattr(torch._C, "_will_engine_execute_node", None)

# Whether torch.func is at work; also torch's own. Without it Functions are called the long way.
transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


# torch.compiler.disable, without its import of torch._dynamo (a second) before the first call.
not_compiled = _disable_dynamo


def constant_when_compiled(function: _F) -> _F:
    """``torch.compiler.assume_constant_result``, without its import of torch._dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# ---- Functions -----------------------------------------------------------------------------------


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative is asked for; a raw op has none, and forward mode would not notice."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def graph_wanted() -> bool:
    """Whether a derivative of what is computed now could be asked for."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, all arguments given.

    That looks up the signature of ``forward`` at each call, for defaults; this does so only where
    torch.func wants it, and takes half as long.
    """
    if transforming():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def needed(ctx: Any, inputs: int) -> list[bool]:
    """Which of a Function's first inputs this backward pass is for."""
    needs = list(ctx.needs_input_grad[:inputs])
    if _will_execute is None or torch.compiler.is_compiling():
        return needs
    if not hasattr(ctx, "next_functions"):  # under torch.func
        return needs
    for i, (node, _) in enumerate(ctx.next_functions[:inputs]):
        try:
            needs[i] = needs[i] and _will_execute(node)
        except RuntimeError:  # it does not say for a leaf that is itself asked for
            continue
    return needs


def present(results: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
    """The results that are needed, None for the others."""
    return [r if n else None for r, n in zip(results, needs, strict=False)]


def sum_to(t: Tensor, like: Tensor) -> Tensor:
    """t summed over the dimensions in which ``like`` was broadcast."""
    dims = [d for d in range(t.dim()) if like.shape[d] == 1]
    return (t.sum(dims, keepdim=True) if dims else t).to(like.dtype)


def arithmetic(t: Tensor) -> torch.dtype:
    """What is computed with t is computed in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


# ---- layouts -------------------------------------------------------------------------------------


def is_channels_last(x: Tensor) -> bool:
    """Whether x is ``[N, C, H, W]``, channels last and not contiguous as well."""
    # By strides: vmap does not answer is_contiguous(memory_format=...).
    if x.dim() != 4:
        return False
    n, c, h, w = x.shape
    if c <= 1 or h * w <= 1 or x.stride()[1:] != (1, w * c, c):
        return False
    return bool(n == 1 or x.stride(0) == h * w * c)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """x, contiguous or channels last."""
    if not channels_last:
        return x.contiguous()
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def dense(x: Tensor) -> Tensor:
    """x itself where it is contiguous or channels last, else contiguous."""
    return x if is_channels_last(x) else x.contiguous()


# ---- fake kernels --------------------------------------------------------------------------------


def fake_dense(x: Tensor, sizes: Sequence[Any], channels_last: bool) -> Tensor:
    """An empty tensor of such sizes ``[N, C, *D]`` and x's dtype, contiguous or channels last."""
    if not channels_last:
        return x.new_empty(sizes)
    empty: Tensor = x.new_empty([sizes[0], *sizes[2:], sizes[1]]).movedim(-1, 1)
    return empty


def fake_nothing(*arguments: Any) -> None:
    """Of an op that writes into its arguments."""


# ---- vmap rules ----------------------------------------------------------------------------------


def joined(t: Tensor, dim: int | None, size: int) -> Tensor:
    """``[size * N, ...]``: the mapped dimension, or as many views, before the first one."""
    t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


def separated(results: Any, size: int) -> tuple[Any, Any]:
    """A rule's result: the first dimension of each tensor divided again."""
    if isinstance(results, tuple):
        return tuple(r.unflatten(0, (size, -1)) for r in results), (0,) * len(results)
    return results.unflatten(0, (size, -1)), 0


def loop(
    op: Any, info: Any, in_dims: Any, arguments: Any,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """One call after another, where they cannot be merged; ``prepare`` lays tensors out."""
    results = []
    for i in range(info.batch_size):
        call = [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        if prepare is not None:
            call = [prepare(a) if isinstance(a, Tensor) else a for a in call]
        results.append(op(*call))
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
    return torch.stack(results), 0


def register_loop(op: Any, prepare: Callable[[Tensor], Tensor] | None = None) -> None:
    """vmap as a loop."""

    def rule(info, in_dims, *arguments):
        return loop(op, info, in_dims, arguments, prepare)

    torch.library.register_vmap(op, rule)


def register_rows(op: Any, tensors: int) -> None:
    """vmap of an op whose rows are independent; ``tensors``: how many of its inputs come first."""

    def rule(info, in_dims, *arguments):
        size = info.batch_size
        rows = [joined(a, d, size) for a, d in zip(arguments[:tensors], in_dims, strict=False)]
        return separated(op(*rows, *arguments[tensors:]), size)

    torch.library.register_vmap(op, rule)
