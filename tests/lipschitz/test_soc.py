"""The SOC layer: orthogonality by brute force, its cache, its training step, checkpoints."""

import copy
import io

import pytest
import torch
from torch import nn

from lipschitz.dense import matrix_of
from robustcore.lipschitz import SOC
from robustcore.ops import exp_series
from robustcore.ops.lipschitz.conv_exp import apply_series
from robustcore.ops.lipschitz.soc import (
    SingularVectors,
    normalised_filter,
    reshapes,
    skew_conv_exp,
)
from testing import assert_close, assert_same

# in, out, kernel, stride, height, width
LAYERS = [
    (4, 4, 3, 1, 5, 6),
    (3, 6, 3, 1, 4, 4),
    (6, 2, 3, 1, 5, 3),
    (2, 8, 3, 2, 6, 4),
    (2, 4, 5, 2, 6, 6),
    (1, 4, 3, 4, 8, 4),
    (5, 5, 1, 1, 3, 3),
    (4, 4, 3, 1, 1, 1),
    (3, 3, 5, 1, 2, 7),
]


def trained(layer, height, width, steps=25):
    """The layer after some SGD on noise, in eval mode."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer.train()
    for _ in range(steps):
        x = torch.randn(2, layer.in_channels, height, width, generator=generator)
        y = layer(x.to(layer.weight.dtype))
        target = torch.randn(y.shape, generator=generator)
        optimizer.zero_grad()
        (y - target).square().mean().backward()
        optimizer.step()
    return layer.eval()


@pytest.mark.parametrize("scale", [0.7, 1.0])
@pytest.mark.parametrize("arguments", LAYERS)
def test_singular_values(arguments, scale):
    torch.manual_seed(0)
    *arguments, height, width = arguments
    layer = SOC(*arguments, scale=scale, tol=1e-5).double()
    trained(layer, height, width)
    matrix = matrix_of(layer, arguments[0], height, width)
    values = torch.linalg.svdvals(matrix)
    assert values.max() <= layer.lipschitz_bound() + 1e-12
    assert layer.lipschitz_bound() == 1
    # Padded channels and dropped ones leave an isometry or its transpose.
    inner, out = arguments[0] * arguments[3] ** 2, arguments[1]
    assert matrix.shape == (out * matrix.shape[1] // inner, matrix.shape[1])
    if out >= inner:
        assert values.min() >= 1 - 1e-5


def test_float32_layers_are_orthogonal_too():
    torch.manual_seed(0)
    layer = trained(SOC(6, 6), 4, 4)
    matrix = matrix_of(lambda x: layer(x.float()).double(), 6, 4, 4)
    values = torch.linalg.svdvals(matrix)
    assert values.max() <= 1 + 1e-6
    assert values.min() >= 1 - 2e-6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("out", [3, 8, 12])
def test_shapes_of_a_same_padded_convolution(stride, out):
    x = torch.randn(2, 3, 8, 6)
    for size in (1, 3, 5):
        expected = nn.Conv2d(3, out, size, stride, size // 2)(x)
        for mode in (True, False):
            assert SOC(3, out, size, stride).train(mode)(x).shape == expected.shape
    assert SOC(3, out, bias=False).bias is None


def test_training_approximates_eval():
    torch.manual_seed(0)
    layer = SOC(8, 8, scale=0.7)
    x = torch.randn(4, 8, 7, 7)
    y = layer(x)
    expected = layer.eval()(x)
    error = (y - expected).norm() / x.norm()
    assert 1e-6 < error < 5e-3
    layer = SOC(8, 8, 1)
    assert (layer(x) - layer.eval()(x)).norm() / x.norm() < 2e-3
    small = torch.randn(2, 8, 2, 2)
    assert (layer(small) - layer.train()(small)).norm() / small.norm() < 2e-3


def test_gradients_reach_the_weight():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for size in (1, 3):
        layer = SOC(3, 4, size).double()
        for _ in range(400):
            layer(x)  # until the singular vectors, constant in the gradient, have converged
        layer.eval()

        def of_weight(weight, layer=layer):
            # A product: what is kept does not see writes through .data, which gradcheck makes.
            return torch.func.functional_call(layer, {"weight": 1 * weight}, x)

        assert torch.autograd.gradcheck(of_weight, layer.weight.detach().requires_grad_())
        layer.train()
        layer(x).square().sum().backward()
        assert layer.weight.grad.norm() > 0
        assert layer.bias.grad.norm() > 0


def test_recompute_gives_the_same_gradients():
    torch.manual_seed(0)
    layer = SOC(4, 4)
    twin = copy.deepcopy(layer)
    twin.recompute = True
    x = torch.randn(2, 4, 6, 6)
    for module in (layer, twin):
        module(x).square().sum().backward()
    assert_close(twin.weight.grad, layer.weight.grad)


def cached(layer, x):
    """The layer's output, and whether it came from what was kept."""
    before = layer._kept
    with torch.no_grad():
        y = layer(x)
    return y, layer._kept is before


