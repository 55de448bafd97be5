"""``robustcore report certified.tsv attacked.tsv``: robust accuracy from below and from above."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustcore.attacks.plots import sandwich_figure
from robustcore.attacks.rows import ATTACKED, AttackedRow
from robustcore.common.errors import UsageError
from robustcore.common.plots import require_matplotlib, save
from robustcore.common.table import CERTIFIED, Row
from robustcore.smoothing.noise_names import parse_noise

FloatArray = npt.NDArray[np.float64]

# What the settings of both tables have to agree in: the classifier and its images.
SAME = ("model_sha256", "mean", "std", "data", "sigma", "noise")


def is_attacked(path: Path) -> bool:
    """Whether this is a table of an attack."""
    with path.open("rb") as file:  # what is no text is no table of an attack
        return file.readline() == ATTACKED.header().encode()


@dataclass(frozen=True)
class Sandwich:
    """Both bounds of one classifier's robust accuracy, on the same images."""

    norm: str
    radius: FloatArray
    """Certified; -1 for an image that is wrong or abstains."""
    distance: FloatArray
    """Of the adversarial image, infinite where none was found."""
    eps: float

    def certified(self, radii: FloatArray) -> FloatArray:
        """Robust accuracy is at least this."""
        return np.asarray((self.radius >= radii[:, None]).mean(1))

    def attacked(self, radii: FloatArray) -> FloatArray:
        """Robust accuracy is at most this."""
        return np.asarray((self.distance > radii[:, None]).mean(1))

    def text(self, radii: FloatArray) -> str:
        """The bounds as lines."""
        lines = [
            ("radius", [f"{radius:g}" for radius in radii]),
            ("certified, at least", [f"{v:.3f}" for v in self.certified(radii)]),
            ("attacked, at most", [f"{v:.3f}" for v in self.attacked(radii)]),
        ]
        width = max(7, *(len(cell) + 1 for _, cells in lines for cell in cells))
        return "\n".join(f"{t:<20}" + "".join(c.rjust(width) for c in cells) for t, cells in lines)


def load(certified: Path, attacked: Path) -> Sandwich:
    """Reads both tables; ValueError unless they are of one classifier, its images and a norm."""
    below, above = _settings(certified), _settings(attacked)
    for name in SAME:
        if below.get(name) != above.get(name):
            raise ValueError(
                f"{attacked}: was made with {name} = {above.get(name)}, {certified} with "
                f"{below.get(name)}; want both of one classifier and one data set"
            )
    norm = _norm(below)
    if norm != above.get("norm"):
        raise ValueError(
            f"{attacked}: is an attack in {above.get('norm')}, {certified} is certified in {norm}"
        )
    rows: list[Row] = CERTIFIED.read(certified)
    found: list[AttackedRow] = ATTACKED.read(attacked)
    if [(r.idx, r.label) for r in rows] != [(r.idx, r.label) for r in found]:
        raise ValueError(f"{attacked}: has other images than {certified}, or in another order")
    if not rows:
        raise ValueError(f"{certified}: holds no image")
    return Sandwich(
        norm,
        np.array([row.radius if row.correct else -1.0 for row in rows]),
        np.array([row.distance if row.success else np.inf for row in found]),
        float(above["eps"]),
    )


def _settings(path: Path) -> dict[str, Any]:
    beside = path.with_name(path.name + ".json")
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{path}: has no settings beside it in {beside.name}, which say whose table it is"
        ) from None
    if not isinstance(settings, dict) or "model_sha256" not in settings:
        raise ValueError(f"{beside}: does not say which model the table is of")
    return settings


def _norm(settings: dict[str, Any]) -> str:
    """Of the certificates."""
    return "l2" if settings.get("noise") is None else parse_noise(str(settings["noise"])).norm


def report(
    paths: Sequence[Path], radii: Sequence[float] | None, plot: Path | None, overwrite: bool
) -> None:
    """Prints both bounds and draws them; UsageError for tables that do not go together."""
    kinds = [is_attacked(path) for path in paths]
    if len(paths) != 2 or sum(kinds) != 1:
        raise UsageError(
            "tables: want one table of certificates and one of an attack, got "
            + ", ".join(
                f"{path} ({'attack' if k else 'certificates'})"
                for path, k in zip(paths, kinds, strict=True)
            )
        )
    certified, attacked = sorted(paths, key=is_attacked)
    try:
        both = load(certified, attacked)
        shown = _radii(both, radii)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(both.text(shown))
    print(f"{len(both.radius)} images, {both.norm}, attacked within {both.eps:g}")
    crossed = int((both.radius >= both.distance).sum())
    if crossed:
        print(
            f"{crossed} images have an adversarial one inside their certificate: more than the "
            "failure probability of a certificate explains is a sign of an error"
        )
    if plot is not None:
        _draw(both, plot, overwrite)


def _radii(both: Sandwich, radii: Sequence[float] | None) -> FloatArray:
    if radii is None:
        return np.unique(np.append(np.linspace(0, max(both.radius.max(), both.eps), 6), both.eps))
    wanted = np.array(radii)
    if not (np.isfinite(wanted).all() and (wanted >= 0).all()):
        raise ValueError(f"--radii: got {radii}, want numbers of at least 0")
    return wanted


def _draw(both: Sandwich, path: Path, overwrite: bool) -> None:
    try:
        require_matplotlib()
        radii = np.linspace(0, 1.03 * max(both.radius.max(), both.eps), 1001)
        figure = sandwich_figure(
            radii, both.certified(radii), both.attacked(radii), both.norm, both.eps
        )
        save(figure, path, overwrite)
    except (ImportError, ValueError) as error:
        raise UsageError(f"--plot {path}: {error}") from error
    print(f"wrote {path}")
