"""Figures of matplotlib, which is optional and imported when the first is drawn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from robustcore.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. ImportError says how to get matplotlib."""
    require_matplotlib()
    # A figure of its own, without pyplot, leaves the caller's backend and open figures alone.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def require_matplotlib() -> None:
    """ImportError that says how to get matplotlib, where there is none."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'robustcore[demo]' (or matplotlib)"
        ) from error


def restrain(axes: Any) -> None:
    """A light grid, and no frame where no axis is."""
    axes.grid(alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write a figure, whole or not at all; the suffix chooses the format."""
    with replacing(path, overwrite) as temporary:
        if not temporary.suffix:
            raise ValueError(f"path: got {path}, want a suffix that says the format, .png or .svg")
        try:
            figure.savefig(temporary, dpi=150)
        except ValueError as error:  # a suffix that it does not know
            raise ValueError(f"path: got {path}: {error}") from error
