"""The ``robustcore`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from robustcore import bench, doctor
from robustcore._build import __version__
from robustcore.density import demo as density_demo
from robustcore.lipschitz import demo as lipschitz_demo
from robustcore.masking import demo as masking_demo
from robustcore.smoothing import certify_cli, report
from robustcore.smoothing import demo as smoothing_demo

# One demo a family: a module with add_arguments(parser) and run(args).
DEMOS = {
    "smoothing": smoothing_demo,
    "lipschitz": lipschitz_demo,
    "masking": masking_demo,
    "density": density_demo,
}


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
    command.add_argument(
        "--family",
        choices=sorted(DEMOS),
        default="smoothing",
        help="what to demonstrate (%(default)s)",
    )
    for module in DEMOS.values():
        module.add_arguments(command)
    command.set_defaults(run=lambda args: DEMOS[args.family].run(args))

    command = commands.add_parser(
        "certify",
        help="certify your own model on your own data by randomized smoothing",
    )
    certify_cli.add_arguments(command)
    command.set_defaults(run=certify_cli.run)

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
    except (argparse.ArgumentError, OSError) as error:
        print(f"robustcore: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustcore: interrupted", file=sys.stderr)
        return 130  # what shells report for an interrupt
    return 0
