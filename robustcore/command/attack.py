"""``robustcore attack``: a user's model attacked on a user's data, one row an image, resumable.

Under torchrun the images are shared between the ranks; rank 0 writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from robustcore.attacks import APGD, APGDT, FAB, FGSM, PGD, AutoAttack, Square
from robustcore.attacks.attack import Attack
from robustcore.attacks.rows import ATTACKED, AttackedRow, Fooled, rows
from robustcore.common import image_run
from robustcore.common.checks import require_positive
from robustcore.common.errors import UsageError
from robustcore.common.image_run import Setup
from robustcore.common.user_code import as_usage_error, load_item
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.sampler import count_classes
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.theory.distributions import Distribution, Gaussian

# The budget of each is --steps.
ATTACKS: dict[str, tuple[type[Attack], str | None]] = {
    "auto": (AutoAttack, None),
    "pgd": (PGD, "steps"),
    "fgsm": (FGSM, None),
    "apgd": (APGD, "steps"),
    "apgdt": (APGDT, "steps"),
    "fab": (FAB, "steps"),
    "square": (Square, "queries"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``robustcore attack``."""
    _add_model(parser.add_argument_group("the model and what it receives"))
    images = parser.add_argument_group("the images")
    image_run.add_images(images)
    images.add_argument(
        "--in-flight",
        type=int,
        default=250,
        help="images attacked together by each process, and written together (%(default)s)",
    )
    _add_attack(parser.add_argument_group("the attack"))
    image_run.add_run(parser.add_argument_group("the table and the run"))


def _add_model(group: argparse._ArgumentGroup) -> None:
    image_run.add_model(group, "classifier, or with --sigma or --noise the base classifier")
    add = group.add_argument
    add("--mean", type=float, nargs="+", help="one value or one a channel, taken off")
    add("--std", type=float, nargs="+", help="one value or one a channel, divided by")
    add("--batch", type=int, default=250, help="images in one call of the model (%(default)s)")
    noise = group.add_mutually_exclusive_group()
    noise.add_argument("--sigma", type=float, help="attack the classifier smoothed by this level")
    noise.add_argument("--noise", metavar="NAME(...)", help="the same, by another distribution")
    add("--N", type=int, default=1000, help="samples of a smoothed prediction (%(default)s)")
    add("--alpha", type=float, default=0.001, help="of a smoothed prediction (%(default)s)")
    add("--grid", type=int, default=None, help="levels of a pixel that images stay on, 255 say")


def _add_attack(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--attack", choices=sorted(ATTACKS), default="auto", help="which one (%(default)s)")
    add("--norm", default="Linf", help="Linf, L2, L1 (%(default)s)")
    add("--eps", required=True, help="radius in pixel units, a number or a fraction: 8/255")
    add("--steps", type=int, help="of each run, queries of square (the attack's default)")
    add("--loss", choices=("ce", "margin", "dlr"), help="what is raised (the attack's default)")
    add("--eot", type=int, default=1, help="passes that a gradient averages; noisy copies")
    add("--version", default="standard", help="of --attack auto: standard, plus, rand")
    add("--seed", type=int, default=None, help="of the attack (from the operating system)")


def run(args: argparse.Namespace) -> None:
    """Attacks the images asked for; UsageError for bad input of the user's."""
    image_run.check_images(args)
    if args.in_flight < 1:
        raise UsageError(f"--in-flight: got {args.in_flight}, want at least 1")
    image_run.run(args, _Search(args))


def _eps(text: str) -> float:
    above, _, below = text.replace(" ", "").partition("/")
    try:
        return float(Fraction(above) / Fraction(below or 1))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--eps: got {text!r}, want a number or a fraction, 8/255 say") from None


class _Search(image_run.Question[AttackedRow]):
    """An adversarial image for every image, as the options have it."""

    form, asked = ATTACKED, "attack"

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self.in_flight, self._eps = args, args.in_flight, _eps(args.eps)
        self._noise: Distribution | None = None
        with as_usage_error("--"):
            if args.noise is not None:
                self._noise = parse_noise(args.noise)
            elif args.sigma is not None:
                self._noise = Gaussian(require_positive("sigma", args.sigma))
            self._attack = self._of(lambda x: x, 0)  # complains of the options

    def _of(self, model: Any, seed: int) -> Attack:
        args = self._args
        kind, budget = ATTACKS[args.attack]
        options: dict[str, Any] = {
            "norm": args.norm, "seed": seed, "batch_size": args.batch, "grid": args.grid,
        }  # fmt: skip
        smoothed = self._noise is not None
        if not smoothed:
            options |= {"mean": args.mean, "std": args.std}
        else:
            options["predict"] = {"n": args.N, "alpha": args.alpha, "batch_size": args.batch}
        if args.steps is not None:
            if budget is None:
                raise UsageError(f"--steps: --attack {args.attack} has a budget of its own")
            options[budget] = args.steps
        if args.loss is not None:
            if kind in (AutoAttack, APGDT, FAB):
                raise UsageError(f"--loss: --attack {args.attack} has a loss of its own")
            options["loss"] = args.loss
        if kind is AutoAttack:
            options["version"] = args.version
        else:
            options["eot"] = args.eot
        return kind(model, eps=self._eps, **options)

    def settings(self) -> dict[str, Any]:
        args = self._args
        smoothed = {} if self._noise is None else {"N": args.N, "alpha": args.alpha}
        return {
            "attack": args.attack,
            "norm": self._attack.norm,
            "eps": self._eps,
            "steps": args.steps,
            "loss": args.loss,
            "eot": args.eot,
            "version": args.version,
            "grid": args.grid,
            "sigma": args.sigma,
            **({} if args.noise is None else {"noise": repr(self._noise)}),
            **smoothed,
            "mean": args.mean,
            "std": args.std,
        }

    def prepare(self, setup: Setup, device: str, first: int, seed: int) -> None:
        self._data, self._device = setup.data, device
        with as_usage_error():
            model: Any = setup.model
            if self._noise is not None:
                image = load_item(setup.data, first)[0].to(device).unsqueeze(0)
                classes = count_classes(model, self._noise, image, image.dtype)
                model = Smooth(
                    model, classes, noise=self._noise, seed=seed, mean=self._args.mean,
                    std=self._args.std,
                )  # fmt: skip
            self._attack = self._of(model, seed)

    def rows(
        self, indices: Sequence[int], shared: bool, tell: Callable[[int, int], Any]
    ) -> list[str | UsageError]:
        return rows(self._attack, self._data, indices, self._args.skip, self._device)

    def count(self, total: int, done: Sequence[AttackedRow], *, hidden: bool) -> Fooled:
        return Fooled(total, done, hidden=hidden)
