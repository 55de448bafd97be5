"""One image under many masks: batches of masks go through a model, and a number each comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robustcore.common.checks import require_flag, require_int, require_single_image
from robustcore.common.progress import steps
from robustcore.masking.predictor import Predictor, as_predictor

Target: TypeAlias = int | Callable[[Any], Tensor] | None
"""What is explained: a class, a function of the model's output, or None for the model's answer."""


class Score:
    """A model's output as one number a sample, float64 ``[N]``; remembers whether it ever changed.

    ``target`` is a class, whose probability is the number; None, the class that the first output
    has; or a function of the output to ``[N]``, for maps, pairs and whatever else a model gives. A
    model with one output a sample, ``[N]`` or ``[N, 1]``, is explained by that output itself: its
    softmax is 1 whatever it says.
    """

    def __init__(self, target: Target) -> None:
        self.target: Target = target
        if target is not None and not callable(target):
            self.target = require_int("target", target, 0, 2**31)
        self.who = "target" if callable(target) else "model"
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    @property
    def as_class(self) -> int | None:
        """The class explained, or None where a function says what is."""
        return self.target if isinstance(self.target, int) else None

    def __call__(self, output: Any, rows: int) -> Tensor:
        if callable(self.target):
            values = self.target(output)
            if not isinstance(values, Tensor) or not values.is_floating_point():
                raise TypeError(f"target: gave {_got(values)}, want floating [{rows}]")
            if values.shape != (rows,):
                raise ValueError(f"target: gave {_got(values)}, want floating [{rows}]")
            self._note(values)
            return values.double()
        logits = _as_logits(output, rows)
        if self.target is None:
            self.target = int(logits[0].argmax())
        require_int("target", self.target, 0, logits.shape[1])
        self._note(logits)
        numbers = logits.double()
        return numbers[:, 0] if logits.shape[1] == 1 else numbers.softmax(1)[:, self.target]

    def _note(self, values: Tensor) -> None:
        low, high = values.amin(0), values.amax(0)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def require_finite(self, scores: Tensor) -> None:
        """Refuses what is no number."""
        bad = ~scores.isfinite()
        if bool(bad.any()):
            number = f"{int(bad.sum())} of {len(scores)} masks"
            raise ValueError(
                f"{self.who}: gave {float(scores[bad][0])} for {number}, want finite numbers"
            )

    def require_varied(self, scores: Tensor) -> None:
        """Refuses to explain what is the same under all masks, and says which it is."""
        assert self._low is not None
        assert self._high is not None
        low, high = self._low, self._high
        size = torch.stack([low.abs(), high.abs()])
        rounding = 4 * torch.finfo(low.dtype).eps * size.where(size.isfinite(), 0).max()
        if not bool((high - low > rounding).any()):
            raise ValueError(
                f"{self.who}: gave the same for all {len(scores)} masks, whatever they hide, so "
                "there is nothing to explain"
            )
        if bool((scores == scores[0]).all()):
            raise ValueError(
                f"target: the probability of class {self.target} is {float(scores[0]):g} under all "
                f"{len(scores)} masks, since the softmax saturates; explain the logit, "
                f"target=lambda logits: logits[:, {self.target}]"
            )


class Engine:
    """Scores of one image under masks; the image is not copied, and no output is kept."""

    def __init__(
        self, predict: Predictor, x: Tensor, score: Score, batch_size: int, progress: bool
    ) -> None:
        self.x, self.score = x, score
        self._predict = predict
        self.batch_size = require_int("batch_size", batch_size, 1)
        self.shown = require_flag("progress", progress)

    @classmethod
    def of(cls, model: Any, image: Any, target: Target, batch_size: int, progress: bool) -> Engine:
        """The arguments that all explanations share, checked; the model has not run yet."""
        x = require_single_image(image)
        return cls(as_predictor(model), x, Score(target), batch_size, progress)

    @cached_property
    def whole(self) -> float:
        """The score of the whole image; where no target is given, the model's answer becomes it."""
        ones = torch.ones(1, 1, *self.x.shape[2:], dtype=torch.bool, device=self.x.device)
        score = self(ones)
        self.score.require_finite(score)
        return float(score)

    def __call__(self, mask: Tensor) -> Tensor:
        """Scores, float64 ``[N]`` where the image is, of masks ``[N, 1, H, W]``."""
        return self.score(self._predict(self.x, mask), len(mask))

    def run(
        self, n: int, masks: Callable[[int, int], Tensor], what: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch by batch, the masks from the first to before the last of n, and their scores."""
        _ = self.whole  # asked first: it says what the target is
        for i in steps(range(0, n, self.batch_size), what, "batch", shown=self.shown):
            mask = masks(i, min(i + self.batch_size, n))
            yield mask, self(mask)

    def gather(self, parts: list[Tensor]) -> Tensor:
        """All scores on the CPU, finite, and not all the same."""
        scores = torch.cat(parts).cpu()
        self.score.require_finite(scores)
        self.score.require_varied(torch.cat([scores.new_tensor([self.whole]), scores]))
        return scores


def _got(value: Any) -> str:
    """What an output is, in words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"a {type(value).__name__}"


def _as_logits(output: Any, rows: int) -> Tensor:
    """``[N, K]`` or ``[N]`` as the former."""
    want = f"want floating [{rows}, K]; for another output, let target be a function of it"
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise TypeError(f"model: gave {_got(output)}, {want}")
    logits = output.unsqueeze(1) if output.dim() == 1 else output
    if logits.dim() != 2 or len(logits) != rows or logits.shape[1] == 0:
        raise ValueError(f"model: gave {_got(output)}, {want}")
    return logits
