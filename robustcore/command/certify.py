"""``robustcore certify``: a user's model on a user's data, one row an image, resumable.

Under torchrun the images are shared between the ranks, and the samples of an image when there are
fewer images than ranks; rank 0 writes.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcore._build import __version__
from robustcore.common.errors import UsageError
from robustcore.common.memory import keep_freed_memory
from robustcore.common.ranks import Ranks, connect, local_device
from robustcore.common.resumable import ResultFile
from robustcore.common.table import certificate_cells, line, parse_row
from robustcore.common.user_code import (
    as_usage_error,
    file_sha256,
    load_dataset,
    load_item,
    load_model,
    model_sha256,
)
from robustcore.smoothing.certificates import ABSTAIN, Certificates
from robustcore.smoothing.distributed import SharedSmooth
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.sequential import RadiusTests
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
    add = parser.add_argument
    factory = "PKG.MODULE:FACTORY"
    add("--model", required=True, metavar=factory, help="function that returns the base classifier")
    add("--checkpoint", type=Path, metavar="FILE", help="weights for it, as torch.save wrote them")
    add(
        "--data",
        required=True,
        metavar=factory,
        help="function that returns a map-style dataset of (image [C, H, W] in [0, 1], label)",
    )
    noise = parser.add_mutually_exclusive_group(required=True)
    noise.add_argument("--sigma", type=float, help="level of Gaussian noise in pixel units")
    noise.add_argument(
        "--noise",
        metavar="NAME(...)",
        help="another distribution, as in Python: 'Uniform(0.5)', 'Splitting(0.75, "
        "derandomized=True)', 'PixelAblation(75)', 'BandAblation(4)', 'Dual(Gaussian(0.25))'; it "
        "decides the norm of the radii",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="table to write (.tsv)")
    add("--start", type=int, default=0, help="index of the first image (%(default)s)")
    add("--skip", type=int, default=1, help="take every SKIP-th image (%(default)s)")
    add("--max", type=int, default=-1, help="stop before image MAX (all)")
    add("--N0", type=int, default=100, help="samples that choose the class (%(default)s)")
    add("--N", type=int, default=100_000, help="samples that bound its probability (%(default)s)")
    add(
        "--alpha",
        type=float,
        default=0.001,
        help="failure probability of a certificate (%(default)s)",
    )
    add("--batch", type=int, default=1000, help="images in one call of the model (%(default)s)")
    add(
        "--in-flight",
        type=int,
        default=1,
        help="images sampled together by each process: more for a small N (%(default)s)",
    )
    add("--device", default=None, help="cpu, cuda, ... (cuda if there is one)")
    add("--dtype", choices=sorted(DTYPES), default=None, help="of what the model receives")
    add("--channels-last", action="store_true", help="memory format of what the model receives")
    add("--no-cuda-graph", action="store_true", help="on a GPU: launch every kernel by itself")
    add(
        "--seed",
        type=int,
        default=None,
        help="of the noise (a fresh one from the operating system)",
    )
    add("--num-classes", type=int, default=None, help="columns of the logits (found by one call)")
    add(
        "--mean",
        type=float,
        nargs="+",
        help="one value or one a channel, taken off after the noise",
    )
    add(
        "--std",
        type=float,
        nargs="+",
        help="one value or one a channel, divided by after the noise",
    )
    question = parser.add_mutually_exclusive_group()
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
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing table")
    existing.add_argument("--resume", action="store_true", help="complete an existing table")


def run(args: argparse.Namespace) -> None:
    """Certifies the images asked for; UsageError for bad input of the user's."""
    if args.start < 0 or args.skip < 1:
        raise UsageError(f"--start {args.start} --skip {args.skip}: want at least 0 and at least 1")
    if args.in_flight < 1:
        raise UsageError(f"--in-flight: got {args.in_flight}, want at least 1")
    if args.radius_tolerance is not None and not args.early_stop:
        raise UsageError("--radius-tolerance: goes with --early-stop")
    noise = _noise(args)
    for option, wanted in (("--early-stop", args.early_stop), ("--at", args.at is not None)):
        if wanted and not (isinstance(noise, Gaussian) and noise.norm == "l2"):
            raise UsageError(f"{option}: is for Gaussian noise in l2, got --noise {args.noise}")
    device = local_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    with connect(device, args.timeout) as ranks:
        try:
            _run(args, device, ranks)
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


def _noise(args: argparse.Namespace) -> Distribution:
    with as_usage_error("--"):
        return Gaussian(args.sigma) if args.noise is None else parse_noise(args.noise)


def _run(args: argparse.Namespace, device: str, ranks: Ranks) -> None:
    table, data, indices, model = ranks.all_or_none(lambda: _setup(args, device, ranks))
    try:
        seed = args.seed
        if seed is None:
            seed = ranks.from_first(table.seed(default=secrets.randbits(64)) if table else 0)
        settings = _settings(args, seed, model)
        todo = ranks.from_first(
            ranks.all_or_none(
                lambda: table.remaining(indices, settings, details=_details(args)) if table else ()
            )
        )
        if todo:
            _certify_all(args, device, ranks, table, data, indices, todo, model, seed)
        elif ranks.first:
            print(f"{args.out}: no image left to certify")
    finally:
        if table:
            table.close()


