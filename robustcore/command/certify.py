"""``robustcore certify``: a user's model on a user's data, one row an image, resumable.

Under torchrun the images are shared between the ranks, and the samples of an image when there are
fewer images than ranks; rank 0 writes.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustcore._build import __version__
from robustcore.command.certify_options import DTYPES, add_arguments
from robustcore.common.checks import require_positive
from robustcore.common.errors import UsageError
from robustcore.common.memory import keep_freed_memory
from robustcore.common.ranks import Ranks, connect, local_device
from robustcore.common.resumable import ResultFile
from robustcore.common.table import parse_row
from robustcore.common.user_code import (
    as_usage_error,
    file_sha256,
    load_dataset,
    load_function,
    load_item,
    load_model,
    model_sha256,
)
from robustcore.smoothing.distributed import SharedSmooth
from robustcore.smoothing.inputs import dtype_for, require_batch, require_input
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.outputs import OUTPUTS, Output
from robustcore.smoothing.rows import Question, rows
from robustcore.smoothing.sampler import count_classes
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.tally import Tally
from robustcore.smoothing.theory.distributions import Distribution, Gaussian

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Certifies the images asked for; UsageError for bad input of the user's."""
    noise = _checked(args)
    device = local_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    with connect(device, args.timeout) as ranks:
        try:
            _run(args, noise, device, ranks)
        except UsageError:
            if ranks.first:
                raise
            raise SystemExit(2) from None  # all ranks have met the same, and one says it
        except RuntimeError as error:
            if ranks.size == 1:
                raise
            raise UsageError(
                f"rank {ranks.rank}: {error} (the rows so far are kept: --resume)"
            ) from error


def _checked(args: argparse.Namespace) -> Distribution:
    """The noise, once the options are found to go together."""
    if args.start < 0 or args.skip < 1:
        raise UsageError(f"--start {args.start} --skip {args.skip}: want at least 0 and at least 1")
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
    return noise


class _Setup(NamedTuple):
    """What every rank has at hand before the first image."""

    table: ResultFile | None
    """Of the rank that writes; only it looks at the table."""
    data: Any
    indices: range
    model: nn.Module


def _run(args: argparse.Namespace, noise: Distribution, device: str, ranks: Ranks) -> None:
    setup = ranks.all_or_none(lambda: _set_up(args, device, ranks))
    table = setup.table
    try:
        seed = args.seed
        if seed is None:
            seed = ranks.from_first(table.seed(default=secrets.randbits(64)) if table else 0)
        settings = _settings(args, noise, seed, setup.model)
        question = _question(args)

        def remaining() -> Sequence[int]:
            if table is None:
                return ()
            return table.remaining(setup.indices, settings, details=question.details)

        todo = ranks.from_first(ranks.all_or_none(remaining))
        if todo:
            smooths = ranks.all_or_none(lambda: _smooths(args, noise, device, setup, todo, seed))
            tally = Tally(
                len(setup.indices),
                table.rows if table else (),
                hidden=args.no_progress or not ranks.first,
            )
            with tally:
                _certify_all(setup, question, smooths, todo, args.in_flight, device, ranks, tally)
            if ranks.first:
                print(f"{args.out}: {len(todo)} images, {tally.certified} certified, seed {seed}")
        elif ranks.first:
            print(f"{args.out}: no image left to certify")
    finally:
        if table:
            table.close()


def _set_up(args: argparse.Namespace, device: str, ranks: Ranks) -> _Setup:
    table = None
    if ranks.first:
        table = ResultFile(
            args.out,
            overwrite=args.overwrite,
            resume=args.resume,
            sync_seconds=args.sync_seconds,
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    data = load_dataset(args.data)
    stop = len(data) if args.max < 0 else min(args.max, len(data))
    for option, value in (("--start", args.start), ("--skip", args.skip)):
        if value > len(data) or (value == len(data) > 0 and option == "--start"):
            raise UsageError(f"{option} {value}: the data set has only {len(data)} images")
    indices = range(args.start, stop, args.skip)
    return _Setup(table, data, indices, load_model(args.model, args.checkpoint, device))


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


def _settings(
    args: argparse.Namespace, noise: Distribution, seed: int, model: nn.Module
) -> dict[str, Any]:
    """What a table is made with: one that is resumed must agree in all of it."""
    return {
        "model": args.model,
        "model_sha256": model_sha256(model),
        "checkpoint_sha256": file_sha256(args.checkpoint),
        "data": args.data,
        "sigma": args.sigma,
        **({} if args.noise is None else {"noise": repr(noise)}),
        "N0": args.N0,
        "N": args.N,
        "alpha": args.alpha,
        "early_stop": args.early_stop,
        "radius_tolerance": args.radius_tolerance,
        "at": args.at,
        "seed": seed,
        "num_classes": args.num_classes,
        "mean": args.mean,
        "std": args.std,
        "dtype": args.dtype,
        "channels_last": args.channels_last,
        "start": args.start,
        "skip": args.skip,
        "details": _question(args).details,
        # What tables of older versions do not name has the value that it had then.
        **({} if args.input_dims == 3 else {"input_dims": args.input_dims}),
        **({} if args.output == "logits" else {"output": args.output}),
        "versions": {"robustcore": __version__, "torch": torch.__version__},
    }


def _smooths(
    args: argparse.Namespace,
    noise: Distribution,
    device: str,
    setup: _Setup,
    todo: Sequence[int],
    seed: int,
) -> tuple[Smooth, Smooth]:
    """What samples images of this rank's own, and what shares the samples of one."""
    model = setup.model
    with as_usage_error():
        image = load_item(setup.data, todo[0])[0].to(device)
        output = _output(args)
        classes = args.num_classes or _count_classes(args, noise, model, output, todo[0], image)
        alone, shared = (
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
    return alone, shared


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


def _certify_all(
    setup: _Setup,
    question: Question,
    smooths: tuple[Smooth, Smooth],
    todo: Sequence[int],
    in_flight: int,
    device: str,
    ranks: Ranks,
    tally: Tally,
) -> None:
    """The rows of all images that are left, on every rank; the first one writes them."""
    alone, shared = smooths

    def certified(smooth: Smooth, first: int, number: int) -> list[str | UsageError]:
        images = todo[first : first + number]
        return rows(question, setup.data, images, smooth, device, tally.samples)

    position = 0
    while position < len(todo):
        left = len(todo) - position
        if left >= ranks.size:
            # One part for each rank, equally large, so that none waits for long.
            number = min(in_flight, left // ranks.size)
            mine = certified(alone, position + ranks.rank * number, number)
            made = [row for part in ranks.gather(mine) for row in part]
            position += number * ranks.size
        else:
            number = min(in_flight, left)
            made = ranks.from_first(certified(shared, position, number))
            position += number
        for row in made:
            if isinstance(row, UsageError):
                raise row
            if setup.table:
                setup.table.append(row)
            tally.add(parse_row(row))
