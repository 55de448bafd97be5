"""Losses of certified training, on the logits ``[B, m, K]`` of m noisy copies of each image.

All are stable at saturated probabilities (they stay in logarithms), differentiable to any order,
computed in float32 at least, and means over the batch. The passes over ``[B, m, K]``, forward and
backward, are those of :func:`robustcore.ops.mean_softmax`; the rest is a few values an image. One
forward pass of ``[B * m, C, H, W]`` makes the logits::

    noisy = robustcore.ops.gaussian_noise(x, m, sigma, seed=step)  # [B, m, C, H, W]
    logits = model(noisy.flatten(0, 1)).unflatten(0, (-1, m))
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import (
    require_classes,
    require_floating,
    require_not_negative,
    require_positive,
)
from robustcore.ops import mean_softmax

__all__ = ["consistency", "macer", "smooth_adv", "smoothmix"]


def smooth_adv(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the mean prediction: ``-log mean_i softmax(z_i)_y``.

    Of an attack it is what the steps ascend, with one noise for all steps; of training what is
    descended at the images that the attack found.

    Args:
        logits: ``[B, m, K]``, floating.
        labels: int64 ``[B]``, in [0, K).

    Returns:
        A scalar. Raises TypeError or ValueError, naming the argument. Differentiable in logits.
        Source: Salman et al., "Provably robust deep learning via adversarially trained smoothed
        classifiers", 2019.
    """
    require_logits("logits", logits)
    require_labels(labels, logits)
    return -mean_softmax(logits)[0].gather(1, labels[:, None]).mean()


def macer(
    logits: Tensor,
    labels: Tensor,
    sigma: float,
    *,
    lam: float = 12.0,
    gamma: float = 8.0,
    beta: float = 16.0,
) -> Tensor:
    """Cross entropy of the mean prediction, and a hinge on the certified radius.

    ``-log pbar_y + lam sigma / 2 max(gamma - xi, 0)``, the hinge only for images that the mean of
    ``softmax(beta z)`` gets right, with ``xi = Phi^-1(p_y) - Phi^-1(p_2)`` of that mean, p_2 its
    largest other class. Where p_y is 1 in float32 the margin is computed from 1 - p_y, so nothing
    has to be clipped.

    Args:
        logits: ``[B, m, K]``, floating, K at least 2.
        labels: int64 ``[B]``, in [0, K).
        sigma: of the noise, above 0.
        lam: weight of the hinge, at least 0.
        gamma: the margin from which a radius is large enough, above 0.
        beta: inverse temperature of the soft radius, above 0.

    Returns:
        A scalar. Raises TypeError or ValueError, naming the argument. Differentiable in logits.
        Source: Zhai et al., "MACER: attack-free and scalable robust training via maximizing
        certified radius", 2020.
    """
    require_logits("logits", logits, classes=2)
    require_labels(labels, logits)
    sigma, beta = require_positive("sigma", sigma), require_positive("beta", beta)
    lam, gamma = require_not_negative("lam", lam), require_positive("gamma", gamma)
    cross_entropy = -mean_softmax(logits)[0].gather(1, labels[:, None]).squeeze(1)
    soft = mean_softmax(logits, beta)[0].double()
    own = soft.gather(1, labels[:, None]).squeeze(1)
    others = soft.masked_fill(torch.zeros_like(soft).scatter(1, labels[:, None], 1) > 0, -math.inf)
    # 1 - p_y as the sum of the others: a small tail has all its digits.
    second, tail = others.amax(1), others.logsumexp(1)
    counted = (own >= second) & (torch.maximum(tail, second) > math.log(1e-200))
    half = math.log(0.5)
    xi = -torch.special.ndtri(torch.where(counted, tail, half).exp())
    xi = xi - torch.special.ndtri(torch.where(counted, second, half).exp())
    hinge = torch.where(counted & (xi <= gamma), gamma - xi, 0.0)
    return (cross_entropy + lam * sigma / 2 * hinge.to(cross_entropy.dtype)).mean()


