"""``robustcore certify``: a user's model on a user's data, one row an image, resumable.

Under torchrun the images are shared between the ranks, and the samples of an image when there are
fewer images than ranks; rank 0 writes.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robustcore._build import __version__
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
    load_item,
    load_model,
    model_sha256,
)
from robustcore.smoothing.distributed import SharedSmooth
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.rows import Question, count_classes, rows
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.tally import Tally
from robustcore.smoothing.theory.distributions import Distribution, Gaussian

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; names and defaults are those of the published code where it has them."""
    _add_model(parser.add_argument_group("the model and what it receives"))
    _add_images(parser.add_argument_group("the images"))
    _add_noise(parser.add_argument_group("the noise and its samples"))
    _add_run(parser.add_argument_group("the table and the run"))


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model",
        required=True,
        metavar="PKG.MODULE:FACTORY",
        help="function that returns the base classifier",
    )
    add("--checkpoint", type=Path, metavar="FILE", help="weights for it, as torch.save wrote them")
    add("--num-classes", type=int, default=None, help="columns of the logits (found by one call)")
    taken_off = "one value or one a channel, {} after the noise"
    add("--mean", type=float, nargs="+", help=taken_off.format("taken off"))
    add("--std", type=float, nargs="+", help=taken_off.format("divided by"))
    add("--batch", type=int, default=1000, help="images in one call of the model (%(default)s)")
    add("--device", default=None, help="cpu, cuda, ... (cuda if there is one)")
    add("--dtype", choices=sorted(DTYPES), default=None, help="of what the model receives")
    add("--channels-last", action="store_true", help="memory format of what the model receives")
    add("--no-cuda-graph", action="store_true", help="on a GPU: launch every kernel by itself")


def _add_images(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--data",
        required=True,
        metavar="PKG.MODULE:FACTORY",
        help="function that returns a map-style dataset of (image [C, H, W] in [0, 1], label)",
    )
    add("--start", type=int, default=0, help="index of the first image (%(default)s)")
    add("--skip", type=int, default=1, help="take every SKIP-th image (%(default)s)")
    add("--max", type=int, default=-1, help="stop before image MAX (all)")
    add(
        "--in-flight",
        type=int,
        default=1,
        help="images sampled together by each process: more for a small N (%(default)s)",
    )


def _add_noise(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    noise = group.add_mutually_exclusive_group(required=True)
    noise.add_argument("--sigma", type=float, help="level of Gaussian noise in pixel units")
    noise.add_argument(
        "--noise",
        metavar="NAME(...)",
        help="another distribution, as in Python: 'Uniform(0.5)', 'Splitting(0.75, "
        "derandomized=True)', 'PixelAblation(75)', 'BandAblation(4)', 'Dual(Gaussian(0.25))'; it "
        "decides the norm of the radii",
    )
    add("--N0", type=int, default=100, help="samples that choose the class (%(default)s)")
    add("--N", type=int, default=100_000, help="samples that bound its probability (%(default)s)")
    alpha = "failure probability of a certificate (%(default)s)"
    add("--alpha", type=float, default=0.001, help=alpha)
    seed = "of the noise (a fresh one from the operating system)"
    add("--seed", type=int, default=None, help=seed)
    question = group.add_mutually_exclusive_group()
    question.add_argument(
        "--early-stop",
        action="store_true",
        help="stop an image that will abstain or whose radius can hardly grow (same guarantee)",
    )
    question.add_argument(
        "--at",
        type=float,
        default=None,
        metavar="RADIUS",
        help="only test this radius, with at most N samples (same guarantee, far fewer samples)",
    )
    add(
        "--radius-tolerance",
        type=float,
        default=None,
        help="with --early-stop: what more samples could add to the radius (a tenth of sigma or of "
        "the radius reached)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="table to write (.tsv)")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing table")
    existing.add_argument("--resume", action="store_true", help="complete an existing table")
    add("--details", action="store_true", help="also write the columns samples and votes")
    add("--no-progress", action="store_true", help="show no progress bar")
    add(
        "--sync-seconds",
        type=float,
        default=10.0,
        help="what a loss of power may cost; a killed run loses no row (%(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="how long a rank of torchrun waits for another (%(default)s)",
    )


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
        if wanted and not (isinstance(noise, Gaussian) and noise.norm == "l2"):
            raise UsageError(f"{option}: is for Gaussian noise in l2, got --noise {args.noise}")
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
        classes = args.num_classes or count_classes(model, noise, image)
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
            )
            for kind in (Smooth, SharedSmooth)
        )
    return alone, shared


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
