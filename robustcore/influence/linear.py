"""Influence in linear models, where leaving one out has a closed form to judge others by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.common.checks import (
    require_choice,
    require_floating,
    require_not_negative,
    require_values,
)

STEPS = 100  # of Newton's method at most; six are usual


class LinearInfluence(NamedTuple):
    """A linear model of N training samples, and what each of them does to T test samples."""

    scores: Tensor
    """``[T, N]`` float64: output with all samples, less the output without sample i."""
    coefficients: Tensor
    """``[d]`` float64: the model of all samples."""
    leverages: Tensor
    """``[N]`` float64: h_i in [0, 1)."""
    left_out: Tensor
    """``[N]`` float64: the output of each training sample from the model without it."""


def exact_linear(
    x: Tensor, y: Tensor, test: Tensor, *, loss: str = "ridge", ridge: float = 1.0
) -> LinearInfluence:
    """What leaving out each training sample does to a linear model's outputs.

    The model minimises ``sum_i loss(x_i b, y_i) + ridge |b|^2 / 2``, with
    ``(x_i b - y_i)^2 / 2`` or, for "logistic", ``log(1 + exp(-(2 y_i - 1) x_i b))``.

    Args:
        x: ``[N, d]``, floating, at least one row; an intercept is a column of ones.
        y: ``[N]``: floating numbers for "ridge"; 0 or 1 for "logistic", of any dtype.
        test: ``[T, d]``, floating.
        loss: "ridge": exact, ``b - b_{-i} = A^-1 x_i e_i / (1 - h_i)`` with A = X^T X + ridge,
            e_i = y_i - x_i b and h_i = x_i^T A^-1 x_i. "logistic": one Newton step from b, the
            same with A = X^T W X + ridge, W = p (1 - p), e_i = y_i - p_i and
            h_i = w_i x_i^T A^-1 x_i; its error is of second order in what a sample weighs.
        ridge: at least 0; where 0 is not enough for A to have an inverse, a ValueError.

    Everything is computed in float64, on x's device. Raises TypeError or ValueError naming the
    argument. Not differentiable. Source: Allen, 1974 (PRESS); Pregibon, "Logistic regression
    diagnostics", 1981.
    """
    x, y, test = _checked(x, y, test)
    logistic = require_choice("loss", loss, ("ridge", "logistic")) == "logistic"
    ridge = require_not_negative("ridge", ridge)
    if logistic and not bool(((y == 0) | (y == 1)).all()):
        raise ValueError("y: got other labels than 0 and 1, which loss='logistic' wants")
    b = _fit_logistic(x, y, ridge) if logistic else x.new_zeros(x.shape[1])
    weights, errors = _weights_and_errors(x, y, b, logistic)
    factor = _factor(x, weights, ridge)
    if not logistic:
        b = torch.cholesky_solve((x.mT @ y)[:, None], factor)[:, 0]
        weights, errors = _weights_and_errors(x, y, b, logistic)
    directions = torch.cholesky_solve(x.mT, factor)  # A^-1 x_i, a column each
    leverages = weights * (x * directions.mT).sum(1)
    steps = directions * (errors / (1 - leverages))  # b - b_{-i}
    return LinearInfluence(test @ steps, b, leverages, x @ b - (x * steps.mT).sum(1))


def _checked(x: Tensor, y: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if require_floating("x", x).dim() != 2 or x.numel() == 0:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, d], not empty")
    if require_values("y", y).shape != (len(x),):
        raise ValueError(f"y: got shape {list(y.shape)}, want [{len(x)}]")
    if y.is_complex() or (y.dtype.is_floating_point and y.dtype.itemsize < 2):
        raise TypeError(f"y: got {y.dtype}, want real numbers")
    if require_floating("test", test).dim() != 2 or test.shape[1] != x.shape[1]:
        raise ValueError(f"test: got shape {list(test.shape)}, want [T, {x.shape[1]}]")
    for name, t in (("x", x), ("y", y), ("test", test)):
        if t.device != x.device:
            raise ValueError(f"{name}: is on {t.device}, x on {x.device}")
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"{name}: got NaN or infinity, want finite numbers")
    return x.detach().double(), y.detach().double(), test.detach().double()


def _weights_and_errors(x: Tensor, y: Tensor, b: Tensor, logistic: bool) -> tuple[Tensor, Tensor]:
    output = x @ b
    if not logistic:
        return torch.ones_like(output), y - output
    p = output.sigmoid()
    return p * (1 - p), y - p


def _factor(x: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of X^T W X + ridge."""
    matrix = x.mT @ (weights[:, None] * x)
    matrix.diagonal().add_(ridge)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = factor.diagonal()
    # The last digits of a singular matrix may be positive by chance.
    if int(failed) or float(diagonal.min()) < 1e-7 * float(diagonal.max()):
        raise ValueError(f"ridge: got {ridge}, with which X^T W X + ridge has no inverse")
    return factor


def _fit_logistic(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Newton's method, with steps halved until the loss falls."""

    def loss(b: Tensor) -> Tensor:
        sign = 1 - 2 * y
        return torch.nn.functional.softplus(sign * (x @ b)).sum() + ridge / 2 * b.square().sum()

    b = x.new_zeros(x.shape[1])
    for _ in range(STEPS):
        weights, errors = _weights_and_errors(x, y, b, True)
        gradient = x.mT @ errors - ridge * b
        step = torch.cholesky_solve(gradient[:, None], _factor(x, weights, ridge))[:, 0]
        decrement = float(gradient @ step)
        size = 1.0
        while size > 1e-10 and loss(b + size * step) > loss(b) - 1e-4 * size * decrement:
            size /= 2
        b = b + size * step
        if decrement < 1e-20 * (1 + float(loss(b))):
            break
    if ridge == 0 and bool(((2 * y - 1) * (x @ b) > 0).all()):
        raise ValueError("ridge: got 0, with which classes that can be separated have no model")
    return b
