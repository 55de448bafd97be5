"""The bound of each operation, above the truth and near it."""

import pytest
import torch
from torch import nn

from lipschitz.bounded import Functional, check
from robustcore import lipschitz as lip
from robustcore.lipschitz.rules import pointwise


def conv(*args, **kwargs):
    return nn.Conv2d(*args, **kwargs)


# Layers, the shape of an input, and how far above the truth their bound may be.
LINEAR = {
    "linear": (lambda: nn.Linear(5, 7), (5,), 1 + 1e-9),
    "convolution": (lambda: conv(2, 3, 3, padding=1), (2, 9, 9), 1.3),
    "strided and dilated": (lambda: conv(2, 3, 3, 2, 2, dilation=2), (2, 9, 9), 1.5),
    "patches": (lambda: conv(2, 3, 4, 4), (2, 8, 8), 1 + 1e-6),
    "grouped": (lambda: conv(2, 4, 3, groups=2, padding=1), (2, 8, 8), 1.3),
    "even filter": (lambda: conv(2, 3, 2), (2, 8, 8), 1.3),
    "same": (lambda: conv(2, 3, 5, padding="same"), (2, 8, 8), 1.3),
    "circular": (lambda: conv(2, 2, 3, padding=1, padding_mode="circular"), (2, 5, 5), 1.3),
    "circular, wider": (lambda: conv(1, 1, 3, padding=2, padding_mode="circular"), (1, 4, 4), 1.6),
    "circular, strided": (
        lambda: conv(2, 2, 3, 2, padding=1, padding_mode="circular"), (2, 5, 5), 2.0
    ),
    "circular, aligned": (
        lambda: conv(2, 2, 3, 2, padding=1, padding_mode="circular"), (2, 6, 6), 1.3
    ),
    "reflected": (lambda: conv(2, 2, 3, padding=1, padding_mode="reflect"), (2, 5, 5), 2.5),
    "replicated": (lambda: conv(2, 2, 3, padding=2, padding_mode="replicate"), (2, 5, 5), 4.0),
    "1-d": (lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1), (2, 9), 1.3),
    "3-d": (lambda: nn.Conv3d(1, 2, 2, padding=1), (1, 4, 4, 4), 1.3),
    "transposed": (
        lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, output_padding=1, groups=2), (2, 6, 6), 1.3
    ),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(2, 2, 5, 3, dilation=2), (2, 9), 1.3),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(2, 1, 2, 2), (2, 3, 3, 3), 1.3),
    "batch norm": (lambda: nn.BatchNorm2d(2), (2, 3, 3), 1 + 1e-9),
    "average pool": (lambda: nn.AvgPool2d(2), (2, 4, 4), 1 + 1e-9),
    "sparse pool": (lambda: nn.AvgPool2d(2, stride=3), (2, 7, 7), 1 + 1e-9),
    "overlapping pool": (lambda: nn.AvgPool2d(3, 2, padding=1), (1, 7, 7), 1 + 1e-6),
    "pool 1-d": (lambda: nn.AvgPool1d(3, 1, ceil_mode=True), (2, 8), 1.01),
    "pool 3-d": (lambda: nn.AvgPool3d(2), (1, 4, 4, 4), 1 + 1e-9),
    "ceil_mode": (lambda: nn.AvgPool2d(2, ceil_mode=True), (1, 5, 5), 1 + 1e-9),
    "padding not counted": (
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 6, 6), 1 + 1e-6
    ),
    "divisor": (lambda: nn.AvgPool2d(3, 2, 1, divisor_override=2), (1, 6, 6), 1 + 1e-6),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (1, 7, 5), 1 + 1e-6),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (1, 3, 3), 1 + 1e-6),
    "nearest, uneven": (lambda: nn.Upsample(size=(5, 4)), (1, 3, 3), 1 + 1e-6),
    "bilinear": (lambda: nn.Upsample(scale_factor=3, mode="bilinear"), (1, 4, 4), 1.01),
    "reflection": (lambda: nn.ReflectionPad2d((1, 2, 0, 1)), (1, 4, 4), 1 + 1e-6),
    "replication": (lambda: nn.ReplicationPad2d((1, 2, 0, 3)), (1, 4, 4), 1 + 1e-6),
    "circular pad": (lambda: nn.CircularPad2d(2), (1, 4, 4), 1 + 1e-6),
    "constant pad": (lambda: nn.ConstantPad2d(2, 7.0), (1, 4, 4), 1 + 1e-6),
    "cropped": (lambda: nn.ZeroPad2d(-1), (1, 4, 4), 1 + 1e-6),
    "unfold": (lambda: nn.Unfold(3, stride=2, padding=1), (1, 7, 7), 1 + 1e-9),
    "fold": (lambda: nn.Fold((5, 5), 3, stride=2), (9, 4), 1 + 1e-9),
    "shuffles": (
        lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.PixelShuffle(2)),
        (2, 4, 4), 1,
    ),
    "stack": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), lip.SOC(4, 4), nn.Dropout(), nn.Identity()),
        (2, 6, 6), 1.6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations(name):
    torch.manual_seed(0)
    make, shape, tight = LINEAR[name]
    layer = make()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.running_var.uniform_(0.1, 2)
    check(layer, shape, tight)


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(1.7), nn.LeakyReLU(-2.0), nn.ELU(2.5), nn.CELU(3.0),
    nn.SELU(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softplus(3.0), nn.Hardtanh(),
    nn.ReLU6(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(),
    nn.Softshrink(), nn.Tanhshrink(), nn.Softsign(), nn.PReLU(2, 1.5), nn.RReLU(1.0, 3.0),
    nn.Threshold(0.3, 0.3), nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 2, dilation=2),
    nn.AdaptiveMaxPool2d(4), nn.LPPool2d(2, 2), nn.LPPool2d(2, 3, 2, ceil_mode=True),
    nn.LPPool2d(1, 2), nn.LPPool2d(4, 2), lip.MaxMin(), lip.Householder(2),
    lip.ProjectionPool2d(2), nn.Softmax(1), nn.LogSoftmax(2),
]  # fmt: skip


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_activations(layer):
    layer = layer.double().eval()
    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(60, 2, 6, 6, dtype=torch.float64, generator=generator)
    jacobians = [
        torch.autograd.functional.jacobian(layer, one[None].clone()).reshape(-1, one.numel())
        for one in x
    ]
    steepest = float(torch.linalg.svdvals(torch.stack(jacobians)).max())
    bound = lip.lipschitz_bound(layer, x)
    assert steepest <= bound * (1 + 1e-12)
    assert bound <= steepest / (0.4 if isinstance(layer, nn.LogSoftmax) else 0.8)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "mish"])
