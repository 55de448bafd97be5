"""Pictures of certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustcore import ops
from robustcore.common.plots import new_figure, restrain
from robustcore.common.table import ABSTAIN
from robustcore.smoothing.theory.bounds import clopper_pearson_lower
from robustcore.smoothing.theory.distributions import Distribution, Gaussian

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustcore.smoothing.certificates import Certificates

    Curve = tuple[Certificates, Tensor | None]


_AXES = {
    "l1": r"$\ell_1$ radius (pixels in [0, 1])",
    "l2": r"$\ell_2$ radius (pixels in [0, 1])",
    "linf": r"$\ell_\infty$ radius (pixels in [0, 1])",
    "l0": "pixels changed",
    "patch": "side of a patch (pixels)",
}


def _noise(certificates: Certificates) -> Distribution:
    return certificates.noise or Gaussian(certificates.sigma)


def _label(certificates: Certificates) -> str:
    noise = _noise(certificates)
    return rf"$\sigma$ = {noise.sigma:g}" if isinstance(noise, Gaussian) else str(noise)


def _largest_radius(certificates: Certificates) -> float:
    """Where all n samples agree: no more can be certified from n samples."""
    noise, n = _noise(certificates), certificates.n
    if noise.deterministic:
        return max(float(noise.radius_of_votes(torch.tensor([n // 2]), certificates.shape)), 1e-9)
    views = len(noise.views(torch.empty(1, 1, 1, 2)))
    bound = clopper_pearson_lower(n, n, certificates.alpha / views)
    bounds = torch.full((1, views) if views > 1 else (1,), bound, dtype=torch.float64)
    return max(float(noise.radius(bounds, certificates.shape)), 1e-9)


def draw_accuracy(axes: Any, curves: Sequence[Curve], names: Sequence[str] = ()) -> None:
    """Certified accuracy against radius, one line for each of the certificates and its labels."""
    farthest = 0.0
    for i, (certificates, labels) in enumerate(curves):
        if len(certificates) == 0:
            raise ValueError("certificates: got none, want at least one image to draw")
        limit = _largest_radius(certificates)
        radii = torch.linspace(0, limit, 1001, dtype=torch.float64)
        if labels is None:
            reached = certificates.radius >= radii.unsqueeze(-1)
            height = (reached & (certificates.prediction != ABSTAIN)).double().mean(-1)
        else:
            height = certificates.certified_accuracy(labels, radii)
        color = f"C{i}"
        x, y = radii.numpy(), height.numpy()
        axes.plot(x, y, color=color, lw=2, label=(names[i] if names else "") + _label(certificates))
        axes.fill_between(x, y, color=color, alpha=0.12, lw=0)
        axes.axvline(limit, color=color, lw=1, ls=":")
        farthest = max(farthest, limit)
    n, alpha = curves[0][0].n, curves[0][0].alpha
    known = all(labels is not None for _, labels in curves)
    axes.set(
        xlim=(0, 1.03 * farthest),
        ylim=(0, 1.02),
        xlabel=_AXES[_noise(curves[0][0]).norm],
        ylabel="certified accuracy" if known else "part certified",
        title=f"n = {n:,} samples an image, alpha = {alpha:g}",
    )
    axes.title.set_size("medium")
    restrain(axes)
    axes.legend(frameon=False, title="dotted: all samples agree", title_fontsize="small")


def accuracy_figure(curves: Sequence[Curve]) -> Figure:
    """A figure of :func:`draw_accuracy` alone."""
    figure = new_figure(6, 4)
    draw_accuracy(figure.subplots(), curves)
    return figure


def envelope_figure(
    radii: Any, curves: Sequence[tuple[str, Any]], norm: str | None = "l2"
) -> Figure:
    """Certified accuracy of several tables against radius, and the best of them at each radius.

    ``norm`` None: radii of several norms, of which there is no best.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    if len(curves) > 1 and norm is not None:
        best = np.max([height for _, height in curves], axis=0)
        axes.plot(radii, best, color="0.8", lw=5, label="best of all")
    for name, height in curves:
        axes.plot(radii, height, lw=1.5, label=_mathtext(name))
    axes.set(
        xlim=(0, radii[-1]),
        ylim=(0, 1.02),
        xlabel="radius, each in its norm" if norm is None else _AXES[norm],
        ylabel="certified accuracy",
    )
    restrain(axes)
    axes.legend(frameon=False)
    return figure


def _mathtext(name: str) -> str:
    """A name as matplotlib shall show it."""
    return name.replace("$", r"\$").replace("sigma = ", r"$\sigma$ = ")


def demo_figure(
    runs: Sequence[Certificates], images: Tensor, labels: Tensor, names: Sequence[str] = ()
) -> Figure:
    """The demo's picture: the curves, and eight images from the least to the most robust.

    The images ``[B, 1, H, W]`` carry the certificates of the first of ``runs``, and are shown clean
    and as the base classifier saw one of its samples.
    """
    figure = new_figure(8, 6.5)
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2), squeeze=False).flat
    draw_accuracy(top.subplots(), [(run, labels) for run in runs], names)
    first = runs[0]
    chosen = first.radius.argsort()[torch.linspace(0, len(first) - 1, 8).long()]
    assert first.seed is not None  # of one run
    noisy = ops.gaussian_noise(
        images[chosen], 1, first.sigma, seed=first.seed, sample_offset=first.n0
    )
    rows = bottom.subplots(2, len(chosen))
    for column, (i, sample) in enumerate(zip(chosen.tolist(), noisy[:, 0], strict=True)):
        prediction = int(first.prediction[i])
        verdict = (
            "abstains" if prediction == ABSTAIN else f"{prediction} within {first.radius[i]:.2f}"
        )
        for axes, image in zip(rows[:, column], (images[i], sample), strict=True):
            axes.imshow(image[0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        color = "tab:green" if prediction == int(labels[i]) else "tab:red"
        rows[0, column].set_title(verdict, fontsize="small", color=color)
    rows[0, 0].set_ylabel("image", fontsize="small")
    rows[1, 0].set_ylabel(rf"noisy, $\sigma$ = {first.sigma:g}", fontsize="small")
    return figure
