"""Gradient penalties with one signature, so that changing a name compares them.

Each is added to a training loss with a weight:
``loss + weight * penalty(model, x, logits=logits)``.

Conventions. ``x`` ``[N, *D]`` is a batch in any units. ``logits``, if given, are ``model(x)`` of an
x that requires grad: then one forward serves loss and penalty. ``target`` ``[N]`` int64 is the
class that a penalty on one logit or on the loss looks at (default: the model's own answer). A
language model takes x ``[N, T, D]``, embeddings, to logits ``[N, T, K]``: targets are ``[N, T]``,
those of ``ignore_index`` count for nothing, and a sample's score is the mean over its tokens, by
``token_weights`` if given.

The norm is per sample, p in [1, inf], then reduced. The penalty is computed in float32 whatever
autocast does to the model, and differentiable in the model's parameters by one of two modes:

* ``double_backward``: exact; any model, but for the reentrant kind of activation checkpointing.
  Compiled models and parts of models run uncompiled where the penalty calls them, which it does
  again where ``logits`` came through compiled code or fused attention. Not inside
  ``torch.compile``.
* ``finite_difference``: the value is exact, its derivative a central difference of the score, with
  an error of O(step^2) for a smooth model and about 1e-6 |score| / step of rounding in float32; of
  a piecewise linear one it can be far off. First-order code only: a whole step compiles with
  fullgraph, and it checkpoints. It calls the model twice more, compiled if it is; the gradient,
  which is taken before the loss's own, as written, once more if ``logits`` came compiled.
* ``auto``: double_backward; inside ``torch.compile`` the same by a :class:`PenaltyOp` of the model,
  which calls it once itself.

BatchNorm in training mode: the penalty sees the statistics of the batch that made ``logits``, and
its derivative goes through them; the gradient of a sample then includes its effect on the others'
scores. Modes and penalties that evaluate the model at other points normalise each such batch by its
own statistics and count it in the running ones. Put the model in eval mode for a penalty at the
running statistics.

Time. Where a penalty calls the model itself, its convolutions and BatchNorms get a cheaper double
backward; for logits of your own, call the model within :class:`fast_double_backward`.

Errors (TypeError, ValueError) name the argument; NaN logits are an error that names the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_int,
    require_not_negative,
    require_positive,
)
from robustcore.density.gradients import (
    MAX_STEPS,
    REDUCTIONS,
    STEP,
    Model,
    Point,
    Score,
    check_baseline,
    check_differentiable,
    check_graph,
    check_logits,
    check_target,
    check_tokens,
    check_x,
    evaluate,
    functional,
    gradient_norm,
    gradients,
    leaf,
    logit_score,
    loss_score,
    lse_score,
    reduce,
    resolve_mode,
    serves_twice,
    unit,
)
from robustcore.density.half import has_float16
from robustcore.density.penalty_op import exact_when_compiled
from robustcore.ops.checks import check_p


@exact_when_compiled
def marginal_density_penalty(
    model: Model,
    x: Tensor,
    *,
    p: float = 2.0,
    reduction: str = "mean",
    logits: Tensor | None = None,
    mode: str = "auto",
    target: Tensor | None = None,
    step: float = STEP,
    ignore_index: int = -100,
    token_weights: Tensor | None = None,
) -> Tensor:
    """``norm_p(grad_x log sum_k exp f_k(x))``: how steep the model's input density is.

    The three published forms (plain, and two differences with log_softmax that avoid its overflow)
    are the same function; this is it, by one max-shifted log-sum-exp and one gradient.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``, or ``[N, T, K]`` of tokens, whose
            scores count by their mean.
        x: ``[N, *D]``, floating, in any units; where ``logits`` are given it has to require grad.
        p: of the norm of each sample, in [1, inf].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        logits: ``model(x)``, if the loss has them already; default: they are computed here.
        mode: ``"double_backward"`` (exact), ``"finite_difference"`` (compiles; the derivative errs)
            or ``"auto"``, see the module.
        target: int64 ``[N]``, or ``[N, T]`` of tokens: the class that the relatives look at
            (default: the model's answer); here only what is ignored matters.
        step: of the finite difference, in the units of x.
        ignore_index: the target of rows or tokens that count for nothing.
        token_weights: ``[N, T]``, floating, at least 0: what a token counts in its sample's mean.

    Returns:
        A scalar, ``[N]`` for ``"none"``, float32 at least, whatever autocast does to the model.

    Differentiable once in the model's parameters. Raises TypeError or ValueError naming the
    argument; ValueError for logits that are NaN, naming the rows.
    Source: "Regulating model reliance on non-robust features by smoothing input marginal density",
    2024 (arXiv 2407.04370).
    """
    call = _Call(model, x, p, reduction, logits, mode, step, target, ignore_index, token_weights)
    if target is not None:
        call.target()
    return call.norm(functools.partial(lse_score, weights=call.weights))


@exact_when_compiled
def input_gradient_penalty(
    model: Model,
    x: Tensor,
    *,
    p: float = 2.0,
    reduction: str = "mean",
    logits: Tensor | None = None,
    mode: str = "auto",
    target: Tensor | None = None,
    step: float = STEP,
    ignore_index: int = -100,
    token_weights: Tensor | None = None,
    of: str = "loss",
) -> Tensor:
    """``norm_p`` of the input gradient of the cross entropy, or of the target's logit.

    ``of`` is ``"loss"`` or ``"logit"``. The other arguments, the result, its derivative and what is
    raised are as in :func:`marginal_density_penalty`.

    Source: Drucker and LeCun, "Improving generalization performance using double backpropagation",
    1992; Ross and Doshi-Velez, 2018.
    """
    call = _Call(model, x, p, reduction, logits, mode, step, target, ignore_index, token_weights)
    require_choice("of", of, ("loss", "logit"))
    score_of = loss_score if of == "loss" else logit_score
    return call.norm(score_of(call.target(), call.weights))


@exact_when_compiled
def score_matching_penalty(
    model: Model,
    x: Tensor,
    *,
    p: float = 2.0,
    reduction: str = "mean",
    logits: Tensor | None = None,
    mode: str = "auto",
    target: Tensor | None = None,
    step: float = STEP,
    ignore_index: int = -100,
    token_weights: Tensor | None = None,
    sigma: float = 0.01,
    tau: float = 1e-3,
) -> Tensor:
    """Score matching on the target's logit f: ``t + norm_p(grad f)^2 / 2 + tau t^2``.

    t estimates the trace of the Hessian of f: ``2 / sigma^2 (f(x + v) - f(x))`` with one v from
    N(0, sigma^2 I) by torch's generator. Usual weight 1e-5.

    ``sigma`` is in the units of x. The other arguments, the result, its derivative and what is
    raised are as in :func:`marginal_density_penalty`.

    Source: Srinivas and Fleuret, "Rethinking the role of gradient-based attribution methods for
    model interpretability", 2021.
    """
    call = _Call(model, x, p, reduction, logits, mode, step, target, ignore_index, token_weights)
    score = logit_score(call.target(), call.weights)
    sigma, tau = require_positive("sigma", sigma), require_not_negative("tau", tau)
    norm = call.per_sample(score)
    noisy = call.x.detach() + sigma * torch.randn_like(call.x)
    moved = evaluate(model, noisy, call.mode, call.tokens)
    trace = 2 / (sigma * sigma) * (score(moved) - score(call.logits))
    return reduce(trace + norm**2 / 2 + tau * trace**2, reduction)


@exact_when_compiled
def curvature_penalty(
    model: Model,
    x: Tensor,
    *,
    p: float = 2.0,
    reduction: str = "mean",
    logits: Tensor | None = None,
    mode: str = "auto",
    target: Tensor | None = None,
    step: float = STEP,
    ignore_index: int = -100,
    token_weights: Tensor | None = None,
    h: float = 3.0,
    loss_reduction: str = "mean",
) -> Tensor:
    """CURE: ``norm_p(grad l(x + z) - grad l(x))``, z of l2 norm h along the sign of the gradient.

    l is the cross entropy at ``target``, and ``h`` is in the units of x. ``loss_reduction`` is
    "mean", a batch's mean loss, as in the released code, whose weight of 4 belongs to it; or "sum",
    a sample's own loss, which gives N times as much whatever the batch: its weight is 4 / N.

    The other arguments, the result, its derivative and what is raised are as in
    :func:`marginal_density_penalty`. Source: Moosavi-Dezfooli et al., "Robustness via curvature
    regularization, and vice versa", 2019.
    """
    call = _Call(model, x, p, reduction, logits, mode, step, target, ignore_index, token_weights)
    h = require_positive("h", h)
    require_choice("loss_reduction", loss_reduction, ("mean", "sum"))
    score = loss_score(call.target(), call.weights)
    here = call.point(score, weight=-1.0)
    with torch.enable_grad():
        sign, _ = unit(-gradients(model, score, [here], create_graph=False).sign())
    moved = call.x.detach() + (h * sign).to(x.dtype)
    value = call.norm(score, [call.point(score, moved), here])
    return value / max(len(x), 1) if loss_reduction == "mean" else value


@exact_when_compiled
def attribution_penalty(
    model: Model,
    x: Tensor,
    *,
    p: float = 2.0,
    reduction: str = "mean",
    logits: Tensor | None = None,
    mode: str = "auto",
    target: Tensor | None = None,
    step: float = STEP,
    ignore_index: int = -100,
    token_weights: Tensor | None = None,
    baseline: Tensor | None = None,
    steps: int = 50,
) -> Tensor:
    """``norm_p`` of the integrated gradients of the loss on the way from ``baseline`` to x.

    The published IG-SUM takes p = 1, the clean images as baseline and adversarial ones as x, weight
    0.1. ``baseline`` broadcasts to x, default 0; ``steps``, at least 1, is the number of points of
    the Riemann sum, the last of which is x.

    The other arguments, the result, its derivative and what is raised are as in
    :func:`marginal_density_penalty`.
    Source: Chen et al., "Robust attribution regularization", 2019.
    """
    call = _Call(model, x, p, reduction, logits, mode, step, target, ignore_index, token_weights)
    require_int("steps", steps, 1, MAX_STEPS)
    start = check_baseline(baseline, x)
    score = loss_score(call.target(), call.weights)
    path = (x - start).detach()
    weight = path / steps
    points = [call.point(score, weight=weight)]
    for i in range(1, steps):
        points.append(call.point(score, x.detach() - path * (i / steps), weight))
    return call.norm(score, points)


class _Call:
    """The arguments every penalty has, checked, and the logits at x."""

    def __init__(
        self,
        model: Model,
        x: Any,
        p: Any,
        reduction: str,
        logits: Any,
        mode: str,
        step: float,
        target: Any,
        ignore_index: Any,
        token_weights: Any,
    ) -> None:
        require_callable("model", model)
        check_x(x)
        check_differentiable(x)
        self.model, self.p, self.step = model, check_p(p), require_positive("step", step)
        self.mode = resolve_mode(mode)
        self.reduction = require_choice("reduction", reduction, REDUCTIONS)
        self.through_float16 = not functional() and has_float16(model, x, logits)
        self.tokens = not (isinstance(target, Tensor) and target.dim() == 1)
        if logits is None:
            self.x = leaf(x)
            self.logits = evaluate(model, self.x, self.mode, self.tokens)
        else:
            self.logits = check_logits(logits, x, "logits: got", self.tokens)
            check_graph(x, self.logits)
            self.x = x
            if not serves_twice(self.logits, self.mode):
                self.logits = evaluate(model, x, self.mode, self.tokens)
        self._target, self.weights = check_tokens(target, self.logits, ignore_index, token_weights)

    def target(self) -> Tensor:
        """The class of each row or token that a score looks at."""
        return check_target(self._target, self.logits)

    def point(self, score: Score, x: Tensor | None = None, weight: Any = 1.0) -> Point:
        """The score's gradient to take, at the call's own x or at another."""
        with torch.enable_grad():
            if x is None:
                return Point(self.x, score(self.logits), weight)
            x = leaf(x)
            return Point(x, score(evaluate(self.model, x, self.mode, self.tokens)), weight)

    def per_sample(self, score: Score, points: Sequence[Point] = ()) -> Tensor:
        """The norms at some points, or at x."""
        points = points or [self.point(score)]
        return gradient_norm(
            self.model, score, points, self.p, self.mode, self.step, self.through_float16
        )

    def norm(self, score: Score, points: Sequence[Point] = ()) -> Tensor:
        return reduce(self.per_sample(score, points), self.reduction)
