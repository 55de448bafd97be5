"""How well a model does on part of an image, and how well an attribution orders its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustcore.common.checks import (
    require_callable,
    require_choice,
    require_flag,
    require_floating,
    require_fraction,
    require_int,
    require_labelled,
    require_logits,
    require_module,
    require_seed,
    require_sequence,
    require_single_image,
)
from robustcore.common.game import play, ranks
from robustcore.common.plots import save
from robustcore.common.progress import steps
from robustcore.masking.model import MaskedModel

FRACTIONS = tuple(i / 10 for i in range(10))

Predictor = Callable[[Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Game:
    """The target's probability as pixels come and go, see :func:`insertion_deletion`."""

    fractions: list[float]
    """Of the pixels, from 0 to 1."""
    insertion: list[float]
    deletion: list[float]
    insertion_auc: float
    """Area under the curve: the higher the better; of deletion, the lower."""
    deletion_auc: float

    def plot(self, path: Any) -> None:
        """Writes both curves as a picture. Needs matplotlib."""
        from robustcore.masking import plots

        save(plots.game_figure(self), path, overwrite=True)


def replaced(model: nn.Module, value: float | Sequence[float] | Tensor) -> Predictor:
    """The usual masking, to compare with: what is hidden is set to ``value``.

    Args:
        model: takes images ``[N, C, H, W]``, floating.
        value: one a channel, or one for all, in the units of the images: grey, or the data's mean.

    Returns:
        A function of (x, mask) to the model's output, for :func:`masked_accuracy_curve`.
    """
    require_callable("model", model)
    try:
        values = torch.as_tensor(value)
        if values.dtype == torch.bool or values.is_complex() or values.layout != torch.strided:
            raise TypeError
        values = values.to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"value: got {value!r}, want a number or one a channel") from None
    if values.dim() > 1 or values.numel() == 0 or not bool(values.isfinite().all()):
        raise ValueError(f"value: got {value!r}, want a finite number or one a channel")

    def predict(x: Tensor, mask: Tensor) -> Tensor:
        grey = values.to(x).view(1, -1, 1, 1)
        return torch.as_tensor(model(torch.where(mask > 0, x, grey)))

    return predict


@torch.no_grad()
def masked_accuracy_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    block: int = 16,
    fills: Mapping[str, Predictor] | None = None,
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
        fills: other methods by name: functions of (x, mask) to logits, as :func:`replaced` makes.
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
    masked = as_masked(model)
    methods: dict[str, Predictor] = {"layer masking": masked, **_checked_fills(fills)}
    order = _block_order(images, block, require_seed(seed))
    whole = _predict("model", lambda x, _: masked(x), images, None, batch_size)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    points = [(f, name) for f in chosen for name in methods]
    for fraction, name in steps(points, "masked accuracy", "curve point", shown=progress):
        mask = _hide(order, fraction, block, images)
        what = "model" if name == "layer masking" else f"fills[{name!r}]"
        predicted = _predict(what, methods[name], images, mask, batch_size)
        share = torch.bincount(predicted).double() / len(predicted)
        entropy = float(torch.special.entr(share).sum()) / torch.tensor(2.0).log().item()
        right = float((predicted == labels.cpu()).double().mean())
        results[name].append((right, entropy, float((predicted == whole).double().mean())))
    return Curves(
        tuple(chosen),
        *({name: [row[i] for row in rows] for name, rows in results.items()} for i in range(3)),
    )


def as_masked(model: Any) -> MaskedModel:
    """The model as one that takes masks."""
    if isinstance(model, MaskedModel):
        return model
    require_module("model", model)
    return MaskedModel(model)


def _checked_fills(fills: Any) -> dict[str, Predictor]:
    if fills is None:
        return {}
    if not isinstance(fills, Mapping):
        raise TypeError(f"fills: got a {type(fills).__name__}, want functions by name")
    for name, fill in fills.items():
        require_callable(f"fills[{name!r}]", fill)
    return dict(fills)


