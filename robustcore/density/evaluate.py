"""What a model relies on: attributions, and measures of how well they and the model hold up.

The model is used as it is (put it in eval mode); no gradients of its parameters are kept. ``x`` is
``[N, *D]`` in any units, ``target`` int64 ``[N]`` (default: the model's own answer). None of the
results is differentiable. Errors are TypeError or ValueError that name the argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcore import ops
from robustcore.density.gradients import (
    Model,
    Point,
    check_choice,
    check_logits,
    check_target,
    check_x,
    gradients,
    logit_score,
    lse_score,
)
from robustcore.ops.checks import check_p

FRACTIONS = tuple(torch.logspace(-2, 0, 25, dtype=torch.float64).tolist())


@torch.no_grad()
def integrated_gradients(
    model: Model,
    x: Tensor,
    target: Tensor | None = None,
    *,
    baseline: Tensor | None = None,
    steps: int = 50,
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

    Returns:
        Shaped as x, float32 at least. Not differentiable.

    Raises TypeError or ValueError naming the argument.
    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", 2017.
    """
    check_x(x)
    if steps < 1:
        raise ValueError(f"steps: got {steps}, want at least 1")
    score = logit_score(check_target(target, check_logits(model(x), x)))
    start = torch.zeros_like(x) if baseline is None else baseline
    path = x - start
    total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for i in range(steps):
        with torch.enable_grad():
            at = (start + path * ((i + 0.5) / steps)).detach().requires_grad_()
            values = score(check_logits(model(at), at))
            total += gradients(model, score, [Point(at, values)], create_graph=False)
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
    if not isinstance(region, Tensor) or region.dtype != torch.bool:
        raise TypeError("region: want a bool tensor")
    attributions = integrated_gradients(model, x, target, baseline=baseline, steps=steps)
    return ops.grad_norm(attributions * region, check_p(p))


def pixel_perturbation(
    model: Model,
    x: Tensor,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    remove: str = "least",
    fill: float | Tensor = 0.5,
) -> Tensor:
    """The target's probability as a fraction of the elements is replaced by ``fill``, ``[N, F]``.

    Args:
        attributions: shaped as x; saliency is their absolute value.
        fractions: of the elements, in [0, 1]; 25 from 1 % to all by default.
        remove: "least" salient first (a faithful attribution keeps the probability up) or "most".
        fill: a number, or a tensor that broadcasts to x, in the units of x.

    An element is one value of one channel. The other arguments and what is raised are as in
    :func:`integrated_gradients`. Not differentiable. Source: Srinivas and Fleuret, "Full-gradient
    representation for neural network visualization", 2019.
    """
    check_choice("remove", remove, ("least", "most"))
    order = _order(x, attributions, most_salient_first=remove == "most")
    return _replace(model, x, order, target, fractions, fill, insert=False)


def insertion_game(
    model: Model,
    x: Tensor,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    fill: float | Tensor = 0.5,
) -> Tensor:
    """The target's probability as the most salient elements appear on ``fill``, ``[N, F]``.

    The arguments and what is raised are as in :func:`pixel_perturbation`. Not differentiable.
    Source: Petsiuk, Das, Saenko, "RISE", 2018.
    """
    order = _order(x, attributions, most_salient_first=True)
    return _replace(model, x, order, target, fractions, fill, insert=True)


def _order(x: Tensor, attributions: Tensor, most_salient_first: bool) -> Tensor:
    """Each element's rank in saliency, ``[N, *D]``."""
    check_x(x)
    if attributions.shape != x.shape:
        raise ValueError(
            f"attributions: got shape {list(attributions.shape)}, want {list(x.shape)} as x"
        )
    order = attributions.abs().flatten(1).argsort(dim=1, descending=most_salient_first, stable=True)
    return order.argsort(dim=1).view(x.shape)


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
    chosen = check_target(target, check_logits(model(x), x))
    elements = x[0].numel() if len(x) else 0
    curve = []
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fractions: got {fraction}, want numbers in [0, 1]")
        reached = rank < round(fraction * elements)
        image = torch.where(reached == insert, x, torch.as_tensor(fill, dtype=x.dtype).to(x.device))
        probability = check_logits(model(image), x).softmax(1)
        curve.append(probability.gather(1, chosen.unsqueeze(1)).squeeze(1))
    return torch.stack(curve, 1)


@torch.no_grad()
def density_curve(model: Model, x: Tensor, sigmas: Sequence[float], *, seed: int = 0) -> Tensor:
    """``|lse(x + n) - lse(x)|`` under Gaussian noise n of each sigma, ``[N, len(sigmas)]``.

    ``model`` maps x ``[N, *D]`` to logits ``[N, K]``, whose log-sum-exp is lse. ``sigmas`` are in
    the units of x; the noise is that of :func:`robustcore.ops.gaussian_noise` with ``seed``. Not
    differentiable. Raises TypeError or ValueError naming the argument.
    Source: arXiv 2407.04370, 2024.
    """
    check_x(x)
    clean = lse_score(check_logits(model(x), x))
    curve = [
        (lse_score(check_logits(model(noisy), x)) - clean).abs()
        for noisy in _noisy(x, sigmas, seed)
    ]
    return torch.stack(curve, 1)


def gradient_curve(model: Model, x: Tensor, sigmas: Sequence[float], *, seed: int = 0) -> Tensor:
    """``norm(g(x + n) - g(x)) / norm(g(x))`` of the input gradient of lse, ``[N, len(sigmas)]``.

    Arguments, errors and source are as in :func:`density_curve`; NaN where g(x) is 0.
    """
    check_x(x)

    def gradient(at: Tensor) -> Tensor:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            values = lse_score(check_logits(model(at), at))
            return gradients(model, lse_score, [Point(at, values)], create_graph=False)

    clean = gradient(x)
    curve = [ops.grad_norm(gradient(noisy) - clean) for noisy in _noisy(x, sigmas, seed)]
    return torch.stack(curve, 1) / ops.grad_norm(clean).unsqueeze(1)


def _noisy(x: Tensor, sigmas: Sequence[float], seed: int) -> list[Tensor]:
    return [ops.gaussian_noise(x.detach(), 1, float(s), seed=seed).squeeze(1) for s in sigmas]


@torch.no_grad()
def ood_auroc(model: Model, inside: Tensor, outside: Tensor, *, score: str = "lse") -> float:
    """How well a score tells inputs of the training distribution from others: the AUROC.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``.
        inside, outside: ``[N, *D]`` and ``[M, *D]``.
        score: "lse", or "max_logit", the largest of the logits; higher means inside.

    Returns a number in [0, 1]. Needs scikit-learn (``pip install 'robustcore[demo]'``). Raises
    TypeError or ValueError naming the argument, ImportError without scikit-learn.
    Source of the score: Liu et al., "Energy-based out-of-distribution detection", 2020.
    """
    check_choice("score", score, ("lse", "max_logit"))
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError(
            "ood_auroc needs scikit-learn: pip install 'robustcore[demo]' (or scikit-learn)"
        ) from error
    scores, labels = [], []
    for x, label in ((inside, 1), (outside, 0)):
        check_x(x)
        logits = check_logits(model(x), x)
        scores.append(lse_score(logits) if score == "lse" else logits.amax(1))
        labels.append(torch.full((len(x),), label))
    return float(roc_auc_score(torch.cat(labels), torch.cat(scores).cpu()))
