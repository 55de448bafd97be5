"""Kernel SHAP: Shapley values of segments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustcore.common.checks import require_int, require_seed
from robustcore.masking.engine import Engine, Target
from robustcore.masking.explain.explanation import ShapExplanation
from robustcore.masking.explain.solve import solve
from robustcore.masking.segments import Segments


@torch.no_grad()
def explain_shap(
    model: Any,
    image: Tensor,
    segments: Any,
    num_samples: int = 2048,
    *,
    target: Target = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> ShapExplanation:
    """Kernel SHAP with layer masking: what each segment adds, on average over all orders.

    The Shapley values solve a regression of the score on the shown sets that is weighed by
    ``(S - 1) / (C(S, k) k (S - k))`` for a set of k of S segments and exact at the empty and the
    whole one. Where all ``2^S`` sets fit into ``num_samples`` they are all asked, and the values
    are exact. Otherwise the smallest and the largest sets, which weigh most, are all asked, and the
    rest of the samples are drawn from the others, each with its complement.

    Args:
        model: a :class:`MaskedModel`, a module that one can be made of, or a function of (x, mask)
            to the model's output, as :func:`replaced` makes.
        image: ``[C, H, W]`` or ``[1, C, H, W]``.
        segments: integers ``[H, W]`` from 0, tensor or array; or the side of square blocks in
            pixels.
        num_samples: at most so many sets.
        target: class, function of the output or None, as in :func:`explain_lime`.
        batch_size: samples run at a time. seed: of the samples. progress: a progress bar.

    Raises TypeError, ValueError naming the argument, the latter too where the score is the same
    whatever is hidden. Not differentiable.
    Source: Lundberg and Lee, "A unified approach to interpreting model predictions", 2017; Covert
    and Lee, "Improving KernelSHAP", 2021.
    """
    engine = Engine.of(model, image, target, batch_size, progress)
    parts = Segments(segments, engine.x)
    number = len(parts)
    require_int("num_samples", num_samples, 2, 2**31)
    generator = torch.Generator().manual_seed(require_seed(seed))
    z, sample_weight, exact = coalitions(number, num_samples - 2, generator)
    z = torch.cat([torch.tensor([[False], [True]]).expand(2, number), z])
    scores = parts.scores(engine, z, "SHAP")
    base, whole = (float(score) for score in scores[:2])
    values = shapley_regression(z[2:].double(), scores[2:] - base, sample_weight, whole - base)
    if values is None:
        raise ValueError(
            f"num_samples: got {num_samples}, too few to tell {number} segments apart, want some "
            f"{4 * number}"
        )
    return ShapExplanation(**parts.fields(engine, z, scores, values), base=base, exact=exact)


def coalitions(number: int, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor, bool]:
    """Sets of segments but the empty and the whole one, bool ``[N, S]``, and their weights.

    Whole layers (k or S - k shown) are listed from the outermost as long as they fit into their
    share of the budget, or all of them do; what is left is drawn. The third says if nothing is.
    """
    drawn = list(range(1, number // 2 + 1))
    both = {k: 1 if 2 * k == number else 2 for k in drawn}
    mass = {k: both[k] / (k * (number - k)) for k in drawn}
    everything = number < 32 and 2**number - 2 <= budget
    left = sum(mass.values())
    sets, weights = [torch.zeros(0, number, dtype=torch.bool)], [torch.zeros(0).double()]
    while drawn:
        k = drawn[0]
        size = both[k] * math.comb(number, k)
        if not everything and budget * mass[k] < size * left:
            break
        layer = _subsets(number, k)
        sets.append(layer if both[k] == 1 else torch.cat([layer, ~layer]))
        weights.append(torch.full((size,), mass[k] / size, dtype=torch.float64))
        budget, left = budget - size, left - mass[k]
        del drawn[0]
    if drawn and budget >= 2:
        chance = torch.tensor([mass[k] for k in drawn], dtype=torch.float64)
        pairs = _draw(number, torch.tensor(drawn), chance, budget // 2, generator)
        sets += [pairs, ~pairs]
        weights.append(torch.full((2 * len(pairs),), left / (2 * len(pairs)), dtype=torch.float64))
    return torch.cat(sets), torch.cat(weights), not drawn


def _subsets(number: int, k: int) -> Tensor:
    """All sets of k, bool ``[C(S, k), S]``."""
    chosen = torch.combinations(torch.arange(number), k)
    return torch.zeros(len(chosen), number, dtype=torch.bool).scatter_(1, chosen, True)


def _draw(number: int, sizes: Tensor, chance: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n random sets: of a size by its chance, all of one size alike."""
    size = sizes[torch.multinomial(chance, n, replacement=True, generator=generator)]
    order = torch.rand(n, number, generator=generator).argsort(1).argsort(1)
    return order < size[:, None]


def shapley_regression(z: Tensor, y: Tensor, sample_weight: Tensor, total: float) -> Tensor | None:
    """The weighted least squares fit of y ``[N]`` on z ``[N, S]`` whose values sum to ``total``.

    None where the samples allow several.
    """
    number = z.shape[1]
    # An even split, and what deviates from it: in the space of vectors that sum to 0.
    even = total / number
    centred = z - z.mean(1, keepdim=True)
    weighted = sample_weight[:, None] * centred
    gram = weighted.T @ centred
    along = gram.diagonal().mean() if len(z) else gram.new_ones(())
    gram = gram + along / number  # the one direction that is not in it
    deviation = solve(gram, weighted.T @ (y - even * z.sum(1)))
    return None if deviation is None else even + deviation