def _block_order(images: Tensor, block: int, seed: int) -> Tensor:
    """The rank of each block in the order of hiding, ``[B, 1, H / block, W / block]``."""
    rows, columns = (-(-side // block) for side in images.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(images), rows * columns, generator=generator)
    return noise.argsort(1).argsort(1).view(-1, 1, rows, columns)


def _hide(order: Tensor, fraction: float, block: int, images: Tensor) -> Tensor:
    hidden = round(fraction * order[0].numel())
    mask = (order >= hidden).repeat_interleave(block, 2).repeat_interleave(block, 3)
    return mask[:, :, : images.shape[2], : images.shape[3]].to(images.device)


def _predict(
    name: str, method: Predictor, images: Tensor, mask: Tensor | None, batch_size: int
) -> Tensor:
    parts = []
    for i in range(0, len(images), batch_size):
        x = images[i : i + batch_size]
        logits = method(x, mask[i : i + batch_size] if mask is not None else images)
        parts.append(require_logits(name, logits, len(x)).argmax(1).cpu())
    return torch.cat(parts)


@torch.no_grad()
def insertion_deletion(
    model: nn.Module,
    image: Tensor,
    attribution: Tensor,
    *,
    target: int | None = None,
    step: int | None = None,
    fill: str = "mask",
    batch_size: int = 32,
    progress: bool = False,
) -> Game:
    """The target's probability as pixels are inserted, and deleted, in the attribution's order.

    Args:
        model: a :class:`MaskedModel` or what one can be made of.
        image: ``[C, H, W]`` or ``[1, C, H, W]``.
        attribution: ``[H, W]``, the most important pixels highest; ties go by position.
        target: class index; default: the model's own answer on the image.
        step: pixels a step; default ``8 * W``, as published.
        fill: ``"mask"``: layer masking, absent pixels are hidden. ``"published"``: the plain model;
            insertion starts from a blurred image (11 taps, sigma 5), deletion ends at zeros.
        batch_size: steps run at a time. progress: a progress bar.

    The area is ``(sum - half the ends) / (n - 1)`` over the n scores. Raises TypeError, ValueError
    naming the argument.
    Source: Petsiuk, Das and Saenko, "RISE: randomized input sampling for explanation", 2018.
    """
    x = require_single_image(image)
    height, width = x.shape[2:]
    if require_floating("attribution", attribution).shape != (height, width):
        got = list(attribution.shape)
        raise ValueError(f"attribution: got {got}, want a tensor {[height, width]} like image")
    require_choice("fill", fill, ("mask", "published"))
    step = 8 * width if step is None else require_int("step", step, 1)
    require_int("batch_size", batch_size, 1)
    require_flag("progress", progress)
    masked = as_masked(model)
    target = require_target(target, require_logits("model", masked(x), 1))
    pixels = height * width
    rank = ranks(attribution.reshape(1, -1).cpu()).view(1, 1, height, width).to(x.device)
    counts = torch.tensor([*range(0, pixels, step), pixels])

    def scores(background: Tensor, insert: bool) -> list[float]:
        def answer(shown: Tensor) -> Tensor:
            seen = masked(x, shown) if fill == "mask" else masked(torch.where(shown, x, background))
            return torch.as_tensor(seen).double().softmax(1)[:, target]

        parts = play(answer, rank, counts, insert=insert, batch_size=batch_size, shown=progress)
        return torch.cat(parts).tolist()

    insertion, deletion = scores(blur(x), True), scores(torch.zeros_like(x), False)
    fractions = (counts.double() / pixels).tolist()
    return Game(fractions, insertion, deletion, _area(insertion), _area(deletion))


def require_target(target: Any, logits: Tensor) -> int:
    """A class of one image's logits ``[1, K]``: as given, or the model's own answer."""
    if target is None:
        return int(logits.argmax(1))
    return require_int("target", target, 0, logits.shape[1])


def blur(x: Tensor, taps: int = 11, sigma: float = 5.0) -> Tensor:
    """x ``[N, C, H, W]`` convolved with a Gaussian of ``taps`` x ``taps``, zeros outside."""
    at = torch.arange(taps, dtype=x.dtype, device=x.device) - (taps - 1) / 2
    kernel = (-at.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    x = functional.conv2d(x, rows, padding=(taps // 2, 0), groups=channels)
    return functional.conv2d(x, rows.transpose(2, 3), padding=(0, taps // 2), groups=channels)


def _area(scores: list[float]) -> float:
    if len(scores) == 1:
        return scores[0]
    return (sum(scores) - (scores[0] + scores[-1]) / 2) / (len(scores) - 1)
