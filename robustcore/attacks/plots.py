"""Pictures of attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from robustcore.common.plots import new_figure, restrain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "l1": r"$\ell_1$ radius (pixels in [0, 1])",
    "l2": r"$\ell_2$ radius (pixels in [0, 1])",
    "linf": r"$\ell_\infty$ radius (pixels in [0, 1])",
    "l0": "pixels changed",
}


def draw_sandwich(
    axes: Any, radii: Any, certified: Any, attacked: Any, norm: str, eps: float
) -> None:
    """Robust accuracy lies between the two lines; the attack looked no further than eps."""
    within = radii <= eps * (1 + 1e-9)
    axes.plot(radii, certified, color="C0", lw=2, label="certified: at least")
    axes.plot(radii[within], attacked[within], color="C3", lw=2, label="attacked: at most")
    axes.fill_between(
        radii[within], certified[within], attacked[within], color="0.5", alpha=0.2, lw=0
    )
    axes.axvline(eps, color="gray", lw=1, ls=":")
    axes.set(xlim=(0, radii[-1]), ylim=(0, 1.02), xlabel=AXES[norm], ylabel="robust accuracy")
    restrain(axes)
    axes.legend(frameon=False)


def sandwich_figure(radii: Any, certified: Any, attacked: Any, norm: str, eps: float) -> Figure:
    """A figure of :func:`draw_sandwich` alone."""
    figure = new_figure(6, 4)
    draw_sandwich(figure.subplots(), radii, certified, attacked, norm, eps)
    return figure


def draw_images(figure: Any, clean: Tensor, adversarial: Tensor, titles: list[str]) -> None:
    """Images ``[B, 1, H, W]`` above what an attack made of them."""
    rows = figure.subplots(2, len(clean))
    for column, title in enumerate(titles):
        for axes, image in zip(rows[:, column], (clean[column], adversarial[column]), strict=True):
            axes.imshow(image[0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        rows[0, column].set_title(title, fontsize="small")
    rows[0, 0].set_ylabel("image", fontsize="small")
    rows[1, 0].set_ylabel("attacked", fontsize="small")
