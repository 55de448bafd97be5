"""What a grid costs: lattice noise beside the float op, and a certification beside one without.

In turn with it, so that a drift of the machine slows both down: the notes have the ratios.
"""

import pytest
import torch

from robustcore import ops
from robustcore.smoothing import Smooth
from robustcore.smoothing.demo import digits_cnn

# kind: the float op, its level
KINDS = {
    "gaussian": (ops.gaussian_noise, 0.25),
    "gaussian, sigma 1": (ops.gaussian_noise, 1.0),
    "uniform": (ops.uniform_noise, 0.5),
    "laplace": (ops.laplace_noise, 0.2),
}
SHAPES = {"1000 samples of 3x32x32": ((3, 32, 32), 1000), "100 of 3x224x224": ((3, 224, 224), 100)}


def levels(*shape):
    return torch.randint(0, 256, shape) / 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_lattice_noise(shape, kind, measure, device):
    (size, samples), (draw, level) = SHAPES[shape], KINDS[kind]
    x = levels(1, *size).to(device)
    out = torch.empty((1, samples, *size), device=device)
    arguments = dict(seed=1, mean=0.5, std=0.25, out=out)

    def on_grid():
        ops.lattice_noise(x, samples, level, kind=kind.split(",")[0], **arguments)

    def real():
        draw(x, samples, level, **arguments)

    on_grid()
    steps = (out * 0.25 + 0.5).double() * 255
    assert (steps - steps.round()).abs().max() < 1e-2
    measure(
        f"on a grid, {kind}: {shape}, float32",
        "robustcore",
        on_grid,
        against=("without a grid", real),
    )


def test_certify(measure, device):
    torch.manual_seed(0)
    model, images = digits_cnn().to(device).eval(), levels(4, 1, 8, 8).to(device)
    on_grid, real = (Smooth(model, 10, 0.25, grid=grid, seed=1) for grid in (255, None))
    counts = [smooth.certify(images, n=10_000).counts for smooth in (on_grid, real)]
    # Other noise, nearly the same distribution: the difference has a variance below n / 2.
    assert (counts[0] - counts[1]).abs().max() < 6 * 5000**0.5
    measure(
        "certify on a grid: 4 digits, n = 10 000, demo CNN",
        "robustcore",
        lambda: on_grid.certify(images, n=10_000),
        rounds=25,
        against=("without a grid", lambda: real.certify(images, n=10_000)),
    )