def _setup(
    args: argparse.Namespace, device: str, ranks: Ranks
) -> tuple[ResultFile | None, Any, range, nn.Module]:
    # Only the rank that writes looks at the table.
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
    return table, data, indices, load_model(args.model, args.checkpoint, device)


def _details(args: argparse.Namespace) -> bool:
    return bool(args.details or args.early_stop or args.at is not None)


def _settings(args: argparse.Namespace, seed: int, model: nn.Module) -> dict[str, Any]:
    """What a table is made with: one that is resumed must agree in all of it."""
    return {
        "model": args.model,
        "model_sha256": model_sha256(model),
        "checkpoint_sha256": file_sha256(args.checkpoint),
        "data": args.data,
        "sigma": args.sigma,
        **({} if args.noise is None else {"noise": repr(_noise(args))}),
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
        "details": _details(args),
        "versions": {"robustcore": __version__, "torch": torch.__version__},
    }


def _certify_all(
    args: argparse.Namespace,
    device: str,
    ranks: Ranks,
    table: ResultFile | None,
    data: Any,
    indices: range,
    todo: Sequence[int],
    model: nn.Module,
    seed: int,
) -> None:
    noise = _noise(args)

    def make(kind: type[Smooth]) -> Smooth:
        with as_usage_error():
            image = load_item(data, todo[0])[0].to(device)
            return kind(
                model,
                args.num_classes or count_classes(model, noise, image),
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

    alone, shared = ranks.all_or_none(lambda: (make(Smooth), make(SharedSmooth)))

    def certified(smooth: Smooth, first: int, number: int) -> list[str | UsageError]:
        images = todo[first : first + number]
        return _rows(args, data, images, smooth, device, progress.samples)

    progress = Tally(
        len(indices), table.rows if table else (), hidden=args.no_progress or not ranks.first
    )
    position = 0
    with progress:
        while position < len(todo):
            left = len(todo) - position
            if left >= ranks.size:
                # One part for each rank, equally large, so that none waits for long.
                number = min(args.in_flight, left // ranks.size)
                mine = certified(alone, position + ranks.rank * number, number)
                rows = [row for part in ranks.gather(mine) for row in part]
                position += number * ranks.size
            else:
                number = min(args.in_flight, left)
                rows = ranks.from_first(certified(shared, position, number))
                position += number
            for row in rows:
                if isinstance(row, UsageError):
                    raise row
                if table:
                    table.append(row)
                progress.add(parse_row(row))
    if ranks.first:
        print(f"{args.out}: {len(todo)} images, {progress.certified} certified, seed {seed}")


def _rows(
    args: argparse.Namespace,
    data: Any,
    indices: Sequence[int],
    smooth: Smooth,
    device: str,
    tell: Callable[[int, int], Any],
) -> list[str | UsageError]:
    """The rows of images that follow each other in the run, or why there are none."""
    try:
        items = [load_item(data, idx) for idx in indices]
        shown = f"image {indices[0]}" if len(indices) == 1 else f"images {indices[0]} and following"
        with as_usage_error(f"{shown}: "):
            images = _stack([image.to(device) for image, _ in items])
            result = _certify(args, smooth, images, indices[0], tell)
    except UsageError as error:
        return [error]
    drawn, votes = _drawn(result)
    # 0 where it abstains: the radius of a test is one number for all images.
    radius = torch.where(result.prediction == ABSTAIN, 0.0, result.radius).tolist()
    return [
        line(
            certificate_cells(
                idx,
                label,
                int(result.prediction[b]),
                radius[b],
                float(result.seconds[b]),
                (drawn[b], votes[b]) if _details(args) else (),
            )
        )
        for b, (idx, (_, label)) in enumerate(zip(indices, items, strict=True))
    ]


def _stack(images: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"x: got shapes {shapes}, want one shape for --in-flight")
    return torch.stack(images)


def _certify(
    args: argparse.Namespace,
    smooth: Smooth,
    images: Tensor,
    first: int,
    tell: Callable[[int, int], Any],
) -> Certificates | RadiusTests:
    run = {"image_offset": first, "image_stride": args.skip, "progress": tell}
    if args.at is not None:
        result: Any = smooth.certify_at(
            images, args.at, args.alpha, args.N, args.N0, args.batch, **run
        )
    else:
        result = smooth.certify(
            images,
            args.N0,
            args.N,
            args.alpha,
            args.batch,
            **run,
            early_stop=args.early_stop,
            radius_tolerance=args.radius_tolerance,
        )
    assert isinstance(result, (Certificates, RadiusTests))  # of a batch
    return result


def _drawn(result: Certificates | RadiusTests) -> tuple[list[int], list[int]]:
    """Samples of each image, and how many of them voted for the class that was selected."""
    choice = result.counts0.argmax(1, keepdim=True)
    votes = result.counts.gather(1, choice).squeeze(1)
    samples = getattr(result, "samples", None)
    return (
        [result.n] * len(result) if samples is None else samples.tolist(),
        votes.tolist(),
    )


def count_classes(model: Callable[[Tensor], Tensor], noise: Distribution, image: Tensor) -> int:
    with torch.inference_mode():
        images = image.unsqueeze(0)
        shape = noise.output_shape(noise.views(images)[0].shape[1:])
        logits = model(images if shape == image.shape else images.new_zeros((1, *shape)))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"--model: gave {got} for one image, want logits [1, number of classes]")
    return logits.shape[1]