def consistency(logits: Tensor, *, lam: float = 10.0, eta: float = 0.5) -> Tensor:
    """How far the predictions of the copies are apart, and how unsure their mean is.

    ``lam / m sum_i KL(pbar || p_i) + eta H(pbar)``, beside a cross entropy of the copies.

    Args:
        logits: ``[B, m, K]``, floating, m of 2 or more.
        lam: weight of the divergence, at least 0.
        eta: weight of the entropy, at least 0.

    Returns:
        A scalar. Raises TypeError or ValueError, naming the argument. Differentiable in logits.
        Source: Jeong and Shin, "Consistency regularization for certified robustness of smoothed
        classifiers", 2020.
    """
    require_logits("logits", logits)
    lam, eta = require_not_negative("lam", lam), require_not_negative("eta", eta)
    log_mean, mean_log = mean_softmax(logits)
    # lam KL + eta H, the logarithms of both together.
    logarithms = (lam - eta) * log_mean - lam * mean_log
    return (log_mean.exp() * logarithms).sum(1).mean()


def smoothmix(logits: Tensor, mixed_logits: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    """How far mixed images are from being as unsure as they are far from the clean ones.

    ``KL((1 - u) pbar + u / K || p_i)`` of the copies of ``(1 - u) x + u x_T``, x_T where an
    unbounded attack ends, u uniform in [0, 1/2]; a mean over the images and copies, 0 where pbar
    is not right. It stands beside a cross entropy of the copies of x.

    Args:
        logits: ``[B, m, K]``, floating, of x; the gradient goes through pbar too.
        mixed_logits: ``[B, m, K]`` of the mixed images.
        labels: int64 ``[B]``, in [0, K).
        share: u, floating ``[B]``, in [0, 1).

    Returns:
        A scalar. Raises TypeError or ValueError, naming the argument. Differentiable in logits and
        mixed_logits. Source: Jeong et al., "SmoothMix: training confidence-calibrated smoothed
        classifiers for certified robustness", 2021.
    """
    require_logits("logits", logits)
    require_logits("mixed_logits", mixed_logits)
    if mixed_logits.shape != logits.shape:
        got = list(mixed_logits.shape)
        raise ValueError(f"mixed_logits: got shape {got}, want {list(logits.shape)} as logits")
    require_labels(labels, logits)
    if require_floating("share", share).shape != labels.shape:
        raise ValueError(f"share: got shape {list(share.shape)}, want {list(labels.shape)}")
    if share.device.type == "cpu" and not ((share >= 0) & (share < 1)).all():
        low, high = float(share.amin()), float(share.amax())
        raise ValueError(f"share: got {low:g} to {high:g}, want [0, 1)")
    mean = mean_softmax(logits)[0]
    u = share.to(mean)[:, None]
    target = (1 - u) * mean.exp() + u / logits.shape[2]
    # t log t is nothing there, and its derivatives are not finite.
    logarithm = target.where(target > torch.finfo(mean.dtype).eps ** 2, 1.0).log()
    own = mean.gather(1, labels[:, None]).squeeze(1)
    divergence = (target * (logarithm - mean_softmax(mixed_logits)[1])).sum(1)
    return torch.where(own >= mean.amax(1), divergence, 0.0).mean()


def require_labels(labels: Any, logits: Tensor) -> None:
    """Classes of the images; on a GPU their range is not looked at, which would wait for it."""
    on_host = isinstance(labels, Tensor) and labels.device.type == "cpu"
    require_classes("labels", labels, len(logits), logits.shape[2] if on_host else None)
    if labels.device != logits.device:
        raise ValueError(f"labels: is on {labels.device}, logits on {logits.device}")


def require_logits(name: str, logits: Any, classes: int = 1) -> None:
    """``[B, m, K]``, floating, none of them 0 and K at least ``classes``."""
    require_floating(name, logits)
    if logits.dim() != 3 or 0 in logits.shape or logits.shape[2] < classes:
        want = "[B, m, K], none of them 0" if classes == 1 else f"[B, m, K], K at least {classes}"
        raise ValueError(f"{name}: got shape {list(logits.shape)}, want {want}")