def test_slopes_are_above_and_near_the_largest(name):
    """On a fine grid; between its points the slope is at most h^2 times its curvature higher."""
    function = {
        "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "mish": nn.Mish()
    }[name]  # fmt: skip
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    largest = float(slope.abs().max())
    constant = getattr(pointwise, name.upper())
    assert largest + 2e-11 < constant < largest + 2e-9


MATRIX = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.5, 1.0]], dtype=torch.float64)
OPERATIONS = {
    "scale": lambda x: x * torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64),
    "divide": lambda x: x / torch.tensor([0.5, -3.0, 2.0], dtype=torch.float64),
    "reverse": lambda x: 1 - x,
    "weighted sum": lambda x: torch.add(x, x.relu(), alpha=-2.5),
    "broadcast": lambda x: x + x.mean(1, keepdim=True),
    "matmul": lambda x: x @ MATRIX.T,
    "matmul from the left": lambda x: (MATRIX @ x[:, :, None])[:, :, 0],
    "expand": lambda x: x[:, None].expand(-1, 4, -1).flatten(1),
    "repeat": lambda x: x.repeat(1, 3),
    "index": lambda x: x[:, torch.tensor([0, 0, 2, 0, -1])],
    "sum": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.mean(1, keepdim=True),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "square root of squares": lambda x: (x.square().sum(1, keepdim=True) + 0.1).sqrt(),
    "sort": lambda x: x.sort(dim=1).values,
    "largest": lambda x: x.amax(1, keepdim=True) + x.amin(1, keepdim=True),
    "extremes": lambda x: torch.cat([x.max(1, True).values, x.min(1, True).values], 1),
    "clamp": lambda x: x.clamp(-1, 0.5),
    "silu by hand": lambda x: x * torch.sigmoid(x),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "where": lambda x: torch.where(torch.tensor([True, False, True]), 2 * x, x.abs()),
    "stack": lambda x: torch.stack([x, 2 * x, torch.sin(x)], 1).flatten(1),
    "in place": lambda x: (2 * x).neg_().add_(x).mul_(-1.5),
    "slices": lambda x: torch.cat([x[:, :1], x[:, 1:]], 1),
    "erf": lambda x: torch.erf(x),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_functions(name):
    check(Functional(OPERATIONS[name]), (3,))


# ---- linf ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "linear", "convolution", "strided and dilated", "grouped", "transposed", "1-d", "batch norm",
    "ceil_mode", "circular", "reflected", "nearest", "transposed 1-d",
])  # fmt: skip
def test_linf(name):
    torch.manual_seed(0)
    make, shape, _ = LINEAR[name]
    layer = make().double().eval()
    x = torch.zeros(1, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel())
    true = float(matrix.abs().sum(1).max())
    assert true <= lip.lipschitz_bound(layer, x, norm="linf") * (1 + 1e-12) <= 1.001 * true


def test_linf_refuses_what_l2_alone_keeps():
    for layer in (lip.Householder(4), lip.SOC(4, 4)):
        with pytest.raises(TypeError, match="l2"):
            lip.lipschitz_bound(layer.eval(), torch.zeros(1, 4, 3, 3), norm="linf")
