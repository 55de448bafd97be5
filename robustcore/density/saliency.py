"""Pictures of what a model looks for: smoothed gradients, and inputs that excite it the most."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_int,
    require_not_negative,
    require_positive,
    require_real,
    require_seed,
    require_sequence,
)
from robustcore.density.gradients import (
    MAX_STEPS,
    Model,
    Score,
    check_logits,
    check_target,
    check_x,
    gradient_at,
    logit_score,
    lse_score,
    unit,
    widen,
)


@torch.no_grad()
def smooth_grad(
    model: Model,
    x: Tensor,
    target: Tensor | None = None,
    *,
    sigma: float,
    samples: int = 50,
    seed: int = 0,
    image_offset: int = 0,
) -> Tensor:
    """SmoothGrad: the mean gradient of the target's logit over noisy copies of x.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``; put it in eval mode.
        x: ``[N, *D]``, floating.
        target: int64 ``[N]``; default: the model's own answer at x.
        sigma: of the noise, in the units of x, at least 0; 0.1 to 0.2 of their range is usual.
        samples: copies, at least 1. One is there at a time.
        seed, image_offset: of the noise, as in :func:`robustcore.ops.gaussian_noise`: copy s is its
            sample s.

    Returns:
        Shaped as x, float32 at least. Not differentiable.

    Raises TypeError or ValueError naming the argument.
    Source: Smilkov, Thorat, Kim, Viegas, Wattenberg, "SmoothGrad: removing noise by adding noise",
    2017.
    """
    require_callable("model", model)
    check_x(x)
    sigma = require_not_negative("sigma", sigma)
    samples = require_int("samples", samples, 1, MAX_STEPS)
    require_seed(seed)
    score = logit_score(check_target(target, check_logits(model(x), x)))
    total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for s in range(samples):
        noisy = ops.gaussian_noise(
            x.detach(), 1, sigma, seed=seed, image_offset=image_offset, sample_offset=s
        )
        total += gradient_at(model, score, noisy.squeeze(1))
    return total / samples


@torch.no_grad()
def activation_maximisation(
    model: Model,
    start: Tensor,
    target: Tensor | None = None,
    *,
    of: str = "logit",
    steps: int = 100,
    step_size: float = 0.1,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:
    """Gradient ascent from ``start`` to an input that a logit, or the density, is high at.

    Each step goes ``step_size`` along the gradient scaled to l2 norm 1, then back into the bounds.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``; put it in eval mode.
        start: ``[N, *D]``, floating, usually noise, such as ``torch.rand``.
        target: int64 ``[N]``, whose logits rise; default: the model's answer at the start.
        of: "logit", or "density", the log-sum-exp of all logits.
        steps: at least 1.
        step_size: l2 length of a step of each sample, in the units of x, above 0.
        bounds: values stay in [low, high]; None: no bounds.

    Returns:
        Shaped as start, of its dtype. Not differentiable.

    Raises TypeError or ValueError naming the argument.
    Source: Erhan, Bengio, Courville, Vincent, "Visualizing higher-layer features of a deep
    network", 2009.
    """
    require_callable("model", model)
    check_x(start, "start")
    steps = require_int("steps", steps, 1, MAX_STEPS)
    step_size = require_positive("step_size", step_size)
    limits = check_bounds(bounds)
    require_choice("of", of, ("logit", "density"))
    logits = check_logits(model(start), start)
    chosen = check_target(target, logits)
    score: Score = lse_score if of == "density" else logit_score(chosen)
    at = widen(start.detach())
    for _ in range(steps):
        direction, _ = unit(gradient_at(model, score, at.to(start.dtype)))
        at = within(at + step_size * direction, limits)
    return at.to(start.dtype)


@torch.no_grad()
def langevin_samples(
    model: Model,
    start: Tensor,
    target: Tensor | None = None,
    *,
    steps: int = 20,
    step_size: float = 1.0,
    noise: float | None = 0.01,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    image_offset: int = 0,
    step_offset: int = 0,
) -> Tensor:
    """Samples of the density that a classifier defines, by stochastic gradient Langevin dynamics.

    ``x <- x + step_size * grad log density(x) + noise * z`` with z from N(0, I). The log density is
    the log-sum-exp of the logits, or the target's logit (the density given a class), up to a
    constant.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``; put it in eval mode.
        start: ``[N, *D]``, floating: noise, or earlier samples (a replay buffer).
        target: int64 ``[N]``; None: of any class.
        steps: at least 1.
        step_size: above 0.
        noise: standard deviation, at least 0. None: ``sqrt(2 step_size)``, with which samples
            follow the density itself as steps go on and get small. By default step size and noise
            are those that energy-based training uses, of a much colder density.
        bounds: values stay in [low, high]; None: no bounds.
        seed, image_offset, step_offset: of z, as seed, image and sample offset in
            :func:`robustcore.ops.gaussian_noise`. Going on from earlier samples with the number of
            steps they took as ``step_offset`` gives the bits of one longer run.

    Returns:
        Shaped as start, of its dtype. Not differentiable.

    Raises TypeError or ValueError naming the argument.
    Source: Welling and Teh, 2011; for classifiers: Grathwohl et al., "Your classifier is secretly
    an energy based model and you should treat it like one", 2020.
    """
    require_callable("model", model)
    check_x(start, "start")
    steps = require_int("steps", steps, 1, MAX_STEPS)
    step_size = require_positive("step_size", step_size)
    sigma = (2 * step_size) ** 0.5 if noise is None else require_not_negative("noise", noise)
    limits = check_bounds(bounds)
    require_seed(seed)
    step_offset = require_int("step_offset", step_offset, 0, (1 << 40) - steps)
    score: Score = lse_score
    if target is not None:
        score = logit_score(check_target(target, check_logits(model(start), start)))
    at = start.detach()
    for step in range(step_offset, step_offset + steps):
        moved = at + (step_size * gradient_at(model, score, at)).to(at.dtype)
        moved = ops.gaussian_noise(
            moved, 1, sigma, seed=seed, image_offset=image_offset, sample_offset=step
        )
        at = within(moved.squeeze(1), limits)
    return at


Bounds = tuple[float, float] | None


def check_bounds(bounds: object) -> Bounds:
    """Two finite numbers, the first below the other, or None."""
    if bounds is None:
        return None
    wanted = "two numbers, the first below the other, or None"
    values = [require_real("bounds", b, wanted) for b in require_sequence("bounds", bounds, wanted)]
    if len(values) != 2 or values[0] >= values[1]:
        raise ValueError(f"bounds: got {values}, want {wanted}")
    return values[0], values[1]


def within(x: Tensor, bounds: Bounds) -> Tensor:
    """x clipped to the bounds."""
    return x if bounds is None else x.clamp(*bounds)
