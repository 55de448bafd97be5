"""SOC where weights, precision and torch's transforms are not the ordinary ones."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lipschitz.dense import matrix_of
from robustcore import lipschitz as lip
from robustcore.lipschitz import SOC
from robustcore.ops import conv_norm_bound, exp_series, skew_kernel
from robustcore.ops.lipschitz.skew_norm import skew_norm_bound
from testing import assert_close, assert_same


def filled(weight, name):
    """A weight that is nearly, or not at all, skew, or of an odd size."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(weight.shape, generator=generator)
    values = {
        "zeros": torch.zeros_like(weight),
        "dirac": nn.init.dirac_(torch.empty_like(weight)),
        "ones": torch.ones_like(weight),
        "symmetric": random + random.transpose(0, 1).flip(2, 3),
        "1e-20": 1e-20 * random,
        "1e-13": 1e-13 * random,
        "1e20": 1e20 * random,
    }
    return values[name]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["zeros", "dirac", "ones", "symmetric", "1e-20", "1e-13", "1e20"])
def test_degenerate_weights_train_and_evaluate(name, size):
    torch.manual_seed(0)
    layer = SOC(4, 4, size)
    with torch.no_grad():
        layer.weight.copy_(filled(layer.weight.detach(), name))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    x, target = torch.randn(2, 2, 4, 5, 5)
    for step in range(6):
        y = layer(x)
        optimizer.zero_grad()
        (y - target).square().mean().backward()
        assert layer.weight.grad.abs().max() < 1e5
        assert y.norm() < 3 * x.norm() + 10
        optimizer.step()
        if step in (0, 5):
            layer.eval()
            assert (
                torch.linalg.svdvals(matrix_of(lambda x: layer(x.float()).double(), 4, 5, 5)).max()
                <= layer.lipschitz_bound() + 1e-6
            )
            layer.train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "size"), [(4, 3), (32, 3), (4, 1)])
def test_autocast(channels, size, dtype):
    torch.manual_seed(0)
    layer, x = SOC(channels, channels, size), torch.randn(2, channels, 6, 6)
    expected = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        (y.float() ** 2).sum().backward()
        assert layer.eval()(x).dtype == dtype
    assert y.dtype == dtype
    assert (y - expected).norm() < 2e-2 * expected.norm()
    assert layer.weight.grad.isfinite().all()
    assert layer.lipschitz_bound() == 1


@pytest.mark.parametrize(("channels", "size", "grid"), [(3, 3, 16), (6, 5, 32), (5, 3, None),
                                                        (8, 1, None)])  # fmt: skip
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_skew_norm_bound(channels, size, grid, scale):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, size, size, generator=generator).double()
    kernel = scale * skew_kernel(weight).kernel
    bound = skew_norm_bound(kernel, grid)
    wanted = float(conv_norm_bound(kernel, 64 if grid is None else grid))
    assert wanted * (1 - 2e-3) <= bound
    assert bound <= wanted * (2.5 if grid is None else 1.03)
    matrix = matrix_of(lambda x: torch.conv2d(x, kernel, padding=size // 2), channels, 6, 6)
    assert torch.linalg.matrix_norm(matrix, 2) <= bound


def test_skew_norm_bound_of_nothing():
    assert skew_norm_bound(torch.zeros(2, 2, 3, 3), 8) == 0
    assert skew_norm_bound(torch.full((2, 2, 3, 3), float("nan")), 8) == float("inf")


def test_a_wide_1x1_layer_is_a_series():
    torch.manual_seed(0)
    layer = SOC(520, 520, 1, bias=False).eval()
    x = torch.randn(2, 520, 1, 1)
    with torch.no_grad():
        assert layer.kept().series is not None
        assert abs(layer(x).norm() / x.norm() - 1) < 4e-6
        kernel = layer.kept().kernel[:, :, 0, 0].double()
        expected = torch.linalg.matrix_exp(kernel) @ x[0, :, 0, 0].double()
    assert (layer(x)[0, :, 0, 0] - expected).norm() < 4e-6 * expected.norm()


def test_exp_series_takes_radii_up_to_its_largest():
    for radius in (0.0, 1.0, 30.0, 400.0):
        assert exp_series(radius, 1e-6).degree <= radius + 12 * (1 + radius) ** (1 / 3)
    for radius in (701.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"radius: got .*, want a number in \[0, 700\]"):
            exp_series(radius, 1e-6)


def test_a_write_through_data_changes_neither_forward_nor_bound():
    torch.manual_seed(0)
    layer, x = SOC(4, 4).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        before = layer(x)
    layer.weight.data.mul_(torch.rand_like(layer.weight) * 50)
    assert_close(layer(x).detach(), before)
    x.requires_grad_()
    assert_close(layer(x).detach(), before)
    assert layer.lipschitz_bound() == 1


@pytest.mark.parametrize("activation", ["maxmin", "householder", "householder2"])
@pytest.mark.parametrize("version", ["soc", "improved"])
def test_networks_pickle_and_copy(activation, version):
    net = lip.LipConvNet(
        2, 3, version=version, init_channels=4, input_size=4, stages=2, activation=activation,
        pooling="max",
    ).eval()  # fmt: skip
    x = torch.rand(2, 3, 4, 4)
    y = net(x)
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert_same(twin(x), y)


def test_empty_batches():
    layer = SOC(3, 4)
    for mode in (True, False):
        y = layer.train(mode)(torch.zeros(0, 3, 4, 4))
        assert y.shape == (0, 4, 4, 4)
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@pytest.mark.parametrize("mode", [True, False])
def test_functional_transforms(mode):
    torch.manual_seed(0)
    layer, x = SOC(3, 4).double(), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    layer(x)
    layer.train(mode)
    weight = layer.weight.detach()

    def loss(weight, image):
        twin = layer if mode else layer.eval()
        return torch.func.functional_call(twin, {"weight": weight}, image[None]).pow(3).sum()

    if mode:
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
        for i, image in enumerate(x):
            assert_close(each[i], torch.func.grad(loss)(weight, image))
    y, tangent = torch.func.jvp(layer, (x,), (x,))
    assert_close(tangent, y - layer.bias.view(-1, 1, 1), torch.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [True, False])
def test_compiles_whole_with_dynamic_shapes(mode):
    torch.manual_seed(0)
    layer = SOC(4, 6)
    layer(torch.randn(1, 4, 6, 6))
    layer.train(mode)
    if not mode:
        layer.lipschitz_bound()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (2, 3, 5):
        x = torch.randn(n, 4, 6, 6)
        y = compiled(x)
        assert (y - layer(x)).norm() < 1e-2 * x.norm()
        grad = torch.autograd.grad(y.square().sum(), layer.weight)[0]
        wanted = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
        assert (grad - wanted).norm() < 2e-2 * wanted.norm()


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_exports(size, stride):
    layer = SOC(3, 5, size, stride).eval()
    x = torch.randn(2, 3, 4, 4)
    plain = layer.export()
    assert_close(plain(x), layer(x))
    program = torch.export.export(plain, (x,))
    assert_close(program.module()(x), layer(x))
    assert all("aten" in str(n.target) for n in program.graph.nodes if n.op == "call_function")
