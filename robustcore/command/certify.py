"""``robustcore certify``: a user's model on a user's data, one row an image, resumable.

Under torchrun the images are shared between the ranks, and the samples of an image when there are
fewer images than ranks; rank 0 writes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcore.command.certify_options import DTYPES, add_arguments
from robustcore.common import image_run
from robustcore.common.checks import require_positive
from robustcore.common.errors import UsageError
from robustcore.common.image_run import Setup
from robustcore.common.ranks import Ranks
from robustcore.common.table import CERTIFIED, Row
from robustcore.common.user_code import as_usage_error, load_function, load_item
from robustcore.smoothing.distributed import SharedSmooth
from robustcore.smoothing.inputs import dtype_for, require_batch, require_input
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.outputs import OUTPUTS, Output
from robustcore.smoothing.rows import Question, rows
from robustcore.smoothing.sampler import count_classes
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.tally import Tally
from robustcore.smoothing.theory.distributions import Additive, Distribution, Gaussian
from robustcore.smoothing.theory.grids import grid_of

# Images that --grid auto looks at.
PROBED = 4

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Certifies the images asked for; UsageError for bad input of the user's."""
    image_run.run(args, _Certification(args, _checked(args)))


def _checked(args: argparse.Namespace) -> Distribution:
    """The noise, once the options are found to go together."""
    image_run.check_images(args)
    if args.in_flight < 1:
        raise UsageError(f"--in-flight: got {args.in_flight}, want at least 1")
    if args.radius_tolerance is not None and not args.early_stop:
        raise UsageError("--radius-tolerance: goes with --early-stop")
    with as_usage_error("--"):
        if args.noise is None:
            noise: Distribution = Gaussian(require_positive("sigma", args.sigma))
        else:
            noise = parse_noise(args.noise)
    for option, wanted in (("--early-stop", args.early_stop), ("--at", args.at is not None)):
        if wanted and not noise.sequential:
            raise UsageError(
                f"{option}: is for random noise whose radius is a function of one probability, got "
                f"--noise {args.noise}"
            )
    return _on_grid(args.grid, noise)


def _on_grid(option: str, noise: Distribution) -> Distribution:
    """The noise on the grid that was asked for by its name."""
    if option in ("auto", "none"):
        if option == "none" and isinstance(noise, Additive) and noise.grid is not None:
            raise UsageError(f"--grid none: got --noise {noise}")
        return noise
    if not isinstance(noise, Additive) or noise.grid is not None:
        raise UsageError(
            f"--grid {option}: is for noise that has a grid and names none, got {noise}"
        )
    try:
        return noise.on_grid(int(option))
    except ValueError as error:
        raise UsageError(
            f"--grid: got {option!r}, want auto, none or an integer ({error})"
        ) from None


def _question(args: argparse.Namespace) -> Question:
    return Question(
        n0=args.N0,
        n=args.N,
        alpha=args.alpha,
        batch_size=args.batch,
        image_stride=args.skip,
        early_stop=args.early_stop,
        radius_tolerance=args.radius_tolerance,
        at=args.at,
        details=bool(args.details or args.early_stop or args.at is not None),
    )