def fresh(layer, x):
    """The output of a copy that has nothing cached."""
    with torch.no_grad():
        return copy.deepcopy(layer)(x)


def reload(layer):
    other = SOC(3, 3)
    layer.load_state_dict({k: 2 * v if k == "bias" else v for k, v in other.state_dict().items()})


def step(layer):
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(1, 3, 4, 4)).square().sum().backward()
    optimizer.step()


def in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight))


def replace(layer):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def replace_data(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def train_once(layer):
    layer.train()(torch.randn(1, 3, 4, 4))
    layer.eval()


def rescale(layer):
    layer.scale.fill_(0.5)


def other_tol(layer):
    layer.tol = 1e-2


CHANGES = [reload, step, in_place, replace, replace_data, train_once, rescale, other_tol]


@pytest.mark.parametrize("change", CHANGES)
def test_cache_follows_every_change(change):
    torch.manual_seed(0)
    layer, x = SOC(3, 3).eval(), torch.randn(2, 3, 4, 4)
    y, _ = cached(layer, x)
    again, kept = cached(layer, x)
    assert kept
    assert_same(again, y)
    change(layer)
    y, kept = cached(layer, x)
    assert not kept
    assert_same(y, fresh(layer, x))
    assert cached(layer, x)[1]


def test_cache_follows_to():
    layer, x = SOC(3, 3).eval(), torch.randn(2, 3, 4, 4)
    y, _ = cached(layer, x)
    wide, kept = cached(layer.double(), x.double())
    assert not kept
    assert wide.dtype == torch.float64
    assert_close(wide, y.double(), torch.float32)
    half, _ = cached(layer.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded._kept is None
    assert_same(cached(loaded, x.bfloat16())[0], half)


def test_eval_gradients_reach_the_weight_past_the_cache():
    layer, x = SOC(3, 3).eval(), torch.randn(2, 3, 4, 4)
    y, _ = cached(layer, x)
    with_graph = layer(x)
    assert_same(with_graph.detach(), y)
    with_graph.square().sum().backward()
    assert layer.weight.grad is not None


def test_state_dict_round_trip():
    torch.manual_seed(0)
    layer = trained(SOC(3, 4, scale=0.7), 4, 4, 3)
    other = SOC(3, 4).eval()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert_same(other(x), layer(x))
    assert float(other.scale) == pytest.approx(0.7)


def published_state(layer, style):
    """What the published layers save for the same weight, by the names of either repository."""
    c, k = layer.weight.shape[0], layer.kernel_size
    vectors = {
        name: torch.randn(shape)
        for name, shape in {
            "u1": (1, c, 1, k), "v1": (c, 1, k, 1), "u2": (1, c, k, 1), "v2": (c, 1, 1, k),
            "u3": (1, c, k, k), "v3": (c, 1, 1, 1), "u4": (c, 1, k, k), "v4": (1, c, 1, 1),
        }.items()
    }  # fmt: skip
    vectors.update({n: getattr(layer, f"_{n}") for n in ("u1", "v1", "u3", "v3")})
    if style == "soc":
        return {
            "random_conv_filter": layer.weight.detach(), "bias": layer.bias.detach(),
            "correction": torch.tensor([0.7]), **vectors,
        }  # fmt: skip
    return {
        "weight": layer.weight.detach(), "bias": layer.bias.detach(),
        **{f"_{name}": v for name, v in vectors.items()},
    }  # fmt: skip


@pytest.mark.parametrize("style", ["soc", "improved"])
def test_published_checkpoints_load(style):
    torch.manual_seed(0)
    source = trained(SOC(3, 4, scale=0.7 if style == "soc" else 1.0), 4, 4, 3)
    layer = SOC(3, 4).eval()
    layer.load_state_dict(published_state(source, style))
    x = torch.randn(2, 3, 4, 4)
    assert_same(layer(x), source(x))
    # And it is the published function: 12 terms of the series with sigma the smallest norm.
    weight = source.weight.double()
    skew = (weight - weight.transpose(0, 1).flip(2, 3)) / 2
    norms = [skew.permute(0, 2, 1, 3).reshape(12, 12), skew.reshape(4, -1)]
    sigma = min(torch.linalg.matrix_norm(n, ord=2) for n in norms)
    term = y = torch.nn.functional.pad(x.double(), (0, 0, 0, 0, 0, 1))
    for i in range(1, 16):
        term = torch.conv2d(term, source.scale.double() * skew / sigma, padding=1) / i
        y = y + term
    expected = y + source.bias.double().view(-1, 1, 1)
    assert (layer(x) - expected).norm() < 1e-4 * x.norm()


def test_zero_weights_are_the_identity():
    layer = SOC(3, 3, bias=False)
    nn.init.zeros_(layer.weight)
    x = torch.randn(2, 3, 4, 4)
    assert (layer(x) - x).norm() < 1e-3 * x.norm()  # of degree 4
    assert_close(layer.eval()(x), x)


def test_channels_last_is_kept():
    layer = SOC(4, 8).eval()
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles():
    layer = SOC(4, 4)
    x = torch.randn(2, 4, 6, 6)
    expected = layer.eval()(x)
    assert_close(torch.compile(layer, backend="aot_eager")(x), expected)


BAD = [
    (lambda: SOC(3, 3, 2), "kernel_size: got 2, want an odd integer"),
    (lambda: SOC(0, 3), "in_channels: got 0"),
    (lambda: SOC(3, 3, stride=0), "stride: got 0"),
    (lambda: SOC(3, 3, scale=-1.0), "scale: got -1.0"),
    (lambda: SOC(3, 3, tol=0.0), "tol: got 0.0"),
    (lambda: SOC(3, 3, train_degree=0), "train_degree: got 0"),
    (lambda: SOC(3, 3)(torch.zeros(1, 4, 4, 4)), r"x: got shape \[1, 4, 4, 4\], want \[N, 3"),
    (lambda: SOC(3, 3, stride=2)(torch.zeros(1, 3, 5, 4)), "x: .* want sides that 2 divides"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_weight_that_is_not_finite_has_no_bound():
    layer = SOC(3, 3).eval()
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight: is not finite"):
        layer.lipschitz_bound()


@pytest.mark.parametrize("which", ["mixed", "flat", "zero"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_the_training_map(which, recompute):
    """Backward builds the kernel again; the same through the graph of its definition."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight, scale = draw(2, 4, 5, 3), draw(4, 4, 3, 3), torch.tensor(0.7, dtype=torch.float64)
    skewed = weight - weight.transpose(0, 1).flip(2, 3)
    vectors = []
    for matrix in reshapes(skewed):
        u, _, vh = torch.linalg.svd(matrix)
        vectors += [vh[0], u[:, 0]]
    if which == "mixed":
        vectors[0] = vectors[0] / 3  # makes the first of the two the smaller
    if which == "flat":
        vectors[2] = vectors[2] / 3
    if which == "zero":
        weight.zero_()
    vectors = SingularVectors(*vectors)
    x.requires_grad_(), weight.requires_grad_()
    series = exp_series(1.5, degree=3)

    def composed(x, weight):
        return apply_series(x, normalised_filter(weight, scale, vectors), series)

    def fused(x, weight):
        return skew_conv_exp(x, weight, scale, vectors, series, recompute)

    y = fused(x, weight)
    assert_close(y, composed(x, weight))
    grad = draw(*y.shape)
    wanted = torch.autograd.grad(composed(x, weight), (x, weight), grad)
    for a, b in zip(torch.autograd.grad(y, (x, weight), grad), wanted, strict=True):
        assert_close(a, b)
    if which != "zero":
        assert torch.autograd.gradgradcheck(fused, (x, weight))


def test_the_training_map_keeps_no_kernel():
    layer = SOC(16, 16, recompute=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(1, 16, 4, 4, requires_grad=True))
    large = [t for t in kept if t.numel() >= layer.weight.numel()]
    assert all(t.data_ptr() == layer.weight.data_ptr() for t in large)
