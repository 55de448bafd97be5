"""What the layers whose double backward is cheap have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Whether the engine's present run goes on to a node. It is torch's own, and not public: what is
# public, needs_input_grad, says what could have a gradient, not what was asked for, and a penalty
# asks for that of the input alone. Without it all gradients are computed: as right, only slower.
_will_execute = getattr(torch._C, "_will_engine_execute_node", None)

# Whether torch.func is at work; also torch's own. Without it Functions are called the long way.
transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


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
