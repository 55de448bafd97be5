"""A penalty on how far the gradient of one function is from that of another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcore.common.checks import require_callable, require_choice, require_floating
from robustcore.density.double_backward import fast_double_backward
from robustcore.density.gradients import REDUCTIONS, check_x, leaf, reduce, widen

Critic = Callable[[Tensor], Tensor]  # [N, *D] -> [N] or [N, 1]


def gradient_matching_penalty(
    critic: Critic,
    x: Tensor,
    target: Critic | Tensor,
    *,
    reduction: str = "mean",
    values: Tensor | None = None,
) -> Tensor:
    """``|grad_x critic - grad_x target|^2`` of each sample: a critic learns its target's slope too.

    In ReenGAGE x are goals, ``critic`` is ``lambda g: Q(s, a, g)`` and ``target`` the target
    ``lambda g: r(s', g) + gamma Q'(s', pi'(s', g), g)``: each transition teaches the critic as many
    numbers as a goal has. Added to the critic's loss with a weight.

    Args:
        critic: any callable of ``[N, *D]`` to values ``[N]`` or ``[N, 1]``, a row an input.
        x: ``[N, *D]``, floating.
        target: the same, whose parameters get no gradient; or its gradient, shaped as x.
        reduction: "mean", "sum" or "none".
        values: ``critic(x)``, of an x that requires grad, if the loss has them already.

    Returns:
        A scalar, ``[N]`` for "none", float32 at least. Differentiable in critic's parameters.

    Raises TypeError or ValueError naming the argument. Source: Levine and Feizi, "Goal-conditioned
    Q-learning as knowledge distillation", 2023.
    """
    require_callable("critic", critic)
    check_x(x)
    require_choice("reduction", reduction, REDUCTIONS)
    track = torch.is_grad_enabled()
    wanted = _target_gradient(target, x)
    if values is None:
        x = leaf(x)
        with torch.enable_grad(), fast_double_backward():
            values = critic(x)
        got = _gradient("critic", values, x, track)
    else:
        got = _gradient("values", values, x, track)
    each = (got - wanted).square().flatten(1).sum(1)
    return reduce(each if track else each.detach(), reduction)


def _target_gradient(target: Critic | Tensor, x: Tensor) -> Tensor:
    if isinstance(target, Tensor):
        if require_floating("target", target).shape != x.shape:
            raise ValueError(f"target: got shape {list(target.shape)}, want {list(x.shape)} as x")
        if target.device != x.device:
            raise ValueError(f"target: is on {target.device}, x on {x.device}")
        return widen(target.detach())
    require_callable("target", target)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        return _gradient("target", target(at), at, False)


def _gradient(name: str, values: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """The gradient ``[N, *D]`` of each sample's value in it."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: gave {type(values).__name__}, want values [{len(x)}]")
    require_floating(name, values)
    if values.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(f"{name}: gave shape {list(values.shape)}, want [{len(x)}]")
    g = None
    if values.requires_grad and x.requires_grad:
        with torch.enable_grad():
            total = widen(values).sum()
        (g,) = torch.autograd.grad(
            total, x, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    if g is None:
        raise ValueError(f"{name}: do not depend on x; want values at an x that requires grad")
    return widen(g)
