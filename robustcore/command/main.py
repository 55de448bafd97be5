"""The ``robustcore`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from robustcore._build import __version__
from robustcore.command import bench, certify, doctor, report
from robustcore.common.errors import UsageError
from robustcore.density import demo as density_demo
from robustcore.lipschitz import demo as lipschitz_demo
from robustcore.masking import demo as masking_demo
from robustcore.smoothing import demo as smoothing_demo

# One demo a family: a module with add_arguments(parser) and run(args). All options are on one
# parser; one that belongs to a family alone is refused with another --family.
DEMOS: dict[str, ModuleType] = {
    "smoothing": smoothing_demo,
    "lipschitz": lipschitz_demo,
    "masking": masking_demo,
    "density": density_demo,
}
SHARED_DEMO_OPTIONS = {"fast", "out", "seed", "device", "overwrite"}


class _Noted(argparse.Action):
    """Stores a value as usual, and notes in ``args.given`` that the option was there."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {**namespace.given, self.dest: option_string}


def add_demo_arguments(command: argparse.ArgumentParser) -> None:
    """Adds ``--family`` and the options of every family's demo."""
    command.set_defaults(given={})
    command.register("action", None, _Noted)  # what add_argument takes when it is told no action
    command.add_argument(
        "--family",
        choices=sorted(DEMOS),
        default="smoothing",
        help="what to demonstrate (%(default)s)",
    )
    for module in DEMOS.values():
        module.add_arguments(command)


def run_demo(args: argparse.Namespace) -> None:
    """Runs the demo of ``args.family``, unless an option that was given belongs to another."""
    for family, module in DEMOS.items():
        options = argparse.ArgumentParser()
        module.add_arguments(options)
        own = vars(options.parse_args([])).keys() - SHARED_DEMO_OPTIONS
        for name in sorted(own & args.given.keys()):
            if family != args.family:
                raise UsageError(
                    f"{args.given[name]}: an option of --family {family}, got --family "
                    f"{args.family}",
                )
    DEMOS[args.family].run(args)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``args.run(args)`` executes the one that was given."""
    parser = argparse.ArgumentParser(
        prog="robustcore", description="Certified and robust machine learning for PyTorch models."
    )
    parser.add_argument("--version", action="version", version=f"robustcore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "demo",
        help="train and certify a small network on real data, with a table and a picture",
    )
    add_demo_arguments(command)
    command.set_defaults(run=run_demo)

    command = commands.add_parser(
        "certify",
        help="certify your own model on your own data by randomized smoothing",
    )
    certify.add_arguments(command)
    command.set_defaults(run=certify.run)

    for name, module, text in (
        ("report", report, "compare tables of certificates, ours or published"),
        ("bench", bench, "run the benchmarks on this machine"),
        ("doctor", doctor, "show the build, the devices, and what is missing"),
    ):
        command = commands.add_parser(name, help=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did, 2 after one line on stderr if its input was bad."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (UsageError, OSError) as error:
        print(f"robustcore: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustcore: interrupted", file=sys.stderr)
        return 130  # what shells report for an interrupt
    return 0
