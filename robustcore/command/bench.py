"""``robustcore bench``: the benchmark suite, on the user's machine."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from robustcore.common.errors import UsageError

FAMILIES = ("smoothing", "lipschitz", "masking", "density", "influence", "attacks")
# The suite brings no settings of its own from a wheel: these are the repository's that it needs.
SETTINGS = "[pytest]\npython_files = bench_*.py\naddopts = --import-mode=importlib -q\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``robustcore bench``."""
    add = parser.add_argument
    add("--family", choices=FAMILIES, nargs="+", default=["smoothing"], help="(%(default)s)")
    add("--device", choices=["cpu", "cuda"], default=None, help="(cuda if there is one)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)")
    add("--only", metavar="WORDS", help="benchmarks with these words, as for pytest -k")
    add("--report", type=Path, metavar="FILE", help="also write the table, as Markdown")


def suite() -> Path | None:
    """The folder of the benchmarks: in the package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "_suite" / "bench", package.parent / "bench"):
        if (folder / "conftest.py").is_file():
            return folder
    return None


def run(args: argparse.Namespace) -> None:
    """Measures and prints the table of ratios; UsageError if it cannot."""
    folder = suite()
    if folder is None:
        raise UsageError("bench: this installation holds no benchmarks")
    if any(importlib.util.find_spec(name) is None for name in ("pytest", "pytest_benchmark")):
        raise UsageError("bench needs pytest-benchmark: pip install 'robustcore[bench]'")
    if args.threads < 1:
        raise UsageError(f"--threads: got {args.threads}, want at least 1")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "pytest.ini"
        settings.write_text(SETTINGS)
        command = [sys.executable, "-m", "pytest", "-c", str(settings), "-p", "no:cacheprovider"]
        command += ["--rootdir", str(folder), "--confcutdir", str(folder)]
        command += ["--device", device, "--threads", str(args.threads)]
        # The table of ratios is the result; the plug-in's own has no ratios.
        command += ["--benchmark-columns", "median", "--benchmark-quiet"]
        if args.only:
            command += ["-k", args.only]
        if args.report:
            command += ["--report", str(args.report.resolve())]
        command += [str(folder / family) for family in args.family]
        # Not in a checkout: its source folder would hide the robustcore that is installed.
        code = subprocess.run(command, check=False, cwd=scratch).returncode
    if code:
        raise UsageError(f"bench: pytest ended with {code}, see above")
