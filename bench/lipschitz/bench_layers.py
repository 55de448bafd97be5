"""1-Lipschitz layers in turn with their peers: training steps, inference, first eval.

Peers: orthogonium's AdaptiveOrthoConv2d (AOC) and torchlip's SpectralConv2d (Lipschitz, not
orthogonal); skipped where not installed (``pip install ".[bench,peers]"``). The plain convolutions
of torch are the limit.
"""

import pytest
import torch
from torch import nn

from robustcore import lipschitz as lip

# orthogonium and torchlip use what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = {  # channels, side: about the same work each
    "64 x 32x32x32": (32, 32),
    "64 x 64x16x16": (64, 16),
    "64 x 128x8x8": (128, 8),
    "64 x 256x4x4": (256, 4),
}


def aoc(c):
    return pytest.importorskip("orthogonium.layers").AdaptiveOrthoConv2d(c, c, 3)


def spectral(c):
    return pytest.importorskip("deel.torchlip").SpectralConv2d(c, c, 3, padding="same")


def plain(c, mode="zeros"):
    return nn.Conv2d(c, c, 3, padding=1, padding_mode=mode)


LAYERS = {
    "robustcore": lambda c: lip.OrthogonalConv2d(c, c, 3),
    "robustcore, zero padding": lambda c: lip.OrthogonalConv2d(c, c, 3, padding_mode="zeros"),
    "robustcore, SOC": lambda c: lip.SOC(c, c),
    "robustcore, Cayley": lambda c: lip.CayleyConv2d(c, c),
    "robustcore, AOL": lambda c: lip.AOLConv2d(c, c),
    "robustcore, SLL": lambda c: lip.SLLConv2d(c),
    "orthogonium AOC": aoc,
    "torchlip spectral": spectral,
    "plain convolution": plain,
    "plain convolution, circular": lambda c: plain(c, "circular"),
}
FEW = {"rounds": 5, "warmups": 2}
NORM_KEPT = ("robustcore", "robustcore, Cayley", "orthogonium AOC")


def made(impl, case, device):
    """The layer, and images in the layout that it hands on in a network of such layers."""
    channels, side = SHAPES[case]
    torch.manual_seed(0)
    layer = LAYERS[impl](channels).to(device)
    x = torch.randn(64, channels, side, side, device=device)
    soc = impl == "robustcore, SOC"
    return layer, x.contiguous(memory_format=torch.channels_last) if soc else x


def step_of(layer, x):
    x = x.clone().requires_grad_()
    upstream = torch.randn_like(x)

    def step():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(upstream)

    return step


@pytest.mark.parametrize("impl", LAYERS)
@pytest.mark.parametrize("case", SHAPES)
def test_training_step(case, impl, measure, device):
    layer, x = made(impl, case, device)
    if impl in NORM_KEPT:
        with torch.no_grad():
            y = layer(x) - layer(torch.zeros_like(x[:1]))
        assert abs(y.norm() / x.norm() - 1) < 1e-3
    ours = step_of(*made("robustcore", case, device))
    against = None if impl == "robustcore" else ("robustcore", ours)
    measure(f"Layer, training step: {case}", impl, step_of(layer, x), against=against, **FEW)


@pytest.mark.parametrize("impl", LAYERS)
@pytest.mark.parametrize("case", SHAPES)
def test_inference(case, impl, measure, device):
    layer, x = made(impl, case, device)
    layer.eval()
    ours, same = made("robustcore", case, device)
    ours.eval()
    with torch.no_grad():
        against = None if impl == "robustcore" else ("robustcore", lambda: ours(same))
        measure(f"Layer, inference: {case}", impl, lambda: layer(x), against=against, rounds=15)


def first_eval(layer, x):
    """The first evaluation after a training step."""

    def evaluate():
        layer.train()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.0)  # a new version of the same values
            layer.eval()(x)

    return evaluate


@pytest.mark.parametrize("impl", ["robustcore", "robustcore, SOC", "robustcore, Cayley",
                                  "orthogonium AOC"])  # fmt: skip
@pytest.mark.parametrize("case", SHAPES)
def test_first_eval(case, impl, measure, device):
    layer, x = made(impl, case, device)
    measure(f"Layer, first eval: {case}", impl, first_eval(layer, x), **FEW)


def test_first_eval_of_a_network(measure, device):
    torch.manual_seed(0)
    net, x = lip.LipConvNet(5, 10).to(device), torch.rand(16, 3, 32, 32, device=device)
    measure("LipConvNet-5, first eval, 16 images", "robustcore", first_eval(net, x), **FEW)
