"""``robustcore report``: tables of certificates, ours or published, side by side."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustcore.common.checks import require_probability
from robustcore.common.errors import UsageError
from robustcore.common.plots import require_matplotlib, save
from robustcore.common.table import ABSTAIN, read_certificates
from robustcore.smoothing import plots
from robustcore.smoothing.theory.bounds import accuracy_slack

FloatArray = npt.NDArray[np.float64]
FORMATS = ("text", "markdown", "latex")


@dataclass(frozen=True)
class Table:
    """What a result file says: one entry an image."""

    name: str
    """The noise where the settings or the file tell it, else the file's name."""
    alpha: float
    radius: FloatArray
    """-1 for an image that is wrong or abstains: it is certified to no radius, not even 0."""
    abstained: int

    def accuracy(self, radii: FloatArray) -> FloatArray:
        """Certified accuracy at each radius: right, and certified to at least it."""
        reached = len(self.radius) - np.searchsorted(np.sort(self.radius), radii, side="left")
        return reached / len(self.radius)

    def accuracy_lower(self, radii: FloatArray, rho: float) -> FloatArray:
        """Lower bound of the true certified accuracy, with probability at least ``1 - rho``."""
        lower = self.accuracy(radii) - accuracy_slack(self.alpha, len(self.radius), rho)
        return np.maximum(0.0, lower)

    @property
    def average_radius(self) -> float:
        return float(np.maximum(self.radius, 0.0).mean())


def load(path: Path, alpha: float | None) -> Table:
    """Reads a table, and its settings if they lie beside it; ValueError names file and line."""
    rows = read_certificates(path)
    if not rows:
        raise ValueError(f"{path}: holds no image")
    unlabelled = next((row for row in rows if row.correct is None), None)
    if unlabelled is not None:
        raise ValueError(f"{path}: image {unlabelled.idx} has no label, so there is no accuracy")
    if len({row.idx for row in rows}) < len(rows):
        raise ValueError(f"{path}: holds an image twice")
    settings_path = path.with_name(path.name + ".json")
    settings = json.loads(settings_path.read_text()) if settings_path.exists() else {}
    sigma = settings.get("sigma") or _sigma_in(path)
    name = path.name if sigma is None else f"sigma = {float(sigma):g}"
    return Table(
        name=settings.get("noise", name),
        alpha=float(settings.get("alpha", 0.001)) if alpha is None else alpha,
        radius=np.array([row.radius if row.correct else -1.0 for row in rows]),
        abstained=sum(row.prediction == ABSTAIN for row in rows),
    )


def _sigma_in(path: Path) -> str | None:
    """sigma as published file names have it: ``sigma_0.25``, ``noise_0.25/...``."""
    found = re.findall(r"(?:sigma|noise)[_=]?(\d*\.?\d+)", "/".join(path.parts[-3:]))
    return found[-1] if found else None


def default_radii(tables: Sequence[Table]) -> FloatArray:
    """0 to the largest radius, in steps of a quarter, or what keeps it to a dozen columns."""
    largest = max(float(table.radius.max()) for table in tables)
    step = 0.25
    while largest / step > 12:
        step *= 2
    return np.arange(0, max(largest, 0) + 1e-9, step)


def table_rows(
    tables: Sequence[Table], radii: FloatArray, rho: float
) -> list[tuple[str, list[str]]]:
    """The lines of the report: a title and one cell a radius, then the mean radius."""

    def cells(values: FloatArray) -> list[str]:
        return [f"{value:.3f}" for value in values]

    lines = [(t.name, [*cells(t.accuracy(radii)), f"{t.average_radius:.3f}"]) for t in tables]
    if len(tables) > 1:
        best = np.max([table.accuracy(radii) for table in tables], axis=0)
        lines.append(("best of all", [*cells(best), ""]))
    for t in tables:
        lines.append((f"{t.name}, at least", [*cells(t.accuracy_lower(radii, rho)), ""]))
    if len(tables) > 1:
        # All of the bounds hold together.
        parts = [table.accuracy_lower(radii, rho / len(tables)) for table in tables]
        lines.append(("best of all, at least", [*cells(np.max(parts, axis=0)), ""]))
    return lines


def formatted(tables: Sequence[Table], radii: FloatArray, rho: float, style: str = "text") -> str:
    """The report as text, Markdown or LaTeX."""
    head = ["radius", *(f"{radius:g}" for radius in radii), "mean"]
    body = [[title, *cells] for title, cells in table_rows(tables, radii, rho)]
    if style == "markdown":
        rule = ["---", *["---:"] * (len(head) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])
    if style == "latex":
        lines = [" & ".join(line) + r" \\" for line in [head, *body]]
        columns = "l" + "r" * (len(head) - 1)
        return "\n".join(
            [rf"\begin{{tabular}}{{{columns}}}", lines[0], r"\hline", *lines[1:], r"\end{tabular}"]
        )
    first = max(len(line[0]) for line in [head, *body])
    width = max(7, *(len(cell) + 1 for cell in head[1:]))
    return "\n".join(
        line[0].ljust(first) + "".join(cell.rjust(width) for cell in line[1:]).rstrip()
        for line in [head, *body]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``robustcore report``."""
    add = parser.add_argument
    add("tables", type=Path, nargs="+", metavar="TABLE", help="result files (.tsv)")
    add("--radii", type=float, nargs="+", help="radii of the columns (every quarter)")
    add(
        "--alpha",
        type=float,
        default=None,
        help="what the tables were made with (from their settings, else 0.001)",
    )
    add(
        "--rho",
        type=float,
        default=0.001,
        help="failure probability of the lines 'at least' (%(default)s)",
    )
    add("--format", choices=FORMATS, default="text", help="of the table (%(default)s)")
    add("--plot", type=Path, metavar="FILE", help="also draw the curves (.png, .svg, .pdf)")
    add("--overwrite", action="store_true", help="replace an existing picture")


def run(args: argparse.Namespace) -> None:
    """Prints the table and draws the picture."""
    try:
        rho = require_probability("--rho", args.rho)
        alpha = None if args.alpha is None else require_probability("--alpha", args.alpha)
        tables = [load(path, alpha) for path in args.tables]
        radii = default_radii(tables) if args.radii is None else np.array(args.radii)
        if not (np.isfinite(radii).all() and (radii >= 0).all()):
            raise ValueError(f"--radii: got {args.radii}, want numbers of at least 0")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    print(formatted(tables, radii, rho, args.format))
    if args.format == "text":
        for table in tables:
            print(
                f"{table.name}: {len(table.radius)} images, {table.abstained} abstained, "
                f"alpha = {table.alpha:g}"
            )
        print(f"at least: with probability {1 - rho:g} over the noise, for each line by itself")
    if args.plot is not None:
        _draw(tables, args.plot, args.overwrite)


def _draw(tables: Sequence[Table], path: Path, overwrite: bool) -> None:
    try:
        require_matplotlib()
    except ImportError as error:
        raise UsageError(str(error)) from error
    farthest = max(float(table.radius.max()) for table in tables)
    radii = np.linspace(0, 1.03 * max(farthest, 0.1), 1001)
    curves = [(table.name, table.accuracy(radii)) for table in tables]
    try:
        save(plots.envelope_figure(radii, curves), path, overwrite)
    except ValueError as error:  # a suffix that matplotlib does not know
        raise UsageError(f"--plot {path}: {error}") from error
    print(f"wrote {path}")
