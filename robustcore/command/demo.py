"""``robustcore demo``: each family on real data, in a few seconds or minutes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType

from robustcore.attacks import demo as attacks
from robustcore.common import demo
from robustcore.common.errors import UsageError
from robustcore.density import demo as density
from robustcore.influence import demo as influence
from robustcore.lipschitz import demo as lipschitz
from robustcore.masking import demo as masking
from robustcore.smoothing import demo as smoothing
from robustcore.smoothing.smooth import Smooth

# One a family: a module with add_arguments(parser), for the options that it alone has, and
# run(args), where that of attacks takes a smoothed classifier too.
DEMOS: dict[str, ModuleType] = {
    "smoothing": smoothing,
    "lipschitz": lipschitz,
    "masking": masking,
    "density": density,
    "influence": influence,
    "attacks": attacks,
}


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Adds ``--family``, what all demos have, and the options of the family named in ``argv``."""
    parser.add_argument(
        "--family",
        choices=sorted(DEMOS),
        default="smoothing",
        help="what to demonstrate (%(default)s); with --help: the options that it alone has",
    )
    demo.add_arguments(parser)
    family = _family(argv)
    DEMOS[family].add_arguments(parser.add_argument_group(f"only with --family {family}"))


def run(args: argparse.Namespace) -> None:
    """Runs the demo of ``args.family``."""
    if args.family == "attacks":  # its picture has a certificate below the attacks
        attacks.run(args, Smooth)
    else:
        DEMOS[args.family].run(args)


def refuse_options_of_others(family: str, rest: Sequence[str]) -> None:
    """UsageError where a word that no option took is an option of another family."""
    for word in rest:
        option = word.partition("=")[0]
        for owner, module in DEMOS.items():
            parser = argparse.ArgumentParser(add_help=False)
            module.add_arguments(parser)
            own = vars(parser.parse_args([]))
            if option.startswith("--") and option[2:].replace("-", "_") in own:
                raise UsageError(f"{option}: an option of --family {owner}, got --family {family}")


def _family(argv: Sequence[str]) -> str:
    """The family that the command line names; its options decide what the others mean."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--family", nargs="?")
    family = first.parse_known_args(argv)[0].family
    return family if family in DEMOS else "smoothing"
