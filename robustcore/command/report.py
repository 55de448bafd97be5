"""``robustcore report``: tables of certificates side by side, or one beside an attack."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustcore.command import sandwich
from robustcore.common.checks import require_probability
from robustcore.common.errors import UsageError
from robustcore.common.plots import require_matplotlib, save
from robustcore.common.table import ABSTAIN, read_certificates, settings_path
from robustcore.smoothing import plots
from robustcore.smoothing.noise_names import parse_noise
from robustcore.smoothing.theory.bounds import accuracy_slack

FloatArray = npt.NDArray[np.float64]
FORMATS = ("text", "markdown", "latex", "csv", "json")


@dataclass(frozen=True)
class Table:
    """What a result file says: one entry an image."""

    name: str
    """The noise where the settings or the file tell it, else the file's name."""
    path: Path
    norm: str
    alpha: float
    """0 where the certificates are certain."""
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
    """Reads a table, and its settings if they lie beside it; ValueError names file and line.

    ``alpha`` is of a table that does not say.
    """
    rows = read_certificates(path)
    if not rows:
        raise ValueError(f"{path}: holds no image")
    unlabelled = next((row for row in rows if row.correct is None), None)
    if unlabelled is not None:
        raise ValueError(f"{path}: image {unlabelled.idx} has no label, so there is no accuracy")
    if len({row.idx for row in rows}) < len(rows):
        raise ValueError(f"{path}: holds an image twice")
    try:
        name, norm, recorded = _made_with(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{settings_path(path)}: {error}") from error
    if recorded is None:
        recorded = alpha
    if recorded is None:
        raise ValueError(
            f"{path}: does not say with which alpha it was made; give --alpha (0 if it is certain)"
        )
    return Table(
        name=name,
        path=path,
        norm=norm,
        alpha=recorded,
        radius=np.array([row.radius if row.correct else -1.0 for row in rows]),
        abstained=sum(row.prediction == ABSTAIN for row in rows),
    )


def _made_with(path: Path) -> tuple[str, str, float | None]:
    """Name, norm and alpha of a table, as its settings have them; tables without say less."""
    beside = settings_path(path)
    settings = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    alpha = settings.get("alpha")
    if alpha is not None and alpha != 0:
        alpha = require_probability("alpha", alpha)
    if settings.get("noise") is not None:
        noise = parse_noise(settings["noise"])
        # Whatever alpha the run was given, these certificates do without.
        return settings["noise"], noise.norm, 0.0 if noise.deterministic else alpha
    sigma = settings.get("sigma")
    sigma = _sigma_in(path) if sigma is None else sigma
    return (path.name if sigma is None else f"sigma = {float(sigma):g}"), "l2", alpha


def _sigma_in(path: Path) -> str | None:
    """sigma as published file names have it: ``sigma_0.25``, ``noise_0.25/...``."""
    names = "/".join(path.parts[-3:])
    found = re.findall(r"(?<![A-Za-z])(?:sigma|noise)[_=]?(\d*\.\d+)(?!\d|\.\d)", names)
    return found[-1] if found else None


def load_all(paths: Sequence[Path], alpha: float | None) -> list[Table]:
    """The tables, each with a name of its own: where two would have one, the path tells them."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"tables: got one of {', '.join(map(str, paths))} twice")
    tables = [load(path, alpha) for path in paths]
    for name, number in Counter(table.name for table in tables).items():
        if number > 1:
            alike = [i for i, table in enumerate(tables) if table.name == name]
            for i, ending in zip(alike, _endings([paths[i] for i in alike]), strict=True):
                own = ending if name == paths[i].name else f"{name} ({ending})"
                tables[i] = replace(tables[i], name=own)
    return tables


def _endings(paths: Sequence[Path]) -> list[str]:
    """As much of the ends of different paths as makes them different."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        ends = ["/".join(parts[-length:]) for parts in whole]
        if len(set(ends)) == len(ends):
            break
    return ends


def default_radii(tables: Sequence[Table]) -> FloatArray:
    """0 to the largest radius, in steps of a quarter, or what keeps it to a dozen columns."""
    largest = max(float(table.radius.max()) for table in tables)
    step = 0.25
    while largest / step > 12:
        step *= 2
    return np.arange(0, max(largest, 0) + 1e-9, step)


def table_rows(
    tables: Sequence[Table], radii: FloatArray, rho: float
) -> list[tuple[str, list[float | None]]]:
    """The lines of the report: a title and one cell a radius, the mean radius, abstentions."""

    def whole(t: Table) -> list[float | None]:
        return [*t.accuracy(radii), t.average_radius, t.abstained / len(t.radius)]

    def part(accuracy: FloatArray) -> list[float | None]:
        return [*accuracy, None, None]

    lines = [(t.name, whole(t)) for t in tables]
    best = [envelope(tables, norm, radii, rho) for norm in shared_norms(tables)]
    lines += [(name, part(accuracy)) for name, accuracy, _ in best]
    lines += [(f"{t.name}, at least", part(t.accuracy_lower(radii, rho))) for t in tables]
    lines += [(f"{name}, at least", part(lower)) for name, _, lower in best]
    return lines


def shared_norms(tables: Sequence[Table]) -> list[str]:
    """The norms of more than one table: radii of different norms have no best."""
    return [norm for norm, number in Counter(t.norm for t in tables).items() if number > 1]


def envelope(
    tables: Sequence[Table], norm: str, radii: FloatArray, rho: float
) -> tuple[str, FloatArray, FloatArray]:
    """The best of the tables of a norm at each radius, and a lower bound of the true best."""
    group = [table for table in tables if table.norm == norm]
    accuracy = np.max([table.accuracy(radii) for table in group], axis=0)
    # All of the bounds hold together.
    lower = np.max([table.accuracy_lower(radii, rho / len(group)) for table in group], axis=0)
    return ("best of all" if len(group) == len(tables) else f"best in {norm}"), accuracy, lower


def formatted(tables: Sequence[Table], radii: FloatArray, rho: float, style: str = "text") -> str:
    """The report as text, Markdown, LaTeX, CSV or JSON."""
    if style == "json":
        return json.dumps(_as_json(tables, radii, rho), indent=2)
    head = ["radius", *(f"{radius:g}" for radius in radii), "mean", "abstained"]
    lines = table_rows(tables, radii, rho)
    if style == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *([t, *c] for t, c in lines)])
        return text.getvalue().rstrip("\n")
    body = [[title, *("" if c is None else f"{c:.3f}" for c in cells)] for title, cells in lines]
    if style == "markdown":
        rule = ["---", *["---:"] * (len(head) - 1)]
        rows = [head, rule, *([row[0].replace("|", r"\|"), *row[1:]] for row in body)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    if style == "latex":
        first, *rest = (" & ".join([_latex(row[0]), *row[1:]]) + r" \\" for row in [head, *body])
        begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
        return "\n".join([begin, first, r"\hline", *rest, r"\end{tabular}"])
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(
            cell.rjust(max(7, width + 1)) for cell, width in zip(row[1:], widths[1:], strict=True)
        ).rstrip()
        for row in [head, *body]
    )


