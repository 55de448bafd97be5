"""The ``robustcore`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from robustcore._build import __version__
from robustcore.command import attack, bench, certify, demo, doctor, report
from robustcore.common.errors import UsageError


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands; ``args.run(args)`` executes the one that was given.

    ``argv`` is what it will parse: the options of the demo depend on the family.
    """
    parser = argparse.ArgumentParser(
        prog="robustcore", description="Certified and robust machine learning for PyTorch models."
    )
    parser.add_argument("--version", action="version", version=f"robustcore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "demo", help="train and certify a small network on real data, with a table and a picture"
    )
    demo.add_arguments(command, argv)
    command.set_defaults(run=demo.run)
    for name, module, text in (
        ("certify", certify, "certify your own model on your own data by randomized smoothing"),
        ("attack", attack, "attack your own model on your own data, smoothed or not"),
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
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(argv)
    args, rest = parser.parse_known_args(argv)
    try:
        if rest and args.run is demo.run:
            demo.refuse_options_of_others(args.family, rest)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells report for it
    except (UsageError, OSError) as error:
        print(f"robustcore: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustcore: interrupted", file=sys.stderr)
        return 130  # what shells report for an interrupt
    return 0
