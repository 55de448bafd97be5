"""How well a classifier's logits tell inputs of the training distribution from others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcore import ops
from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_floating,
    require_positive,
)
from robustcore.density.gradients import Model, check_logits

HOTTEST = 1e6  # beyond it, T log sum exp(f / T) is T log K with nothing left of f
SCORES = ("lse", "max_logit", "max_softmax")


@dataclass(frozen=True)
class OODMetrics:
    """Numbers in [0, 1] of a detector whose score is higher inside."""

    auroc: float
    """That an input from inside scores higher than one from outside; by chance 1/2."""
    fpr95: float
    """The share of outside inputs that pass where 95 % of the inside ones do."""
    aupr_inside: float
    """Area under precision and recall (average precision) of finding the inside ones."""
    aupr_outside: float
    """The same of finding the outside ones, by the negated score."""


def ood_metrics(
    model: Model,
    inside: Tensor | Iterable[Any],
    outside: Tensor | Iterable[Any],
    *,
    score: str = "lse",
    temperature: float = 1.0,
) -> OODMetrics:
    """Detection of inputs from outside by a score of the logits.

    Args:
        model: any callable of ``[N, *D]`` to logits ``[N, K]``; put it in eval mode.
        inside, outside: a batch ``[N, *D]``, or batches of them, such as a DataLoader: tensors, or
            tuples that begin with one. Batches go to where a module's parameters are.
        score: "lse", the negative energy ``T log sum_k exp(f_k / T)``; "max_logit"; or
            "max_softmax", the largest of ``softmax(f / T)``.
        temperature: T, above 0 and at most 1e6; not used by "max_logit".

    Returns :class:`OODMetrics`. Needs scikit-learn (``pip install 'robustcore[demo]'``). Raises
    TypeError or ValueError naming the argument, ImportError without scikit-learn.
    Source: Hendrycks and Gimpel, 2017 (max_softmax, the metrics); Liu et al., "Energy-based
    out-of-distribution detection", 2020.
    """
    positive, values = _scored(model, inside, outside, score, temperature)
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    passed, found, _ = roc_curve(positive, values, drop_intermediate=False)
    return OODMetrics(
        float(roc_auc_score(positive, values)),
        float(passed[(found >= 0.95).argmax()]),
        float(average_precision_score(positive, values)),
        float(average_precision_score(1 - positive, -values)),
    )


def ood_auroc(
    model: Model,
    inside: Tensor | Iterable[Any],
    outside: Tensor | Iterable[Any],
    *,
    score: str = "lse",
    temperature: float = 1.0,
) -> float:
    """The AUROC alone; arguments and errors are as in :func:`ood_metrics`."""
    positive, values = _scored(model, inside, outside, score, temperature)
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, values))


@torch.no_grad()
def _scored(
    model: Model, inside: Any, outside: Any, score: str, temperature: float
) -> tuple[Any, Any]:
    """Whether each input is from inside, and its score, as arrays."""
    require_callable("model", model)
    require_choice("score", score, SCORES)
    temperature = require_positive("temperature", temperature)
    if temperature > HOTTEST:
        raise ValueError(f"temperature: got {temperature}, want at most {HOTTEST:g}")
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "OOD metrics need scikit-learn: pip install 'robustcore[demo]' (or scikit-learn)"
        ) from error
    pairs = ("inside", inside), ("outside", outside)
    for name, data in pairs:  # before anything is computed
        _check_data(name, data)
    scores = [
        torch.cat([
            _score(check_logits(model(x), x), score, temperature).double().cpu()
            for x in _batches(name, data, model)
        ])
        for name, data in pairs
    ]  # fmt: skip
    labels = torch.cat([torch.ones(len(scores[0])), torch.zeros(len(scores[1]))])
    return labels.numpy(), torch.cat(scores).numpy()


def _score(logits: Tensor, score: str, temperature: float) -> Tensor:
    if score == "max_logit":
        return logits.amax(1)
    scaled = logits.double() / temperature
    return ops.logsumexp(scaled) * temperature if score == "lse" else scaled.softmax(1).amax(1)


def _check_data(name: str, data: Any) -> None:
    if isinstance(data, Tensor):
        _check_batch(name, data)
    elif not isinstance(data, Iterable) or isinstance(data, (str, bytes, dict)):
        got = type(data).__name__
        raise TypeError(f"{name}: got {got}, want a batch [N, *D] or a loader of them")


def _check_batch(name: str, x: Any) -> Tensor:
    if require_floating(name, x).dim() < 2 or len(x) == 0:
        raise ValueError(f"{name}: got shape {list(x.shape)}, want a batch [N, *D]")
    return x  # type: ignore[no-any-return]


def _batches(name: str, data: Any, model: Model) -> Iterator[Tensor]:
    """The inputs of each batch, on the model's device."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    empty = True
    for batch in [data] if isinstance(data, Tensor) else data:
        x = _check_batch(name, batch[0] if isinstance(batch, (tuple, list)) and batch else batch)
        yield x if parameter is None else x.to(parameter.device)
        empty = False
    if empty:
        raise ValueError(f"{name}: got no batches, want at least one")
