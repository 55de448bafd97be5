"""Radii that follow from margins and Lipschitz bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common.checks import (
    require_classes,
    require_floating,
    require_not_negative,
    require_positive,
    require_radii,
)
from robustcore.lipschitz.layers import CRCHead, NormalizedLinear, flat_features

# Of the margin of two coordinates; above sqrt(2).
ROOT_OF_TWO = math.nextafter(math.sqrt(2), 2)


def margin_certificate(
    logits: Tensor,
    bound: float,
    *,
    head: nn.Module | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """l2 radii within which the arg-max of the logits cannot change, from their margins.

    Args:
        logits: ``[N, K]``, K >= 2.
        bound: Lipschitz bound of the network, in logits per unit of input; with a ``head``, of the
            features that the head reads.
        head: a NormalizedLinear or ``nn.Linear``: its rows w give each pair of classes a constant
            of its own, ``bound * norm(w_y - w_j)``. Without one it is ``sqrt(2) * bound``, which is
            also right for an orthogonal head (SOC) counted in the bound.
        labels: int64 ``[N]``; default: the arg-max.

    Returns:
        float64 ``[N]``: the smallest over j of ``(f_y - f_j) / constant``; negative where the label
        is not the arg-max, NaN where a logit is. Differentiable in the logits and the head's rows.
        Raises ValueError or TypeError naming the argument.
    Source: Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", 2018; Singla et al., 2022.
    """
    if require_floating("logits", logits).dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [N, K] with K >= 2")
    bound = require_positive("bound", bound)
    values = logits.double()
    chosen = _chosen(values, labels)
    if head is None:
        constants = torch.full_like(values[:1], ROOT_OF_TWO).expand_as(values)
    elif isinstance(head, nn.Linear):
        rows = head.normalized_weight() if isinstance(head, NormalizedLinear) else head.weight
        if len(rows) != values.shape[1]:
            raise ValueError(f"head: got {len(rows)} classes, want {values.shape[1]} as logits")
        constants = rows_apart(rows)[chosen]
    else:
        raise TypeError(
            f"head: got {type(head).__name__}, want a NormalizedLinear or an nn.Linear; "
            "for a CRCHead see crc_certificate"
        )
    return radii_of_margins(values, chosen, constants, bound)


def rows_apart(rows: Tensor, order: float = 2) -> Tensor:
    """``[K, K]`` float64, rounded up: how far a head's rows ``[K, F]`` are from one another."""
    wide = rows.double()
    apart: Tensor = torch.linalg.vector_norm(wide[:, None] - wide[None], ord=order, dim=2)
    return apart * (1 + 1e-12)


def radii_of_margins(
    logits: Tensor,
    chosen: Tensor,
    constants: Tensor,
    bound: float,
    slack: Tensor | float = 0.0,
    lost: Tensor | float = 0.0,
) -> Tensor:
    """``[N]``, smallest over the classes j: ``((margin_j - lost) / constant_j - slack) / bound``.

    ``constants``: ``[N, K]``, of the chosen classes' margins in what has the bound and the slack.
    """
    margins = logits.gather(1, chosen[:, None]) - logits - _column(lost)
    # Equal rows: the margin cannot change. Kept out of the quotient, whose gradient would be NaN.
    fixed = constants == 0
    safe = constants.masked_fill(fixed, 1.0)
    radii = (margins - _column(slack) * safe) / (bound * safe * (1 + 1e-15))
    radii = torch.where(fixed & (margins != 0), margins.sign() * math.inf, radii)
    return _smallest(radii, chosen)


def _column(value: Tensor | float) -> Tensor | float:
    return value[:, None] if isinstance(value, Tensor) and value.dim() else value


def _chosen(logits: Tensor, labels: Any) -> Tensor:
    """The class of each row: as given, or the arg-max."""
    return logits.argmax(1) if labels is None else require_classes("labels", labels, *logits.shape)


def _smallest(radii: Tensor, chosen: Tensor) -> Tensor:
    """Over the classes that were not chosen; NaN if there is one."""
    own = torch.zeros_like(radii, dtype=torch.bool).scatter(1, chosen[:, None], True)
    return radii.masked_fill(own & ~radii.isnan(), math.inf).amin(1)