def _as_json(tables: Sequence[Table], radii: FloatArray, rho: float) -> dict[str, Any]:
    best = [envelope(tables, norm, radii, rho) for norm in shared_norms(tables)]
    return {
        "radii": radii.tolist(),
        "rho": rho,
        "tables": [
            {
                "name": t.name,
                "path": str(t.path),
                "norm": t.norm,
                "alpha": t.alpha,
                "images": len(t.radius),
                "abstained": t.abstained,
                "average_radius": t.average_radius,
                "certified_accuracy": t.accuracy(radii).tolist(),
                "at_least": t.accuracy_lower(radii, rho).tolist(),
            }
            for t in tables
        ],
        "best": [
            {"name": name, "certified_accuracy": accuracy.tolist(), "at_least": lower.tolist()}
            for name, accuracy, lower in best
        ],
    }


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``robustcore report``."""
    add = parser.add_argument
    add(
        "tables",
        type=Path,
        nargs="+",
        metavar="TABLE",
        help="result files of certify (.tsv), or one of certify and one of attack",
    )
    add("--radii", type=float, nargs="+", help="radii of the columns (every quarter)")
    add(
        "--alpha",
        type=float,
        default=None,
        help="what tables were made with that do not say (0: their radii are certain)",
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
    if any(map(sandwich.is_attacked, args.tables)):
        sandwich.report(args.tables, args.radii, args.plot, args.overwrite)
        return
    try:
        rho = require_probability("--rho", args.rho)
        alpha = args.alpha
        if alpha:
            alpha = require_probability("--alpha", alpha)
        tables = load_all(args.tables, alpha)
        radii = default_radii(tables) if args.radii is None else np.array(args.radii)
        if not (np.isfinite(radii).all() and (radii >= 0).all()):
            raise ValueError(f"--radii: got {args.radii}, want numbers of at least 0")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    print(formatted(tables, radii, rho, args.format))
    if args.format == "text":
        for table in tables:
            sure = f"alpha = {table.alpha:g}" if table.alpha else "certain"
            print(
                f"{table.name}: {len(table.radius)} images, {table.abstained} abstained, "
                f"{sure}, radii in {table.norm}"
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
    norms = {table.norm for table in tables}
    norm = norms.pop() if len(norms) == 1 else None
    try:
        save(plots.envelope_figure(radii, curves, norm), path, overwrite)
    except ValueError as error:  # a suffix that matplotlib does not know
        raise UsageError(f"--plot {path}: {error}") from error
    print(f"wrote {path}", file=sys.stderr)  # stdout may be read by a program
