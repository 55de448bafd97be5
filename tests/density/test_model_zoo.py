"""The density penalty of forty kinds of model, in float64, against torch's own double backward."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from density.test_transformers import STYLES, run, same
from robustcore import density

IMAGE, SEQUENCE, VECTOR = (3, 3, 8, 8), (3, 6, 8), (3, 12)


class Call(nn.Module):
    """Modules and how they are called."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


class Head(nn.Module):
    """Of the mean over all but the first dimension and the given one."""

    def __init__(self, width, dim=1, classes=4):
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(x.movedim(self.dim, -1).flatten(1, -2).mean(1))


def images(*layers, width=8):
    return lambda: (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, Head(width)), IMAGE)


def sequences(*layers, width=8):
    return lambda: (nn.Sequential(*layers, Head(width, dim=2)), SEQUENCE)


def vectors(*layers):
    return lambda: (nn.Sequential(nn.Linear(12, 8), *layers, nn.Linear(8, 4)), VECTOR)


def calling(function, *modules, shape):
    return lambda: (Call(function, *modules), shape)


def layer(**options):
    return nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True, **options)


def dense(x, first, norm, second, head):
    y = first(x)
    return head(torch.cat([y, second(norm(y).relu())], 1))


def residual(x, first, norm, second, head):
    y = torch.relu(norm(first(x)))
    return head((y + second(y)).relu_())


def squeeze(x, conv, down, up, head):
    y = conv(x)
    return head(y * up(down(y.mean((2, 3))).relu()).sigmoid()[:, :, None, None])


def cross(x, attention, head):
    return head(attention(x[:, :2], x[:, 2:], x[:, 2:], need_weights=False)[0])


def gated(x, linear, head):
    a, b = linear(x).chunk(2, -1)
    return head(a * b.sigmoid())


C = nn.Conv2d
MODELS = {
    "linear": vectors(),
    "tanh": vectors(nn.Tanh()),
    "softplus": vectors(nn.Softplus()),
    "elu": vectors(nn.ELU()),
    "leaky relu": vectors(nn.LeakyReLU()),
    "prelu": vectors(nn.PReLU()),
    "hardswish": vectors(nn.Hardswish()),
    "batch norm 1d": vectors(nn.BatchNorm1d(8), nn.ReLU()),
    "layer norm": vectors(nn.LayerNorm(8), nn.SiLU()),
    "weight norm": vectors(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU()),
    "spectral norm": vectors(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)).eval()),
    "gate": calling(gated, nn.Linear(12, 16), nn.Linear(8, 4), shape=VECTOR),
    "relu": images(nn.ReLU()),
    "relu in place": images(nn.ReLU(inplace=True)),
    "gelu": images(nn.GELU()),
    "mish": images(nn.Mish()),
    "batch norm": images(nn.BatchNorm2d(8), nn.ReLU()),
    "batch norm without affine": images(nn.BatchNorm2d(8, affine=False), nn.SiLU()),
    "batch norm, running": images(nn.BatchNorm2d(8).eval(), nn.ReLU()),
    "group norm": images(nn.GroupNorm(2, 8), nn.ReLU()),
    "instance norm": images(nn.InstanceNorm2d(8, affine=True), nn.ReLU()),
    "stride": images(C(8, 8, 3, 2), nn.ReLU()),
    "dilation": images(C(8, 8, 3, dilation=2), nn.ReLU()),
    "depthwise": images(C(8, 8, 3, groups=8), C(8, 8, 1), nn.ReLU()),
    "transposed": images(nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU()),
    "same padding": images(C(8, 8, 3, padding="same"), nn.ReLU()),
    "circular padding": images(C(8, 8, 3, padding=1, padding_mode="circular"), nn.ReLU()),
    "max pool": images(nn.ReLU(), nn.MaxPool2d(2)),
    "average pool": images(nn.ReLU(), nn.AvgPool2d(2), C(8, 8, 2)),
    "upsampling": images(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU()),
    "wide": images(C(8, 16, 3, padding=1), C(16, 16, 3, padding=1), nn.ReLU(), width=16),
    "residual": calling(
        residual, C(3, 8, 3, padding=1), nn.BatchNorm2d(8), C(8, 8, 3, padding=1), Head(8),
        shape=IMAGE,
    ),
    "dense": calling(
        dense, C(3, 8, 3, padding=1), nn.BatchNorm2d(8), C(8, 4, 3, padding=1), Head(12),
        shape=IMAGE,
    ),
    "squeeze": calling(
        squeeze, C(3, 8, 3), nn.Linear(8, 3), nn.Linear(3, 8), Head(8), shape=IMAGE
    ),
    "conv 1d": lambda: (nn.Sequential(nn.Conv1d(6, 8, 3), nn.ReLU(), Head(8)), SEQUENCE),
    "gru": calling(lambda x, g, head: head(g(x)[0]), nn.GRU(8, 8, batch_first=True), Head(8, 2),
                   shape=SEQUENCE),
    "lstm": calling(lambda x, g, head: head(g(x)[0]), nn.LSTM(8, 8, batch_first=True), Head(8, 2),
                    shape=SEQUENCE),
    "encoder": sequences(layer()),
    "encoder, norm first": sequences(layer(norm_first=True, activation="gelu")),
    "cross attention": calling(
        cross, nn.MultiheadAttention(8, 2, batch_first=True), Head(8, 2), shape=SEQUENCE
    ),
    "attention with a bias": calling(
        lambda x, a, head: head(a(x, x, x, need_weights=False)[0]),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True), Head(8, 2), shape=SEQUENCE,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Upsample")
@pytest.mark.parametrize("name", MODELS)
def test_against_torch(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model, x = model.double(), torch.randn(shape, dtype=torch.float64)
    penalty = density.marginal_density_penalty
    for p in (1.0, 2.0, 3.0, float("inf")):
        with sdpa_kernel(SDPBackend.MATH):
            want = run(penalty, model, x, "outside", p=p)
        for style in STYLES if p == 2 else ["within"]:
            same(run(penalty, model, x, style, p=p), want)


def test_there_are_forty():
    assert len(MODELS) >= 40
