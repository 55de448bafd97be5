"""Cayley layers: orthonormal, the transform of the dense circular matrix, exported as products."""

import pytest
import torch
from torch.nn.functional import pad

from lipschitz.dense import matrix_of
from robustcore import lipschitz as lip
from testing import assert_close

# Arguments and sides of the image.
LAYERS = [
    ((3, 3), (5, 6)),
    ((3, 5), (6, 5)),
    ((5, 3), (6, 6)),
    ((2, 6, 3, 2), (6, 8)),
    ((2, 3, 2, 2), (4, 6)),
    ((3, 3, 4, 1, False), (4, 5)),
    ((4, 2, 1), (1, 2)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("arguments", "sides"), LAYERS)
def test_singular_values(arguments, sides, dtype):
    torch.manual_seed(0)
    layer = lip.CayleyConv2d(*arguments, dtype=dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.randn(2, arguments[0], *sides, dtype=dtype)
    for _ in range(10):
        y = layer(x)
        optimizer.zero_grad()
        (y - torch.randn_like(y)).square().mean().backward()
        optimizer.step()
    stride = layer.stride
    assert y.shape == (2, arguments[1], sides[0] // stride, sides[1] // stride)
    eps = 1e-9 if dtype == torch.float64 else 2e-6
    for mode in (True, False):
        layer.train(mode)
        values = torch.linalg.svdvals(
            matrix_of(lambda x: layer(x.to(dtype)).double(), arguments[0], *sides)
        )
        assert values.min() >= 1 - eps
        assert values.max() <= 1 + (eps if mode else 2e-7)
    assert layer.lipschitz_bound() == 1
    exported = layer.export(*sides)
    assert_close(exported(x), layer(x))
    program = torch.export.export(exported, (x,))
    assert_close(program.module()(x), layer(x))
    assert all("fft" not in str(node.target) for node in program.graph.nodes)


def test_it_is_the_transform_of_the_circular_convolution():
    torch.manual_seed(0)
    layer = lip.CayleyConv2d(3, 3, 3, bias=False, dtype=torch.float64)
    circular = matrix_of(
        lambda x: torch.conv2d(pad(x, (1, 1, 1, 1), mode="circular"), layer.weight), 3, 5, 6
    )
    skew, identity = circular - circular.T, torch.eye(90, dtype=torch.float64)
    wanted = (identity - skew) @ torch.linalg.inv(identity + skew)
    assert_close(matrix_of(layer, 3, 5, 6), wanted)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (6, 2)])
def test_linear(rows, columns):
    torch.manual_seed(0)
    layer = lip.CayleyLinear(columns, rows, dtype=torch.float64)
    eye = torch.eye(columns, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(layer, {"weight": w}, eye), layer.weight
    )
    for mode in (True, False):
        values = torch.linalg.svdvals(layer.train(mode).filter)
        assert (values - 1).abs().max() < 1e-9
    assert layer.lipschitz_bound() == 1
    assert_close(layer.export()(eye), layer(eye))


def test_gradients():
    torch.manual_seed(0)
    layer = lip.CayleyConv2d(1, 2, 2, dtype=torch.float64)
    x = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def of(weight, x):
        return torch.func.functional_call(layer, {"weight": weight}, x)

    assert torch.autograd.gradcheck(of, (layer.weight, x))
    assert torch.autograd.gradgradcheck(of, (layer.weight, x))
    wanted = torch.autograd.grad(layer(x).pow(3).sum(), (layer.weight, x))
    for ours, train in zip(
        torch.autograd.grad(layer.eval()(x).pow(3).sum(), (layer.weight, x)), wanted, strict=True
    ):
        assert_close(ours, train, torch.float32)


def test_wide_layers():
    """On as many threads as there are, where torch's own batched solver is wrong."""
    torch.manual_seed(0)
    layer, x = lip.CayleyConv2d(256, 256, 1, bias=False), torch.randn(2, 256, 4, 4)
    y = layer(x)
    y.square().sum().backward()
    assert layer.weight.grad.abs().max() < 1e-2  # the norm does not depend on the weight
    for mode in (True, False):
        with torch.no_grad():
            assert abs(layer.train(mode)(x).norm() / x.norm() - 1) < 1e-5


def test_eval_keeps_a_set_of_matrices_a_size():
    layer = lip.CayleyConv2d(2, 2).eval()
    for side in (4, 5, 4):
        layer(torch.zeros(1, 2, side, side))
    assert sorted(layer.kept()) == [(4, 4), (5, 5)]
    with pytest.raises(ValueError, match="height: got None after 2 sizes of images"):
        layer.export()
    assert layer.export(6, 4)(torch.zeros(1, 2, 6, 4)).shape == (1, 2, 6, 4)
    with torch.no_grad():
        layer.weight.mul_(1.5)
    assert layer.kept() == {}
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        assert_close((layer(x) - layer(0 * x)).norm(), x.norm(), torch.float32)


REFUSED = [
    (lambda: lip.CayleyConv2d(2, 2)(torch.zeros(1, 2, 2, 4)), "x: .* sides of at least 3"),
    (lambda: lip.CayleyConv2d(2, 2, 2, 2)(torch.zeros(1, 2, 5, 4)), "x: .* the stride 2 divides"),
    (lambda: lip.CayleyConv2d(2, 2)(torch.zeros(1, 3, 4, 4)), r"x: .*, want \[N, 2, H, W\]"),
    (lambda: lip.CayleyConv2d(2, 2).export(2, 4), "height: got 2"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
