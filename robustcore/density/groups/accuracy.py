"""Accuracy by group, and without the pixels that a spurious feature is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.checks import (
    require_broadcast,
    require_callable,
    require_classes,
    require_floating,
    require_int,
    require_not_negative,
    require_seed,
    require_sequence,
    require_values,
)
from robustcore.density.gradients import Model, check_logits, check_x, widen


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracies in [0, 1], by group and together."""

    groups: Tensor
    """``[G]`` float64; NaN where a group has no sample."""
    counts: Tensor
    """``[G]`` int64: samples of each group."""
    worst: float
    """The least of the groups'."""
    worst_group: int
    """Whose that is."""
    mean: float
    """Of all samples."""
    adjusted: float | None
    """The groups' mean with the training set's shares, where its counts are given."""


def group_accuracy(
    predicted: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    num_groups: int | None = None,
    train_counts: Sequence[int] | Tensor | None = None,
) -> GroupAccuracy:
    """Accuracy in each group, in the worst, and on average.

    Args:
        predicted: classes int64 ``[N]``, at least one.
        labels: int64 ``[N]``.
        groups: int64 ``[N]``.
        num_groups: G; None: the largest of ``groups`` and 1.
        train_counts: G counts of the training set. Test sets often hold as much of each group, and
            the mean over them weighed by these counts says what the training distribution would.

    Returns :class:`GroupAccuracy`, on the CPU. A group of which ``train_counts`` has samples and
    the test set none makes ``adjusted`` NaN. Raises TypeError or ValueError naming the argument.
    Source: Sagawa et al., 2020.
    """
    if require_values("labels", labels).dim() != 1 or len(labels) == 0:
        raise ValueError(f"labels: got shape {list(labels.shape)}, want [N], not empty")
    count = None if num_groups is None else require_int("num_groups", num_groups, 1, 1 << 31)
    for name, t in (("labels", labels), ("predicted", predicted)):
        require_classes(name, t, len(labels))
    groups = require_classes("groups", groups, len(labels), count or 1 << 31).cpu()
    count = count or int(groups.max()) + 1
    right = (predicted.cpu() == labels.cpu()).double()
    counts = groups.bincount(minlength=count)
    each = groups.bincount(right, minlength=count) / counts
    adjusted = None
    if train_counts is not None:
        shares = require_counts("train_counts", train_counts, count, 0).double()
        seen = shares > 0
        adjusted = float((each[seen] * shares[seen]).sum() / shares.sum())
    worst = int(torch.where(counts > 0, each, torch.inf).argmin())
    return GroupAccuracy(each, counts, float(each[worst]), worst, float(right.mean()), adjusted)


def require_counts(name: str, value: object, groups: int, least: int) -> Tensor:
    """Counts int64 ``[groups]``, of at least ``least``, not all 0."""
    counts = [
        require_int(name, count, least, 1 << 53)
        for count in require_sequence(name, value, f"{groups} integers of at least {least}")
    ]
    if len(counts) != groups or sum(counts) == 0:
        raise ValueError(f"{name}: got {len(counts)} counts, want {groups}, not all of them 0")
    return torch.tensor(counts)


@torch.no_grad()
def core_accuracy(
    model: Model,
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    sigma: float = 0.25,
    *,
    seed: int = 0,
    image_offset: int = 0,
) -> float:
    """The accuracy when noise covers what the mask marks: ``x + sigma m z``, clipped to [0, 1].

    With the mask of a spurious region it is the core accuracy, what the model knows without it;
    with the core's mask, how much it leans on the rest.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``; put it in eval mode.
        x: ``[N, *D]``, floating, pixels in [0, 1]; at least one.
        y: labels int64 ``[N]``.
        mask: bool or floating, at least 0, broadcasts to x: what is corrupted. Each sample's is
            divided by its largest value, and one of zeros corrupts nothing.
        sigma: of the noise, at least 0.
        seed, image_offset: of the noise, as in :func:`robustcore.ops.gaussian_noise`: with the
            index of the first image there, batches give what the whole set gives.

    Returns a number in [0, 1]. Raises TypeError or ValueError naming the argument. Not
    differentiable. Source: Singla and Feizi, "Salient ImageNet", 2022.
    """
    require_callable("model", model)
    check_x(x)
    if len(x) == 0:
        raise ValueError(f"x: got shape {list(x.shape)}, want at least one sample")
    require_classes("y", y, len(x))
    sigma = require_not_negative("sigma", sigma)
    require_seed(seed)
    if require_values("mask", mask).dtype != torch.bool:
        require_floating("mask", mask)
    weights = widen(require_broadcast("mask", mask.to(x), x)).flatten(1)
    if not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ValueError("mask: got a value below 0, infinite or NaN, want at least 0")
    largest = weights.amax(1, keepdim=True) if weights.numel() else weights
    weights = (weights / torch.where(largest > 0, largest, 1.0)).view(x.shape)
    noisy = ops.gaussian_noise(x, 1, sigma * weights, seed=seed, image_offset=image_offset)
    logits = check_logits(model(noisy.squeeze(1).clamp(0, 1)), x)
    require_classes("y", y, len(x), logits.shape[1])
    return float((logits.argmax(1) == y.to(logits.device)).double().mean())
