"""Every layer with parameters where weights, precision and torch's transforms are not ordinary."""

import copy
import pickle

import pytest
import torch
from torch import nn

from robustcore import lipschitz as lip
from testing import assert_close, assert_same

IMAGE, ROW = (3, 6, 6), (5,)
# A layer, and what one input looks like.
LAYERS = {
    "soc": (lambda: lip.SOC(3, 4), IMAGE),
    "orthogonal": (lambda: lip.OrthogonalConv2d(3, 4, 3), IMAGE),
    "orthogonal, transposed": (lambda: lip.OrthogonalConvTranspose2d(3, 4, 3), IMAGE),
    "orthogonal, linear": (lambda: lip.OrthogonalLinear(5, 4), ROW),
    "cayley": (lambda: lip.CayleyConv2d(3, 4), IMAGE),
    "cayley, linear": (lambda: lip.CayleyLinear(5, 4), ROW),
    "aol": (lambda: lip.AOLConv2d(3, 4), IMAGE),
    "aol, linear": (lambda: lip.AOLLinear(5, 4), ROW),
    "sll": (lambda: lip.SLLConv2d(3, 4), IMAGE),
    "sll, linear": (lambda: lip.SLLLinear(5, 4), ROW),
    "normalized": (lambda: lip.NormalizedLinear(5, 4), ROW),
    "crc": (lambda: lip.CRCHead(5, 4), ROW),
}
IDENTITY_AT_ZERO = ("soc", "cayley", "sll")
each = pytest.mark.parametrize("name", LAYERS)


def made(name, batch=2):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return make(), torch.randn(batch, *shape)


@each
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_degenerate_weights(name, scale):
    """They train and evaluate, and the bound holds."""
    layer, x = made(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    if name == "crc" and scale > 1:
        return  # no layer of a stated bound: a product of two weights
    y = layer(x)
    assert y.isfinite().all()
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
    layer.eval()
    with torch.no_grad():
        distance = (layer(x) - layer(x.flip(0))).norm()
    assert distance <= layer.lipschitz_bound() * (x - x.flip(0)).norm() * (1 + 1e-5) + 1e-30
    if scale == 0 and name in IDENTITY_AT_ZERO:
        assert distance >= 0.99 * (x - x.flip(0)).norm()


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    layer, x = made(name)
    wanted = layer(x)
    with torch.autocast("cpu", dtype):
        for mode in (True, False):
            y = layer.train(mode)(x)
            assert (y.float() - wanted).norm() < 3e-2 * wanted.norm()
            layer(x.to(dtype)).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.lipschitz_bound() < 100


@each
@pytest.mark.parametrize("train", [True, False])
def test_each_parameter_trains_alone(name, train):
    layer, x = made(name)
    layer.train(train)(x)
    layer(x).square().sum().backward()
    wanted = [p.grad for p in layer.parameters()]
    for i, alone in enumerate(layer.parameters()):
        for p in layer.parameters():
            p.requires_grad_(p is alone)
        alone.grad = None
        layer(x).square().sum().backward()
        torch.testing.assert_close(alone.grad, wanted[i])


@each
def test_copies(name):
    layer, x = made(name)
    for mode in (True, False):
        y = layer.train(mode)(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert_close(twin(x), y, torch.float32)
            if not mode:
                assert_same(twin(x), y)
    other = LAYERS[name][0]().eval()
    other(x)
    other.load_state_dict(layer.state_dict())
    assert_same(other(x), y)


@each
def test_empty_batches(name):
    layer, x = made(name)
    for mode in (True, False):
        y = layer.train(mode)(x[:0])
        assert y.shape == (0, *layer(x).shape[1:])
        y.sum().backward()


@each
@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_functional_transforms(name):
    layer, x = made(name)
    layer, x = layer.double(), x.double()
    layer(x)
    weights = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(weights, one):
        return torch.func.functional_call(layer, weights, one[None]).pow(3).sum()

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for i, one in enumerate(x):
        for key, wanted in torch.func.grad(loss)(weights, one).items():
            assert_close(rows[key][i], wanted)
    layer.eval()
    _, tangent = torch.func.jvp(layer, (x,), (x,))
    step = 1e-4
    assert_close(tangent, (layer(x + step * x) - layer(x - step * x)) / (2 * step), torch.float32)


@each
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles_whole_with_dynamic_shapes(name):
    for mode in (True, False):
        layer, x = made(name, 5)
        layer(x)
        layer.train(mode)
        layer(x)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for n in (2, 3, 5):
            y, wanted = compiled(x[:n]), layer(x[:n])
            assert (y - wanted).norm() < 1e-2 * wanted.norm()
        if mode:
            y.square().sum().backward()


@each
def test_exports(name):
    layer, x = made(name)
    layer.eval()
    y = layer(x)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert_close(
        program.module()(x[:1].expand(3, *x.shape[1:])),
        layer(x[:1].expand(3, *x.shape[1:])),
        torch.float32,
    )
    if not hasattr(layer, "export"):
        return
    plain = layer.export()
    assert_close(plain(x), y, torch.float32)
    assert all(
        "robustcore" not in str(n.target) for n in torch.export.export(plain, (x,)).graph.nodes
    )


@each
def test_values_that_are_not_finite_have_no_bound(name):
    layer, _ = made(name)
    layer.eval()
    with torch.no_grad():
        next(p for p in layer.parameters() if p.dim() > 1).view(-1)[1] = float("nan")
    with pytest.raises(ValueError, match="is not finite"):
        layer.lipschitz_bound()


@pytest.mark.parametrize("layer", [lip.Householder(4), lip.Householder(4, 2),
                                   lip.ProjectionPool2d(4)])  # fmt: skip
def test_angles_that_are_not_finite_have_no_bound(layer):
    net = nn.Sequential(layer, nn.Flatten()).eval()
    x = torch.randn(2, 4, 2, 2)
    assert lip.lipschitz_bound(net, x) == 1
    with torch.no_grad():
        layer.theta.view(-1)[0] = float("nan")
    for call in (layer.lipschitz_bound, lambda: lip.lipschitz_bound(net, x)):
        with pytest.raises(ValueError, match="theta: is not finite"):
            call()


def test_zero_hidden_weights_certify():
    """A head that ignores its input: nothing changes its prediction."""
    head = lip.CRCHead(4, 3)
    with torch.no_grad():
        head.linear1.weight.zero_()
    net = nn.Sequential(nn.Flatten(), head).eval()
    certificate = lip.certify(net, torch.randn(2, 4))
    assert not certificate.radius.isnan().any()
    assert (certificate.radius > 1).all()
