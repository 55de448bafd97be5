"""Layers without orthogonality, blocks, activations and losses: bounds by dense Jacobians."""

import pytest
import torch
from torch import nn

from robustcore import lipschitz as lip
from testing import assert_close

LAYERS = {
    "aol": lambda: lip.AOLConv2d(3, 5),
    "aol, stride": lambda: lip.AOLConv2d(4, 3, 5, 2, bias=False),
    "aol, linear": lambda: nn.Sequential(nn.Flatten(), lip.AOLLinear(108, 9)),
    "sll": lambda: lip.SLLConv2d(3, 7),
    "sll, linear": lambda: nn.Sequential(nn.Flatten(), lip.SLLLinear(108, 12)),
    "sll, 1 x 1": lambda: lip.SLLConv2d(3, kernel_size=1),
    "residual": lambda: lip.Residual(nn.Sequential(lip.AOLConv2d(3, 3), lip.Abs()), 0.3),
    "centering": lambda: lip.BatchCentering(3),
    "sort": lambda: lip.GroupSort(3),
    "abs": lambda: lip.Abs(),
    "pool": lambda: lip.L2NormPool2d(2),
    "cayley": lambda: nn.Sequential(nn.Flatten(), lip.CayleyLinear(108, 9)),
}


def trained(layer, x):
    if any(True for _ in layer.parameters()):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(25):
            y = layer(x)
            optimizer.zero_grad()
            (y - torch.randn_like(y)).square().mean().backward()
            optimizer.step()
    return layer.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_stay_below_the_bound(name):
    torch.manual_seed(0)
    channels = 4 if "stride" in name else 3
    x = torch.randn(4, channels, 6, 6, dtype=torch.float64)
    layer = trained(LAYERS[name]().double(), x)
    norms = []
    for image in x:
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], image)
        norms.append(torch.linalg.matrix_norm(jacobian.reshape(-1, image.numel()), 2))
    bound = lip.lipschitz_bound(layer, example=x)
    assert max(norms) <= bound + 1e-9
    assert bound <= 1 + 1e-9
    assert max(norms) > 0.3  # and not by standing still
    half = layer.float()
    assert_close(half(x.float()), layer.double()(x), torch.float32)


def test_spreading_keeps_the_bound():
    """Any q, those of other layers' checkpoints too, gives a bound, and not an idle one."""
    torch.manual_seed(0)
    for q in (torch.randn(5), 100 * torch.randn(5), torch.tensor([1e30, 0, 0, 0, -1e30])):
        layer = lip.SLLLinear(5, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(5, 5))
            layer.q.copy_(q)
        layer.eval()
        scaled = layer._scales()[:, None] * layer.weight
        assert 0.3 < torch.linalg.matrix_norm(scaled, 2) <= 1


@pytest.mark.parametrize("layer", [lip.AOLConv2d(3, 5), lip.AOLConv2d(3, 5, 3, 2, bias=False),
                                   lip.AOLLinear(6, 5)])  # fmt: skip
def test_aol_exports_one_layer_of_torch(layer):
    x = torch.randn(2, 3, 6, 6)
    assert type(layer.eval().export()) in (nn.Conv2d, nn.Linear)
    assert_close(layer.export()(x), layer(x))


def test_group_sort_of_two_is_a_sort_of_pairs():
    x = torch.randn(2, 6, 3)
    y = lip.GroupSort(2)(x)
    assert_close(y[:, ::2], torch.minimum(x[:, ::2], x[:, 1::2]))
    assert_close(y[:, 1::2], torch.maximum(x[:, ::2], x[:, 1::2]))


def test_centering_follows_the_batches():
    layer, x = lip.BatchCentering(3, momentum=1.0), torch.randn(8, 3, 4, 4) + 5
    assert layer(x).mean().abs() < 1e-5
    assert layer.eval()(x).mean().abs() < 1e-5


def test_hkr_by_hand():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 3)
    transport = hinge = 0.0
    for k in range(3):
        own = labels == k
        transport += (logits[own, k].mean() - logits[~own, k].mean()) / 3
    for i, label in enumerate(labels):
        for k in range(3):
            z = logits[i, k] if k == label else -logits[i, k]
            hinge += max(0.0, 0.5 - z) * (1 if k == label else 0.5) / 9
    wanted = 4 * hinge - transport
    assert_close(lip.hkr(logits, labels, alpha=4, margin=0.5), wanted)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lip.hkr(z, labels), logits)
    alone = torch.zeros(4, dtype=torch.int64)
    assert lip.hkr(logits[:4], alone).isfinite()


def test_tau_cross_entropy():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    wanted = nn.functional.cross_entropy(8 * logits, labels) / 8
    assert_close(lip.tau_cross_entropy(logits, labels, 8.0), wanted)


REFUSED = [
    (lambda: lip.Residual(nn.ReLU(), 1.0), "share: got 1.0"),
    (lambda: lip.BatchCentering(3, 2.0), "momentum: got 2.0"),
    (lambda: lip.GroupSort(4)(torch.zeros(1, 6)), "x: .* want channels that 4 divides"),
    (lambda: lip.L2NormPool2d(2)(torch.zeros(1, 1, 3, 4)), "x: .* sides that 2 divides"),
    (lambda: lip.AOLConv2d(3, 3, 2), "kernel_size: got 2, want an odd integer"),
    (lambda: lip.hkr(torch.zeros(2, 1), torch.zeros(2).long()), "logits: got shape"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