class _Certification(image_run.Question[Row]):
    """Certificates by Monte Carlo sampling, as the options have them."""

    form, asked, shares = CERTIFIED, "certify", True

    def __init__(self, args: argparse.Namespace, noise: Distribution) -> None:
        self._args, self._noise, self._question = args, noise, _question(args)
        self.details, self.in_flight = self._question.details, args.in_flight

    def settle(self, setup: Setup, ranks: Ranks) -> None:
        noise = self._noise
        if self._args.grid != "auto" or not isinstance(noise, Additive) or noise.grid is not None:
            return

        def found() -> Any:
            table = setup.table
            return table and table.setting("grid", lambda: _probed(setup))

        grid = ranks.from_first(ranks.all_or_none(found))
        with as_usage_error("--"):
            self._noise = noise.on_grid(grid)

    def settings(self) -> dict[str, Any]:
        args = self._args
        noise, grid = self._noise, None
        if isinstance(noise, Additive):
            noise, grid = noise.on_grid(None), noise.grid
        looks = args.early_stop or args.at is not None
        return {
            "sigma": args.sigma,
            **({} if args.noise is None else {"noise": repr(noise)}),
            "N0": args.N0,
            "N": args.N,
            "alpha": args.alpha,
            "early_stop": args.early_stop,
            "radius_tolerance": args.radius_tolerance,
            "at": args.at,
            "num_classes": args.num_classes,
            "mean": args.mean,
            "std": args.std,
            "dtype": args.dtype,
            "channels_last": args.channels_last,
            # What tables of older versions do not name has the value that it had then.
            **({} if grid is None else {"grid": grid if isinstance(grid, int) else list(grid)}),
            **({"batch": args.batch} if self._noise.sound and looks else {}),
            **({} if args.input_dims == 3 else {"input_dims": args.input_dims}),
            **({} if args.output == "logits" else {"output": args.output}),
        }

    def prepare(self, setup: Setup, device: str, first: int, seed: int) -> None:
        self._data, self._device = setup.data, device
        args, noise, model = self._args, self._noise, setup.model
        with as_usage_error():
            image = load_item(setup.data, first)[0].to(device)
            output = _output(args)
            classes = args.num_classes or _count_classes(args, noise, model, output, first, image)
            # What samples images of this rank's own, and what shares the samples of one.
            self._alone, self._shared = (
                kind(
                    model,
                    classes,
                    noise=noise,
                    seed=seed,
                    mean=args.mean,
                    std=args.std,
                    dtype=DTYPES.get(args.dtype),
                    memory_format=torch.channels_last
                    if args.channels_last
                    else torch.contiguous_format,
                    cuda_graph=False if args.no_cuda_graph else None,
                    input_dims=args.input_dims,
                    output=output,
                )
                for kind in (Smooth, SharedSmooth)
            )

    def rows(
        self, indices: Sequence[int], shared: bool, tell: Callable[[int, int], Any]
    ) -> list[str | UsageError]:
        smooth = self._shared if shared else self._alone
        return rows(self._question, self._data, indices, smooth, self._device, tell)

    def count(self, total: int, done: Sequence[Row], *, hidden: bool) -> Tally:
        how = ""
        if isinstance(self._noise, Additive):
            grid = self._noise.grid
            how = " in real numbers (--grid none)" if grid is None else f" on the grid {grid}"
        return Tally(total, done, hidden=hidden, how=how)


def _probed(setup: Setup) -> int | None:
    """The grid that the first images of the run are on, or None."""
    images = []
    for idx in setup.indices[:PROBED]:
        try:
            images.append(load_item(setup.data, idx)[0])
        except UsageError:  # which its own turn will tell
            break
    return grid_of(images)


def _output(args: argparse.Namespace) -> Output:
    """Where the logits are in what the model returns; a function is the user's."""
    if args.output in OUTPUTS:
        return str(args.output)
    return load_function("--output", args.output)


def _count_classes(
    args: argparse.Namespace,
    noise: Distribution,
    model: nn.Module,
    output: Output,
    idx: int,
    image: Tensor,
) -> int:
    """Columns of the model's logits for an image, which is checked before like all the others."""
    with as_usage_error(f"image {idx}: "), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # certifying it will warn
        require_input(image, args.input_dims)
        images, _ = require_batch(image, args.input_dims)
        noise.check(images, normalized=args.mean is not None or args.std is not None)
    dtype = DTYPES[args.dtype] if args.dtype else dtype_for([model], images)
    try:
        return count_classes(model, noise, images, dtype, output)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--model: {error}") from error
    except RuntimeError as error:  # whatever layers say of a shape that they cannot take
        shape = list(images.shape)
        raise UsageError(f"--model: for an input {shape} it raised: {error}") from error
