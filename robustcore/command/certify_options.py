"""The options of ``robustcore certify``."""

from __future__ import annotations

import argparse

import torch

from robustcore.common import image_run

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
    image_run.add_model(group, "base classifier")
    add = group.add_argument
    add("--num-classes", type=int, default=None, help="columns of the logits (found by one call)")
    taken_off = "one value or one a channel, {} after the noise"
    add("--mean", type=float, nargs="+", help=taken_off.format("taken off"))
    add("--std", type=float, nargs="+", help=taken_off.format("divided by"))
    add("--batch", type=int, default=1000, help="images in one call of the model (%(default)s)")
    add("--dtype", choices=sorted(DTYPES), default=None, help="of what the model receives")
    add(
        "--output",
        default="logits",
        metavar="WHERE",
        help="where the logits are in what the model returns: 'logits' (that itself, what it calls "
        "so, or the only tensor that can be them), 'binary' (one logit a row, of two classes), or "
        "PKG.MODULE:FUNCTION, which picks them (%(default)s)",
    )
    add("--no-cuda-graph", action="store_true", help="on a GPU: launch every kernel by itself")
    add("--channels-last", action="store_true", help="memory format of what the model receives")


def _add_images(group: argparse._ArgumentGroup) -> None:
    image_run.add_images(group)
    add = group.add_argument
    add(
        "--input-dims",
        type=int,
        default=3,
        help="dimensions of one input: 1 for vectors, 2 for signals, 4 for volumes (%(default)s)",
    )
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
    add(
        "--grid",
        default="auto",
        metavar="auto|none|Q",
        help="images are multiples of 1/Q and the noise is too, so that certificates hold in "
        "floating point; auto: 255 or 65535 where the first images are; none: real numbers "
        "(%(default)s)",
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
    image_run.add_run(group)
    group.add_argument(
        "--details", action="store_true", help="also write the columns samples and votes"
    )