def crc_certificate(
    head: CRCHead, features: Tensor, bound: float, *, labels: Tensor | None = None
) -> Tensor:
    """l2 radii for a network that ends in a CRCHead, from gradients and curvature of the margins.

    ``(sqrt(norm(g)^2 + 2 K D) - norm(g)) / (K * bound)`` with D a margin, g its gradient in the
    features, and K = beta / 4 * norm(W1)^2 * max(-(w2_y - w2_j), 0) its curvature from below;
    ``D / (norm(g) bound)`` at K = 0. Computed in float64, norm(W1) as an upper bound.

    Args:
        head: the last layers.
        features: ``[N, *]``, its inputs.
        bound: Lipschitz bound of the features.
        labels: int64 ``[N]``; default: the arg-max of the logits.

    Returns:
        float64 ``[N]``: smallest over the other classes, 0 at most where the label is not the
        arg-max. Differentiable. Raises ValueError naming the argument.
    Source: Singla and Feizi, "Second-order provable defenses", 2020; Singla et al., 2022.
    """
    if not isinstance(head, CRCHead):
        raise TypeError(f"head: got a {type(head).__name__}, want a CRCHead")
    bound = require_positive("bound", bound)
    flat = flat_features(features, head.linear1.in_features, "features")
    w1, w2 = head.linear1.weight.double(), head.linear2.weight.double()
    inner = flat.double() @ w1.T + head.linear1.bias.double()
    active = torch.nn.functional.softplus(inner, head.beta)
    logits = active @ w2.T + head.linear2.bias.double()
    chosen = _chosen(logits, labels)
    margins = logits.gather(1, chosen[:, None]) - logits  # [N, K]
    apart = w2[chosen][:, None] - w2[None]  # [N, K, hidden]
    slope = torch.sigmoid(head.beta * inner)
    gradient = torch.linalg.vector_norm((apart * slope[:, None]) @ w1, dim=2)
    norm = torch.linalg.matrix_norm(w1, ord=2) * (1 + 1e-12)
    curvature = head.beta / 4 * norm**2 * (-apart).clamp(min=0).amax(2)
    # The same quotient without cancellation, and without a division by a curvature of 0.
    root = (gradient**2 + 2 * curvature * margins.clamp(min=0)).clamp(min=1e-300).sqrt()
    radii = 2 * margins / ((root + gradient) * bound)
    return _smallest(radii, chosen)


def certificate_loss(logits: Tensor, labels: Tensor, certificates: Tensor, gamma: float) -> Tensor:
    """Cross-entropy less ``gamma`` times the mean of the positive certificates.

    Args:
        logits: ``[N, K]``; labels: int64 ``[N]``.
        certificates: ``[N]`` of those labels, see :func:`margin_certificate`.
        gamma: per unit of radius, at least 0.

    Differentiable. Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """
    if require_floating("logits", logits).dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [N, K]")
    # On a GPU torch looks at them: to do so here would wait for it.
    classes = None if logits.is_cuda else logits.shape[1]
    require_classes("labels", labels, len(logits), classes)
    if require_floating("certificates", certificates).shape != logits.shape[:1]:
        got = list(certificates.shape)
        raise ValueError(f"certificates: got shape {got}, want [{len(logits)}]")
    gamma = require_not_negative("gamma", gamma)
    return cross_entropy(logits, labels) - gamma * certificates.relu().mean().to(logits.dtype)


@dataclass(frozen=True, eq=False)
class Certificate:
    """Predictions of N images and the l2 radii within which they cannot change."""

    prediction: Tensor
    """int64 ``[N]``."""
    radius: Tensor
    """float64 ``[N]``, in the input's units (usually pixels in [0, 1])."""
    bound: float | None
    """The Lipschitz bound used: of the features where a head is taken apart, else of the logits;
    None where curvature was used."""

    def __len__(self) -> int:
        return len(self.prediction)

    def certified_accuracy(self, labels: Tensor, radii: Any) -> Tensor:
        """Part of the images that are right and certified to each radius: float64, as ``radii``."""
        wanted = require_radii(radii)
        require_classes("labels", labels, len(self))
        right = (self.prediction == labels.to(self.prediction.device)).cpu()
        reached = self.radius.cpu() >= wanted.unsqueeze(-1)
        return (reached & right).double().mean(-1)
