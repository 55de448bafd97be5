"""Which images of a class show its spurious features, and what a model does without them.

Source: Moayeri, Wang, Singla, Feizi, "Spuriosity rankings: sorting data to measure and mitigate
biases", 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common.checks import (
    require_classes,
    require_floating,
    require_int,
    require_integers,
    require_not_negative,
    require_sequence,
)


@dataclass(frozen=True)
class SpuriosityRanking:
    """The images of each class that has spurious features, in the order of how much they show."""

    scores: Tensor
    """``[N]`` float64: the mean z-score of its class's spurious features; NaN where it has none."""
    order: dict[int, Tensor]
    """Of a class, the indices of its images, the most spurious first."""


@dataclass(frozen=True)
class SpuriousGap:
    """How much accuracy is lost without the spurious features."""

    mean: float
    """Over classes, in [-1, 1]."""
    classes: dict[int, float]
    """Of a class: accuracy on its most spurious images, less that on the least spurious."""


def spuriosity_ranking(
    features: Tensor, labels: Tensor, spurious_features: Mapping[int, Sequence[int]]
) -> SpuriosityRanking:
    """Ranks the images of each class by how strongly they show its spurious features.

    The score of an image is the mean over its class's spurious features of (feature - mean) /
    standard deviation, both over the class's images; a feature that is the same in all counts 0.

    Args:
        features: ``[N, F]``, floating and finite: activations before the last layer.
        labels: int64 ``[N]``.
        spurious_features: of a class, the indices of its spurious features in [0, F), such as a
            person judged them from the images that activate them the most.

    Returns :class:`SpuriosityRanking`, on the CPU. Ties go by position. Raises TypeError or
    ValueError naming the argument. Not differentiable.
    """
    _require_features(features)
    require_classes("labels", labels, len(features))
    wanted = "a dict of classes to the indices of their features"
    if not isinstance(spurious_features, Mapping):
        got = type(spurious_features).__name__
        raise TypeError(f"spurious_features: got {got}, want {wanted}")
    if not spurious_features:
        raise ValueError(f"spurious_features: got no class, want {wanted}")
    rows, labels = features.detach().cpu().double(), labels.cpu()
    scores = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    order = {}
    for label, columns in spurious_features.items():
        images = (labels == require_int("spurious_features", label, 0)).nonzero().flatten()
        chosen = _columns(columns, rows.shape[1])
        if len(images) == 0:
            raise ValueError(f"spurious_features: got class {label}, of which labels has no image")
        values = rows[images][:, chosen]
        deviation = values.std(0, correction=0)
        z = (values - values.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
        scores[images] = z.mean(1)
        order[int(label)] = images[scores[images].argsort(descending=True, stable=True)]
    return SpuriosityRanking(scores, order)


def _columns(columns: Any, features: int) -> list[int]:
    what = f"at least one integer in [0, {features})"
    chosen = [
        require_int("spurious_features", column, 0, features)
        for column in require_sequence("spurious_features", columns, what)
    ]
    if not chosen:
        raise ValueError(f"spurious_features: got no features of a class, want {what}")
    return chosen


def spurious_gap(
    predicted: Tensor, labels: Tensor, ranking: SpuriosityRanking, k: int = 100
) -> SpuriousGap:
    """Accuracy on each class's k most spurious images, less that on its k least spurious.

    Args:
        predicted, labels: classes int64 ``[N]`` of the images that were ranked.
        ranking: of :func:`spuriosity_ranking`.
        k: images on either side, at most half of a class.

    Returns :class:`SpuriousGap`. Raises TypeError or ValueError naming the argument.
    """
    _require_ranking(ranking)
    require_classes("labels", labels, len(ranking.scores))
    require_classes("predicted", predicted, len(ranking.scores))
    k = _require_k(ranking, k, 2)
    right = (predicted.cpu() == labels.cpu()).double()
    classes = {
        label: float(right[order[:k]].mean() - right[order[-k:]].mean())
        for label, order in ranking.order.items()
    }
    return SpuriousGap(sum(classes.values()) / len(classes), classes)


def least_spurious(ranking: SpuriosityRanking, k: int) -> Tensor:
    """The indices of the k least spurious images of each class of ``ranking``, int64.

    ``[classes * k]``, class by class. Raises TypeError or ValueError naming the argument.
    """
    _require_ranking(ranking)
    k = _require_k(ranking, k, 1)
    return torch.cat([order[-k:] for order in ranking.order.values()])


def retrain_head(
    features: Tensor,
    labels: Tensor,
    chosen: Tensor,
    *,
    num_classes: int | None = None,
    ridge: float = 1e-3,
) -> nn.Linear:
    """A last layer trained anew on some images, such as the :func:`least_spurious` ones.

    It minimises ``mean cross entropy + ridge / 2 |weight|^2`` in float64 by L-BFGS, whose minimum
    is the only one where ``ridge`` is above 0, so nothing is left to chance.

    Args:
        features: ``[N, F]``, floating and finite: what the layer is given.
        labels: int64 ``[N]``.
        chosen: indices int64 ``[M]`` in [0, N), at least one.
        num_classes: rows of the layer; None: the largest label and 1.
        ridge: at least 0.

    Returns an ``nn.Linear(F, num_classes)`` of features' dtype and device. Raises TypeError or
    ValueError naming the argument.
    """
    _require_features(features)
    require_classes("labels", labels, len(features), 1 << 31)
    if require_integers("chosen", chosen).dim() != 1 or len(chosen) == 0:
        raise ValueError(f"chosen: got shape {list(chosen.shape)}, want [M], not empty")
    require_classes("chosen", chosen, len(chosen), len(features))
    ridge = require_not_negative("ridge", ridge)
    least = int(labels.max()) + 1
    classes = (
        least if num_classes is None else require_int("num_classes", num_classes, least, 1 << 31)
    )
    x = features.detach()[chosen.to(features.device)].double()
    y = labels.to(features.device)[chosen.to(features.device)]
    head = nn.Linear(x.shape[1], classes, dtype=torch.float64, device="meta")
    head = head.to_empty(device=x.device)  # without a draw of torch's random numbers
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(head(x), y) + ridge / 2 * head.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    head.zero_grad()
    return head.to(features.dtype)


def _require_features(features: Any) -> None:
    if require_floating("features", features).dim() != 2 or features.numel() == 0:
        raise ValueError(f"features: got shape {list(features.shape)}, want [N, F], not empty")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features: got NaN or infinity, want finite numbers")


def _require_ranking(ranking: Any) -> None:
    if not isinstance(ranking, SpuriosityRanking):
        got = type(ranking).__name__
        raise TypeError(f"ranking: got {got}, want what spuriosity_ranking returned")


def _require_k(ranking: SpuriosityRanking, k: Any, sides: int) -> int:
    """Images of each class, so many times of which every class has."""
    if not ranking.order:
        raise ValueError("ranking: got no class with spurious features, want at least one")
    label, order = min(ranking.order.items(), key=lambda item: len(item[1]))
    count = require_int("k", k, 1)
    if sides * count > len(order):
        most = len(order) // sides
        raise ValueError(f"k: got {k}, want at most {most}: class {label} has {len(order)} images")
    return count
