"""Losses for networks whose logits cannot grow."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from robustcore.common.checks import require_classes, require_floating, require_positive


def hkr(logits: Tensor, labels: Tensor, *, alpha: float = 10.0, margin: float = 1.0) -> Tensor:
    """Hinge and Kantorovich-Rubinstein: ``alpha * hinge - KR``, each class against the rest.

    KR is, over the classes, the mean logit of a class's images less the mean of the others'; the
    hinge is ``relu(margin - z)`` of an image's own logit and ``relu(margin + z)`` of the others,
    those averaged.

    Args:
        logits: ``[N, K]``, K >= 2, of a 1-Lipschitz network.
        labels: int64 ``[N]``.
        alpha: weight of the hinge, above 0.
        margin: what the hinge asks for, in logits, above 0.

    Returns:
        A number, differentiable in the logits. Classes that the batch lacks, or that are all of it,
        have no KR. Raises TypeError or ValueError naming the argument.
    Source: Serrurier et al., "Achieving robustness in classification using optimal transport with
    hinge regularization", 2021.
    """
    _check(logits, labels)
    alpha, margin = require_positive("alpha", alpha), require_positive("margin", margin)
    own = one_hot(labels, logits.shape[1]).to(logits.dtype)
    rest = 1 - own
    inside = (own * logits).sum(0) / own.sum(0).clamp(min=1)
    outside = (rest * logits).sum(0) / rest.sum(0).clamp(min=1)
    both = (own.sum(0) > 0) & (rest.sum(0) > 0)
    transport = ((inside - outside) * both).mean()
    short = (margin - logits).relu() * own
    beyond = (margin + logits).relu() * rest / (logits.shape[1] - 1)
    loss: Tensor = alpha * (short + beyond).sum(1).mean() - transport
    return loss


def tau_cross_entropy(logits: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Cross-entropy of ``tau * logits``, over tau: gradients keep their size whatever tau.

    A large tau asks for accuracy, a small one for margins.

    Args:
        logits: ``[N, K]``, of a 1-Lipschitz network.
        labels: int64 ``[N]``.
        tau: inverse temperature, above 0.

    Returns:
        A number, differentiable in the logits. Raises TypeError or ValueError naming the argument.
    Source: Bethune et al., "Pay attention to your loss", 2022.
    """
    _check(logits, labels)
    tau = require_positive("tau", tau)
    return cross_entropy(tau * logits, labels) / tau


def _check(logits: Tensor, labels: Tensor) -> None:
    if require_floating("logits", logits).dim() != 2 or logits.shape[1] < 2 or len(logits) == 0:
        got = list(logits.shape)
        raise ValueError(f"logits: got shape {got}, want [N, K] with N >= 1 and K >= 2")
    # On a GPU torch looks at them: to do so here would wait for it.
    require_classes("labels", labels, len(logits), None if logits.is_cuda else logits.shape[1])
