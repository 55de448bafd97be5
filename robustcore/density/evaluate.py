"""What a model relies on: attributions, and measures of how well they and the model hold up.

The model is used as it is (put it in eval mode); no gradients of its parameters are kept. ``x`` is
``[N, *D]`` in any units, ``target`` int64 ``[N]`` (default: the model's own answer). None of the
results is differentiable, unless asked for. Errors are TypeError or ValueError that name the
argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import (
    require_broadcast,
    require_callable,
    require_choice,
    require_flag,
    require_floating,
    require_fraction,
    require_int,
    require_not_negative,
    require_real,
    require_seed,
    require_sequence,
    require_values,
)
from robustcore.common.game import play, ranks
from robustcore.density.gradients import (
    MAX_STEPS,
    Model,
    Point,
    check_baseline,
    check_logits,
    check_target,
    check_x,
    evaluate,
    gradient_at,
    gradients,
    leaf,
    logit_score,
    lse_score,
    widen,
)
from robustcore.ops.checks import check_p

FRACTIONS = tuple(torch.logspace(-2, 0, 25, dtype=torch.float64).tolist())


def integrated_gradients(
    model: Model,
    x: Tensor,
    target: Tensor | None = None,
    *,
    baseline: Tensor | None = None,
    steps: int = 50,
    create_graph: bool = False,
) -> Tensor:
    """Integrated gradients of the target's logit from ``baseline`` (default 0) to x.

    ``(x - baseline) * mean of grad f`` over ``steps`` midpoints. It sums to ``f(x) - f(baseline)``
    up to the midpoint rule's error.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``.
        x: ``[N, *D]``, floating.
        target: int64 ``[N]``; default: the model's own answer.
        baseline: broadcasts to x.
        steps: gradients taken, at least 1.
        create_graph: whether a loss may be made of the result (an attribution prior): it is then
            differentiable in x, baseline and the model's parameters, and the graphs of all steps
            are kept.

    Returns:
        Shaped as x, float32 at least. Differentiable with ``create_graph`` alone.

    Raises TypeError or ValueError naming the argument.
    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", 2017; as a prior:
    Erion et al., "Improving performance of deep learning models with axiomatic attribution priors
    and expected gradients", 2021.
    """
    require_callable("model", model)
    check_x(x)
    require_int("steps", steps, 1, MAX_STEPS)
    create_graph = require_flag("create_graph", create_graph) and torch.is_grad_enabled()
    start = check_baseline(baseline, x)
    with torch.no_grad():
        score = logit_score(check_target(target, check_logits(model(x), x)))
    if not create_graph:
        x, start = x.detach(), start.detach()
    path = x - start
    total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for i in range(steps):
        at = start + path * ((i + 0.5) / steps)
        if create_graph:
            at = leaf(at)
            values = score(evaluate(model, at, "double_backward"))
            total = total + gradients(model, score, [Point(at, values)], create_graph=True)
        else:
            total += gradient_at(model, score, at)
    return path * total / steps


def feature_leakage(
    model: Model,
    x: Tensor,
    region: Tensor,
    target: Tensor | None = None,
    *,
    p: float = 2.0,
    baseline: Tensor | None = None,
    steps: int = 50,
) -> Tensor:
    """``norm_p`` of the integrated gradients inside ``region``, ``[N]``.

    Args:
        region: bool, broadcasts to x: where there is nothing to see, such as the null block of
            BlockMNIST. 0 means that the model's answer owes nothing to it.
        p: of the norm, in [1, inf].

    The other arguments and what is raised are as in :func:`integrated_gradients`. Not
    differentiable.
    Source: Shah, Jain, Netrapalli, "Do input gradients highlight discriminative features?", 2021.
    """
    check_x(x)
    if require_values("region", region).dtype != torch.bool:
        raise TypeError(f"region: got {region.dtype}, want a bool tensor")
    require_broadcast("region", region, x)
    p = check_p(p)
    attributions = integrated_gradients(model, x, target, baseline=baseline, steps=steps)
    return ops.grad_norm(attributions * region, p)


def pixel_perturbation(
    model: Model,
    x: Tensor,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    remove: str = "least",
    fill: float | Tensor = 0.5,
    unit: str = "pixel",
) -> Tensor:
    """The target's probability as a fraction of the pixels is replaced by ``fill``, ``[N, F]``.

    Args:
        attributions: shaped as x; saliency is their absolute value.
        fractions: of the pixels, in [0, 1]; 25 from 1 % to all by default.
        remove: "least" salient first (a faithful attribution keeps the probability up) or "most".
        fill: a number, or a tensor that broadcasts to x, in the units of x.
        unit: "pixel": a place with all of its channels (dimension 1 of an x of three dimensions or
            more), as salient as they are together; "element": one value of one channel.

    The other arguments and what is raised are as in :func:`integrated_gradients`. Not
    differentiable. Source: Srinivas and Fleuret, "Full-gradient representation for neural network
    visualization", 2019.
    """
    require_choice("remove", remove, ("least", "most"))
    order = _order(x, attributions, remove == "most", unit)
    return _replace(model, x, order, target, fractions, fill, insert=False)


def insertion_game(
    model: Model,
    x: Tensor,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    fill: float | Tensor = 0.5,
    unit: str = "pixel",
) -> Tensor:
    """The target's probability as the most salient pixels appear on ``fill``, ``[N, F]``.

    The arguments and what is raised are as in :func:`pixel_perturbation`. Not differentiable.
    Source: Petsiuk, Das, Saenko, "RISE", 2018.
    """
    order = _order(x, attributions, True, unit)
    return _replace(model, x, order, target, fractions, fill, insert=True)


def _order(x: Any, attributions: Any, most_salient_first: bool, unit: str) -> Tensor:
    """Each pixel's or element's rank in saliency, ``[N, *D]`` or broadcast to it."""
    check_x(x)
    require_choice("unit", unit, ("pixel", "element"))
    if require_floating("attributions", attributions).shape != x.shape:
        raise ValueError(
            f"attributions: got shape {list(attributions.shape)}, want {list(x.shape)} as x"
        )
    saliency = widen(attributions.abs())
    if unit == "pixel" and x.dim() > 2:
        saliency = saliency.sum(1, keepdim=True)
    return ranks(saliency, largest_first=most_salient_first)


@torch.no_grad()
def _replace(
    model: Model,
    x: Tensor,
    rank: Tensor,
    target: Tensor | None,
    fractions: Sequence[float],
    fill: float | Tensor,
    insert: bool,
) -> Tensor:
    require_callable("model", model)
    background = _filled(fill, x)
    units = rank[0].numel() if len(x) else 0
    counts = [
        round(require_fraction("fractions", fraction) * units)
        for fraction in require_sequence("fractions", fractions, "numbers in [0, 1]")
    ]
    chosen = check_target(target, check_logits(model(x), x)).unsqueeze(1)

    def answer(shown: Tensor) -> Tensor:
        probability = check_logits(model(torch.where(shown, x, background)), x).softmax(1)
        return probability.gather(1, chosen).squeeze(1)

    curve = play(answer, rank, torch.tensor(counts, dtype=torch.int64), insert=insert)
    return torch.stack(curve, 1) if curve else x.new_empty(len(x), 0)


def _filled(fill: Any, x: Tensor) -> Tensor:
    """What replaces an element, broadcast to x."""
    if not isinstance(fill, Tensor):
        fill = require_real("fill", fill, "a finite number or a tensor")
        return torch.tensor(fill, dtype=x.dtype, device=x.device)
    return require_broadcast("fill", require_floating("fill", fill).to(x), x)


@torch.no_grad()
def density_curve(model: Model, x: Tensor, sigmas: Sequence[float], *, seed: int = 0) -> Tensor:
    """``|lse(x + n) - lse(x)|`` under Gaussian noise n of each sigma, ``[N, len(sigmas)]``.

    ``model`` maps x ``[N, *D]`` to logits ``[N, K]``, whose log-sum-exp is lse. ``sigmas`` are in
    the units of x; the noise is that of :func:`robustcore.ops.gaussian_noise` with ``seed``. Not
    differentiable. Raises TypeError or ValueError naming the argument.
    Source: arXiv 2407.04370, 2024.
    """
    levels = _levels(model, x, sigmas, seed)
    clean = lse_score(check_logits(model(x), x))
    curve = [
        (lse_score(check_logits(model(noisy), x)) - clean).abs()
        for noisy in _noisy(x, levels, seed)
    ]
    return torch.stack(curve, 1)


def gradient_curve(model: Model, x: Tensor, sigmas: Sequence[float], *, seed: int = 0) -> Tensor:
    """``norm(g(x + n) - g(x)) / norm(g(x))`` of the input gradient of lse, ``[N, len(sigmas)]``.

    Arguments, errors and source are as in :func:`density_curve`; NaN where g(x) is 0.
    """
    levels = _levels(model, x, sigmas, seed)

    clean = gradient_at(model, lse_score, x)
    curve = [
        ops.grad_norm(gradient_at(model, lse_score, noisy) - clean)
        for noisy in _noisy(x, levels, seed)
    ]
    return torch.stack(curve, 1) / ops.grad_norm(clean).unsqueeze(1)


def _levels(model: Any, x: Any, sigmas: Any, seed: Any) -> list[float]:
    require_callable("model", model)
    check_x(x)
    require_seed(seed)
    levels = [
        require_not_negative("sigmas", sigma)
        for sigma in require_sequence("sigmas", sigmas, "numbers of at least 0")
    ]
    if not levels:
        raise ValueError("sigmas: got none, want at least one")
    return levels


def _noisy(x: Tensor, levels: Sequence[float], seed: int) -> list[Tensor]:
    return [ops.gaussian_noise(x.detach(), 1, s, seed=seed).squeeze(1) for s in levels]
