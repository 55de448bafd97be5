"""How well a model does on part of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.common.checks import (
    require_callable,
    require_flag,
    require_fraction,
    require_int,
    require_labelled,
    require_logits,
    require_module,
    require_seed,
    require_sequence,
)
from robustcore.common.plots import save
from robustcore.common.progress import steps
from robustcore.masking.predictor import Predictor, as_predictor
from robustcore.masking.segments import blocks

OURS = "layer masking"
FRACTIONS = tuple(i / 10 for i in range(10))


@dataclass(frozen=True)
class Curves:
    """Per method, a value at each hidden fraction ``x``, see :func:`masked_accuracy_curve`."""

    x: tuple[float, ...]
    accuracy: dict[str, list[float]]
    entropy: dict[str, list[float]]
    """Of the histogram of predicted classes, in bits."""
    unchanged: dict[str, list[float]]
    """Share of predictions that are those on the whole image."""

    def plot(self, path: Any) -> None:
        """Writes the accuracy curves as a picture. Needs matplotlib."""
        from robustcore.masking import plots

        save(plots.curve_figure(self), path, overwrite=True)


@torch.no_grad()
def masked_accuracy_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    block: int = 16,
    fills: Mapping[str, Predictor] | None = None,
    output: Callable[[Any], Tensor] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Curves:
    """Accuracy, class entropy and unchanged predictions against the hidden fraction of the image.

    Blocks of ``block`` x ``block`` pixels are hidden in a random order of their own for each image;
    what is hidden at one fraction stays hidden at the next, and all methods see the same masks.

    Args:
        model: a :class:`MaskedModel` or what one can be made of; its curve is ``"layer masking"``.
        images, labels: floating ``[B, C, H, W]`` and int64 ``[B]``.
        fractions: of blocks hidden, in [0, 1].
        block: side of a block in pixels.
        fills: other methods by name: functions of (x, mask) to the model's output, as
            :func:`replaced` makes.
        output: a function of the model's output to logits ``[N, K]``, where it is something else. A
            model with one logit needs one: ``lambda y: torch.cat([-y, y], 1)``.
        batch_size: images at a time. seed: of the orders. progress: a progress bar.

    Raises TypeError, ValueError naming the argument. Source: Balasubramanian and Feizi, 2023.
    """
    require_labelled(images, labels)
    chosen = [
        require_fraction("fractions", fraction)
        for fraction in require_sequence("fractions", fractions, "numbers in [0, 1]")
    ]
    block = min(require_int("block", block, 1), max(images.shape[2:]))
    require_int("batch_size", batch_size, 1)
    require_flag("progress", progress)
    require_module("model", model)
    if output is not None:
        require_callable("output", output)
    others = _checked_fills(fills)
    order = _block_order(images, block, require_seed(seed))
    answers = {
        name: _Answers(who, predict, output, images, batch_size)
        for name, who, predict in (
            (OURS, "model", as_predictor(model)),
            *((name, f"fills[{name!r}]", fill) for name, fill in others.items()),
        )
    }
    whole = answers[OURS](torch.ones_like(images[:, :1], dtype=torch.bool))
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in answers}
    points = [(f, name) for f in chosen for name in answers]
    for fraction, name in steps(points, "masked accuracy", "curve point", shown=progress):
        predicted = answers[name](_hide(order, fraction, block, images))
        share = torch.bincount(predicted).double() / len(predicted)
        entropy = float(torch.special.entr(share).sum()) / math.log(2)
        right = float((predicted == labels.cpu()).double().mean())
        results[name].append((right, entropy, float((predicted == whole).double().mean())))
    return Curves(
        tuple(chosen),
        *({name: [row[i] for row in rows] for name, rows in results.items()} for i in range(3)),
    )


def _checked_fills(fills: Any) -> dict[str, Predictor]:
    if fills is None:
        return {}
    if not isinstance(fills, Mapping):
        raise TypeError(f"fills: got a {type(fills).__name__}, want functions by name")
    for name, fill in fills.items():
        if name == OURS:
            raise ValueError(f"fills: got {OURS!r}, which is the name of the model's own curve")
        require_callable(f"fills[{name!r}]", fill)
    return dict(fills)


def _block_order(images: Tensor, block: int, seed: int) -> Tensor:
    """The rank of each block in the order of hiding, ``[B, blocks]``."""
    number = math.prod(-(-side // block) for side in images.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(images), number, generator=generator).argsort(1).argsort(1)


def _hide(order: Tensor, fraction: float, block: int, images: Tensor) -> Tensor:
    shown = order >= round(fraction * order.shape[1])
    return shown[:, blocks(images.shape[2], images.shape[3], block)].unsqueeze(1).to(images.device)


class _Answers:
    """The classes that one method gives to images under masks."""

    def __init__(
        self,
        who: str,
        predict: Predictor,
        output: Callable[[Any], Tensor] | None,
        images: Tensor,
        batch_size: int,
    ) -> None:
        self.who = who if output is None else "output"
        self._predict, self._output = predict, output
        self._images, self._batch_size = images, batch_size

    def __call__(self, mask: Tensor) -> Tensor:
        parts = []
        for i in range(0, len(mask), self._batch_size):
            x = self._images[i : i + self._batch_size]
            given = self._predict(x, mask[i : i + self._batch_size])
            parts.append(self._classes(given if self._output is None else self._output(given), x))
        return torch.cat(parts)

    def _classes(self, logits: Any, x: Tensor) -> Tensor:
        checked = require_logits(self.who, logits, len(x))
        if checked.shape[1] == 1:
            raise ValueError(
                f"{self.who}: gave one logit an image, the largest of one whatever it is; make two "
                "of it, output=lambda y: torch.cat([-y, y], 1)"
            )
        if bool(checked.isnan().any()):
            raise ValueError(f"{self.who}: gave nan, want logits that have a largest one")
        return checked.argmax(1).cpu()
