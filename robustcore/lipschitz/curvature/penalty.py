"""Curvature as a penalty, so that training makes room for certificates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_classes
from robustcore.lipschitz.curvature.bounds import estimated_eigenvalues, most_negative
from robustcore.lipschitz.curvature.mlp import read_mlp


def curvature_penalty(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Mean bound of the curvature of the margins of the labels over the strongest other classes.

    Args:
        model: a smooth perceptron, see :func:`curvature_certificate`.
        x: images ``[N, *D]``: what the strongest other class follows from.
        labels: int64 ``[N]``.

    Returns:
        A 0-d tensor, differentiable in the parameters and not in x: the larger of how concave and
        how convex a margin may be, by power iteration, so an estimate where a certificate takes an
        upper bound. Add it to the loss times a weight, such as 0.1 or 1.

    Raises TypeError or ValueError naming the argument, or the module that is no part of a smooth
    perceptron.

    Source: Singla and Feizi, "Second-order provable defenses against adversarial attacks", ICML
    2020 (CRT).
    """
    net = read_mlp(model, x, known=True)
    with torch.no_grad():
        logits = model(x)
    require_classes("labels", labels, *logits.shape)
    other = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    pairs, counts = torch.stack([labels, other], 1).unique(dim=0, return_counts=True)
    last = net.weights[-1]
    rows = last[pairs[:, 0]] - last[pairs[:, 1]]
    curvature = most_negative(net, torch.cat([rows, -rows]), estimated_eigenvalues)
    largest = torch.maximum(*curvature.chunk(2))
    mean: Tensor = (largest * counts).sum() / len(labels)
    return mean
