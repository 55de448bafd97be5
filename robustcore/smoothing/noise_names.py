"""Distributions from text, as an option of a command gives them: ``Splitting(0.75, seed=3)``."""

from __future__ import annotations

import ast
from typing import Any

from robustcore.smoothing.theory.ablations import BandAblation, BlockAblation, PixelAblation
from robustcore.smoothing.theory.distributions import (
    Distribution,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
)
from robustcore.smoothing.theory.dual import Dual

DISTRIBUTIONS: dict[str, type[Distribution]] = {
    kind.__name__: kind
    for kind in (
        Gaussian,
        Uniform,
        Laplace,
        Splitting,
        PixelAblation,
        BandAblation,
        BlockAblation,
        Dual,
    )
}


def parse_noise(text: str) -> Distribution:
    """The distribution that ``text`` would construct in Python, from literals alone.

    Raises ValueError for anything else, and what the constructor complains of.
    """
    try:
        noise = _construct(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"noise: got {text!r}: {error}") from None
    return noise


def _construct(node: ast.expr) -> Distribution:
    if (
        not isinstance(node, ast.Call)
        or not isinstance(node.func, ast.Name)
        or node.func.id not in DISTRIBUTIONS
    ):
        raise ValueError(f"want NAME(arguments), NAME one of {', '.join(DISTRIBUTIONS)}")
    arguments = [_value(argument) for argument in node.args]
    options = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    return DISTRIBUTIONS[node.func.id](*arguments, **options)


def _value(node: ast.expr) -> Any:
    return _construct(node) if isinstance(node, ast.Call) else ast.literal_eval(node)
