"""The rows of a table: images of a user's data set, certified one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcore.common.errors import UsageError
from robustcore.common.image_run import stack
from robustcore.common.table import ABSTAIN, certificate_cells, line
from robustcore.common.user_code import as_usage_error, load_item
from robustcore.smoothing.certificates import Certificates
from robustcore.smoothing.inputs import require_input
from robustcore.smoothing.sequential import RadiusTests
from robustcore.smoothing.smooth import Smooth


@dataclass(frozen=True)
class Question:
    """What is asked of every image; the names are those of ``Smooth.certify``."""

    n0: int
    n: int
    alpha: float
    batch_size: int
    image_stride: int
    early_stop: bool
    radius_tolerance: float | None
    at: float | None
    """Only this radius is tested, see ``Smooth.certify_at``."""
    details: bool
    """Whether rows also hold the samples drawn, and the votes for the class selected."""

    def ask(
        self, smooth: Smooth, images: Tensor, first: int, tell: Callable[[int, int], Any]
    ) -> Certificates | RadiusTests:
        """The answers for images ``[B, C, H, W]``, of which the first is that of the data set."""
        run: dict[str, Any] = {
            "image_offset": first, "image_stride": self.image_stride, "progress": tell,
        }  # fmt: skip
        if self.at is not None:
            result: Any = smooth.certify_at(
                images, self.at, self.alpha, self.n, self.n0, self.batch_size, **run
            )
        else:
            run |= {"early_stop": self.early_stop, "radius_tolerance": self.radius_tolerance}
            result = smooth.certify(images, self.n0, self.n, self.alpha, self.batch_size, **run)
        assert isinstance(result, (Certificates, RadiusTests))  # of a batch
        return result


def rows(
    question: Question,
    data: Any,
    indices: Sequence[int],
    smooth: Smooth,
    device: str,
    tell: Callable[[int, int], Any],
) -> list[str | UsageError]:
    """The rows of images that follow each other in the run, or why there are none."""
    try:
        items = [load_item(data, idx) for idx in indices]
        for idx, (_, label) in zip(indices, items, strict=True):
            if not 0 <= label < smooth.num_classes:
                raise UsageError(
                    f"--data: item {idx} has the label {label}, want one in "
                    f"[0, {smooth.num_classes}), a column of the logits"
                )
        shown = f"image {indices[0]}" if len(indices) == 1 else f"images {indices[0]} and following"
        with as_usage_error(f"{shown}: "):
            images = _stack([image.to(device) for image, _ in items], smooth.input_dims)
            result = question.ask(smooth, images, indices[0], tell)
    except UsageError as error:
        return [error]
    details = _drawn(result) if question.details else [()] * len(result)
    # 0 where it abstains: the radius of a test is one number for all images.
    radius = torch.where(result.prediction == ABSTAIN, 0.0, result.radius).tolist()
    prediction, seconds = result.prediction.tolist(), result.seconds.tolist()
    return [
        line(certificate_cells(idx, label, prediction[b], radius[b], seconds[b], details[b]))
        for b, (idx, (_, label)) in enumerate(zip(indices, items, strict=True))
    ]


def _stack(images: list[Tensor], input_dims: int) -> Tensor:
    for image in images:
        require_input(image, input_dims)
    return stack(images)


def _drawn(result: Certificates | RadiusTests) -> list[tuple[int, ...]]:
    """Samples of each image, and how many of them voted for the class that was selected."""
    choice = result.counts0.argmax(1, keepdim=True)
    votes = result.counts.gather(1, choice).squeeze(1).tolist()
    samples = getattr(result, "samples", None)
    drawn = [result.n] * len(result) if samples is None else samples.tolist()
    return list(zip(drawn, votes, strict=True))
