"""Adversarial training: the loss of a batch, with an attack inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.attacks.attack import StepAttack, classifier_of, draw_seed, require_images
from robustcore.attacks.engine import end_points
from robustcore.attacks.losses import Raised, divergence
from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_classes,
    require_logits,
    require_not_negative,
)

KINDS = ("pgd", "trades", "mart")


def adversarial_training_loss(
    model: Any,
    x: Tensor,
    y: Tensor,
    attack: Any,
    kind: str = "pgd",
    beta: float | None = None,
) -> Tensor:
    """The training loss of a batch against an attack, a mean over its images.

    The attack works on the model in eval mode, so that BatchNorm's running statistics are those of
    images that are trained on; modes, flags and gradients are then as before, and the loss is that
    of the model in its own mode. No image leaves such an attack early: what is trained on is its
    last point.

    Args:
        model: maps ``[B, C, H, W]`` to logits ``[B, K]``.
        x: images ``[B, C, H, W]``, pixels in [0, 1].
        y: labels int64 ``[B]``.
        attack: a ``PGD`` or another attack by steps, whose settings are used with ``model``; or a
            function of (x, y) to adversarial images, as ``AutoAttack`` is one, on its own model.
        kind: ``"pgd"``: cross entropy at the adversarial images. ``"trades"``: cross entropy at x
            plus ``beta KL(p(x) || p(x'))``, where x' raises that divergence. ``"mart"``:
            ``-log p'_y - log(1 - max_{k != y} p'_k) + beta KL(p || p') (1 - p_y)``.
        beta: weight of the divergence, at least 0; by default 6 for trades, 5 for mart.

    Raises TypeError or ValueError, naming the argument. Differentiable in the model's parameters.
    Source: Madry et al., 2018; Zhang et al., 2019 (TRADES); Wang et al., 2020 (MART).
    """
    require_callable("model", model)
    kind = require_choice("kind", kind, KINDS)
    require_callable("attack", attack)
    if beta is not None:
        beta = require_not_negative("beta", beta)
    images, labels = require_images(x, y, None, ("x", "y"))
    adversarial = _adversarial(model, images, labels, attack, kind)
    logits = require_logits("model", model(adversarial), len(images))
    require_classes("y", labels, len(images), logits.shape[1])
    if kind == "pgd":
        return functional.cross_entropy(logits, labels)
    clean = require_logits("model", model(x), len(images))
    if kind == "trades":
        weight = 6.0 if beta is None else beta
        return functional.cross_entropy(clean, labels) + weight * _kl(clean, logits).mean()
    return _mart(clean, logits, labels, 5.0 if beta is None else beta)


def _adversarial(model: Any, x: Tensor, y: Tensor, attack: Any, kind: str) -> Tensor:
    if not isinstance(attack, StepAttack):
        made = attack(x, y)
        if not isinstance(made, Tensor) or made.shape != x.shape:
            got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"attack: gave {got}, want images {list(x.shape)}")
        return made.detach()
    seed = draw_seed() if attack.seed is None else attack.seed
    classifier, method = classifier_of(attack, seed, model), attack.method(seed)
    raised, unchecked = method.loss, [y]

    def loss(logits: Tensor, labels: Tensor, target: Tensor | None) -> Raised:
        while unchecked:  # once, because a look waits for the device
            require_classes("y", unchecked.pop(), len(y), logits.shape[1])
        return raised(logits, labels, target)

    with classifier.at_work(quiet=True), torch.no_grad():
        if kind == "trades":
            raised = divergence(require_logits("model", model(x), len(x)).softmax(1))
        return end_points(method, classifier, x.clone(), y.clone(), loss)


def _kl(clean: Tensor, logits: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(logits))``, ``[B]``."""
    return functional.kl_div(
        logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


def _mart(clean: Tensor, logits: Tensor, y: Tensor, beta: float) -> Tensor:
    index = y.unsqueeze(1)
    log = logits.log_softmax(1)
    rival = log.exp().scatter(1, index, 0.0).amax(1)
    # 1 - p' of the rival, as the sum of the others where it is nearly 1.
    boosted = -log.gather(1, index).squeeze(1) - torch.log1p(-rival.clamp(max=1 - 1e-7))
    right = clean.softmax(1).gather(1, index).squeeze(1)
    return (boosted + beta * _kl(clean, logits) * (1 - right)).mean()
