"""Certificates of the program: what the rounding of a forward can do is taken off."""

import pytest
import torch
from torch import nn

from lipschitz.bounded import Functional
from robustcore import lipschitz as lip
from robustcore.lipschitz.bounds import Bounds

ULP = 2.0**-17  # of numbers from 64 to 128


def near_a_tie():
    """A linear classifier and an image whose logits differ by one unit of their last place."""
    torch.manual_seed(0)
    model, x = nn.Linear(1000, 2).eval(), torch.rand(1, 1000)
    with torch.no_grad():
        model.bias.fill_(100.0)
        y = model(x)[0]
        model.bias[1] += y[0] - y[1] + ULP
    return model, x


def flips(model, x, certificate, tries=512):
    """Whether some float32 input within the radius has another class, as the model computes it."""
    radius, apart = float(certificate.radius), (model.weight[0] - model.weight[1]).detach()
    steps = apart + 0.1 * apart.norm() * torch.randn(tries, x.shape[1]) / x.shape[1] ** 0.5
    near = (x + 0.99 * radius * steps / steps.norm(dim=1, keepdim=True)).float()
    inside = (near.double() - x.double()).norm(dim=1) <= radius
    assert inside.any()
    return bool((model(near[inside]).argmax(1) != certificate.prediction).any())


def test_the_program_breaks_a_certificate_of_exact_arithmetic():
    model, x = near_a_tie()
    exact, program = lip.certify(model, x), lip.certify(model, x, rounding=True)
    assert exact.prediction == program.prediction == 1
    assert exact.radius > 0
    assert flips(model, x, exact)
    assert program.radius <= 0
    with torch.no_grad():
        model.bias[1] += 0.5
    wide = lip.certify(model, x, rounding=True)
    assert 0 < wide.radius < lip.certify(model, x).radius
    assert not flips(model, x, wide)


OPERATIONS = {
    "linear": (lambda: nn.Linear(64, 9), (64,)),
    "matmul": (lambda: Functional(lambda x: x @ torch.ones(64, 5).to(x)), (64,)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, 2, 1), (6, 9, 9)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (6, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, 2, groups=2), (6, 5, 5)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)), (6, 5, 5)),
    "pools": (lambda: nn.Sequential(nn.AvgPool2d(3, 2), nn.MaxPool2d(2, 1)), (4, 9, 9)),
    "global pool": (lambda: nn.AdaptiveAvgPool2d(1), (4, 9, 9)),
    "powers": (lambda: nn.LPPool2d(2, 3), (4, 9, 9)),
    "softmax": (lambda: nn.Softmax(1), (40,)),
    "log softmax": (lambda: nn.LogSoftmax(1), (40,)),
    "sums": (lambda: Functional(lambda x: x.sum(1) - 2 * x.mean(1)), (3, 20)),
    "norm": (lambda: lip.L2NormPool2d(4), (3, 8, 8)),
    "by hand": (lambda: Functional(lambda x: x * x.sigmoid() + x / (1 + x.abs())), (50,)),
    "resized": (lambda: nn.Upsample(scale_factor=3, mode="bilinear"), (3, 5, 5)),
    "residual": (lambda: lip.Residual(nn.Conv2d(3, 3, 3, padding=1)), (3, 6, 6)),
    "householder": (lambda: lip.Householder(4, 2), (4, 6, 6)),
    "projection": (lambda: lip.ProjectionPool2d(4), (4, 6, 6)),
    "sll": (lambda: lip.SLLConv2d(4, 9), (4, 6, 6)),
    "aol": (lambda: lip.AOLLinear(40, 30), (40,)),
    "soc of 5 x 5": (lambda: lip.SOC(3, 4, 5), (3, 6, 6)),
    "crc head": (lambda: lip.CRCHead(40, 5), (40,)),
    "exported": (lambda: lip.OrthogonalConv2d(4, 8, 3, 2).export(), (4, 6, 6)),
    **{str(f): ((lambda f=f: nn.Sequential(nn.Linear(40, 40), f)), (40,)) for f in (
        nn.GELU(), nn.SiLU(), nn.Mish(), nn.Softplus(2.0), nn.Tanhshrink(), nn.ELU(1.5),
        nn.Hardswish(), nn.LogSigmoid(), nn.PReLU(), nn.Softsign(), nn.SELU(),
    )},
}  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_forwards_error_is_within_its_bound(name, norm):
    """At many images: of sums of ordinary, large and cancelling numbers."""
    torch.manual_seed(0)
    make, shape = OPERATIONS[name]
    model = make().eval()
    if norm == "linf" and name in ("norm", "householder", "projection", "powers", "sll", "aol",
                                   "soc of 5 x 5", "crc head"):  # fmt: skip
        return
    x = torch.randn(16, *shape) * torch.logspace(-2, 3, 16).view(-1, *[1] * len(shape))
    # The model in float64: of the same filters.
    with torch.no_grad():
        y = model(x)
        exact = lip.export(model).double()(x.double())
        slack = Bounds(model, x, norm, batch=16, radius=torch.zeros(16).double()).result.slack
    order = 2 if norm == "l2" else float("inf")
    error = torch.linalg.vector_norm((y.double() - exact).flatten(1), ord=order, dim=1)
    size = torch.linalg.vector_norm(y.double().flatten(1), ord=order, dim=1)
    assert (error <= slack / 2).all()
    assert (slack <= 0.02 * (size + torch.linalg.vector_norm(x.double().flatten(1), dim=1))).all()
    if size.max() > 0 and name not in ("pools", "exported"):
        assert slack.max() > 0


def test_float64_takes_off_next_to_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(
        lip.SOC(2, 4), lip.MaxMin(), lip.SOC(4, 8, stride=2), lip.Householder(8), nn.Flatten(),
        lip.NormalizedLinear(32, 3),
    ).double().eval()  # fmt: skip
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    exact, program = lip.certify(net, x), lip.certify(net, x, rounding=True)
    assert (program.radius <= exact.radius).all()
    torch.testing.assert_close(program.radius, exact.radius, rtol=0, atol=1e-8)
    alone = torch.cat([lip.certify(net, one[None], rounding=True).radius for one in x])
    torch.testing.assert_close(program.radius, alone, rtol=1e-9, atol=0)


class Stated(nn.Module):
    def forward(self, x):
        return x.sin()

    def lipschitz_bound(self):
        return 1.0


@pytest.mark.parametrize(
    ("layer", "name"),
    [(lip.SOC(3, 3), "SOC"), (lip.CayleyConv2d(3, 3), "CayleyConv2d"), (Stated(), "Stated")],
)
def test_what_is_not_known_is_refused_by_name(layer, name):
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    assert (lip.certify(net, x).radius > 0).all()
    with pytest.raises(TypeError, match=rf"model\.0: .*rounding of {name} as it runs is not known"):
        lip.certify(net, x, rounding=True)
