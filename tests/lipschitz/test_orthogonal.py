"""Orthogonal layers: dense matrices by identity batches, what is refused, export, eval's filter."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from robustcore import lipschitz as lip
from robustcore.lipschitz.filters import Shape, orthogonal_filter
from testing import assert_close, assert_same

C1, C2, C3 = lip.OrthogonalConv1d, lip.OrthogonalConv2d, lip.OrthogonalConv3d
T1, T2, T3 = (
    lip.OrthogonalConvTranspose1d,
    lip.OrthogonalConvTranspose2d,
    lip.OrthogonalConvTranspose3d,
)
ZEROS = {"padding_mode": "zeros"}
# kind, arguments, options, sides of the image, sides of the result
ORTHOGONAL = [
    (C2, (4, 4, 3), {}, (5, 6), (5, 6)),
    (C2, (3, 7, 3), {}, (5, 6), (5, 6)),
    (C2, (7, 3, 3), {}, (5, 6), (5, 6)),
    (C2, (4, 6, 3, 1, 1), {}, (5, 6), (5, 6)),
    (C2, (3, 16, 3, 2), {}, (4, 6), (2, 3)),
    (C2, (3, 5, 5, 2), {}, (4, 6), (2, 3)),
    (C2, (3, 5, 4, 2), {}, (4, 6), (2, 3)),
    (C2, (3, 5, 2, 2), {}, (4, 6), (2, 3)),
    (C2, (3, 5, 3, (2, 3)), {}, (4, 6), (2, 2)),
    (C2, (3, 5, (3, 2)), {}, (4, 6), (4, 6)),
    (C2, (4, 6, 3), {"groups": 2, "dilation": 2}, (5, 6), (5, 6)),
    (C2, (4, 6, 3, 2), {"groups": 2, "dilation": 3}, (6, 6), (3, 3)),
    (C2, (3, 3, 3), {"groups": 3}, (5, 6), (5, 6)),
    (C2, (4, 4, 1), {}, (2, 3), (2, 3)),
    (C1, (4, 6, 5), {}, (9,), (9,)),
    (C3, (2, 3, 3), {}, (3, 4, 3), (3, 4, 3)),
    (T2, (4, 4, 3), {}, (5, 6), (5, 6)),
    (T2, (4, 3, 3, 2), {}, (3, 4), (6, 8)),
    (T2, (5, 3, 4, 2), {}, (3, 4), (6, 8)),
    (T2, (5, 3, 4), {}, (3, 4), (3, 4)),
    (T2, (12, 3, 3, 3), {}, (3, 4), (9, 12)),
    (T1, (4, 6, 3), {}, (5,), (5,)),
    (T3, (4, 2, 3, 2), {}, (2, 3, 2), (4, 6, 4)),
]
# At most 1, and not orthogonal at the border.
CONTRACTIVE = [
    (C2, (4, 6, 3, 1, "valid"), {}, (5, 6), (3, 4)),
    (C2, (4, 6, 3, 2, 0), {}, (6, 6), (2, 2)),
    (C2, (4, 6, 3, 2), ZEROS, (5, 6), (3, 3)),
    (C2, (4, 6, 4, 2), ZEROS, (5, 6), (3, 3)),
    (C2, (2, 3, 3, 1, 3), ZEROS, (4, 4), (8, 8)),
    (T2, (5, 3, 4), ZEROS, (3, 4), (3, 4)),
    (T2, (5, 3, 3, 3), ZEROS, (3, 4), (9, 12)),
    (T2, (12, 3, 3, 2, 1), ZEROS, (3, 4), (5, 7)),
    (T1, (12, 3, 3, 2, 0), {}, (3,), (7,)),
]


def trained(layer, x, steps=25):
    """The layer after some SGD on noise, in eval mode."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(steps):
        y = layer(x)
        optimizer.zero_grad()
        (y - torch.randn_like(y)).square().mean().backward()
        optimizer.step()
    return layer.eval()


def singular_values(layer, channels, sides, dtype=torch.float64):
    n = channels * math.prod(sides)
    images = torch.eye(n, dtype=dtype).reshape(n, channels, *sides)
    with torch.no_grad():
        matrix = (layer(images) - layer(torch.zeros_like(images[:1]))).flatten(1)
    return torch.linalg.svdvals(matrix.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "arguments", "options", "sides", "out"), ORTHOGONAL + CONTRACTIVE)
def test_singular_values(kind, arguments, options, sides, out, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, arguments[0], *sides, dtype=dtype)
    layer = trained(kind(*arguments, **options, dtype=dtype), x)
    assert layer(x).shape[2:] == out
    values = singular_values(layer, arguments[0], sides, dtype)
    assert layer.lipschitz_bound() == 1
    assert values.max() <= 1 + (1e-7 if dtype == torch.float64 else 3e-7)
    if (kind, arguments, options, sides, out) in ORTHOGONAL:
        assert values.min() >= 1 - (1e-6 if dtype == torch.float64 else 1e-5)
    assert_close(layer.train()(x), layer.eval()(x), torch.float32)
    exported = layer.export()
    assert_close(exported(x), layer(x))
    assert all(type(m).__module__.startswith("torch.nn") for m in exported.modules())


@pytest.mark.parametrize("channels", [32, 256])
def test_a_wide_filter_keeps_the_norm(channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 4, 4)
    layer = trained(C2(channels, channels, 3, bias=False), x, 3)
    with torch.no_grad():
        assert abs(layer(x).norm() / x.norm() - 1) < 1e-5
        assert abs(layer.double()(x.double()).norm() / x.double().norm() - 1) < 1e-6


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (5, 3)])
def test_linear(rows, columns):
    torch.manual_seed(0)
    x = torch.randn(7, columns, dtype=torch.float64)
    layer = trained(lip.OrthogonalLinear(columns, rows, dtype=torch.float64), x)
    values = torch.linalg.svdvals(layer.filter.detach())
    assert values.min() > 1 - 1e-9
    assert values.max() <= 1
    assert type(layer.export()) is nn.Linear
    assert_same(layer.export()(x), layer(x))


def test_same_padding_is_that_of_torch():
    """The exported module says what the layer does; here against nn.Conv2d by its own words."""
    x = torch.randn(2, 3, 6, 8)
    for size in (1, 3, 5):
        for stride in (1, 2):
            if size < stride:
                continue
            ours = C2(3, 4, size, stride).eval()
            torchs = nn.Conv2d(3, 4, size, stride, size // 2, padding_mode="circular")
            torchs.load_state_dict({"weight": ours.filter, "bias": ours.bias})
            assert_close(ours(x), torchs(x))


@pytest.mark.parametrize(
    "shape",
    [Shape(1, 3, 3, (2, 2), (1, 1)), Shape(2, 2, 3, (3,), (2,)), Shape(1, 4, 2, (3,), (1,))],
)
def test_gradients_of_the_filter(shape):
    torch.manual_seed(0)
    inputs = [
        torch.randn(form, dtype=torch.float64, requires_grad=True)
        for form in (shape.weight, shape.bases)
    ]

    def filter(weight, bases):
        return orthogonal_filter(shape, weight, bases)

    assert torch.autograd.gradcheck(filter, inputs)
    assert torch.autograd.gradgradcheck(filter, inputs)
    # At equal singular values, where gradients through a decomposition would be infinite.
    inputs[0] = nn.init.orthogonal_(inputs[0].detach()[0])[None].requires_grad_()
    assert torch.autograd.gradcheck(filter, inputs)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
@pytest.mark.parametrize("fill", ["ones", "eye", "random"])
def test_degenerate_parameters(fill, scale):
    torch.manual_seed(0)
    layer, x = C2(4, 4, 3), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        for p in (layer.weight, layer.bases):
            values = {"ones": torch.ones_like(p), "random": torch.randn_like(p)}
            values["eye"] = torch.eye(*p.shape[-2:]).expand_as(p)
            p.copy_(scale * values[fill])
    layer(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.eval().lipschitz_bound() <= 1 + 1e-6
    assert singular_values(layer, 4, (5, 5), torch.float32).max() <= 1 + 1e-6


def test_bad_values_have_no_bound():
    layer = C2(4, 4, 3).eval()
    with torch.no_grad():
        layer.bases[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="bases: is not finite"):
        layer.lipschitz_bound()


def test_eval_keeps_one_filter():
    """Forward with and without gradients, and the bound, read the same; a change is seen."""
    torch.manual_seed(0)
    layer, x = C2(4, 4, 3).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        before = layer(x)
    kept = layer._kept
    assert_same(layer(x).detach(), before)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().max() > 0
    layer.weight.data.copy_(torch.randn_like(layer.weight))  # no version counter shows it
    assert_same(layer(x).detach(), before)
    assert layer._kept is kept
    with torch.no_grad():
        layer.weight.add_(0.0)
    assert (layer(x) - before).abs().max() > 0.1
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()


def test_copies_pickles_and_half_precision():
    torch.manual_seed(0)
    layer, x = C2(4, 4, 3).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        y = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert_same(twin(x), y)
        other = C2(4, 4, 3).eval()
        other(x)
        other.load_state_dict(layer.state_dict())
        assert_same(other(x), y)
        for dtype in (torch.bfloat16, torch.float16):
            half = copy.deepcopy(layer).to(dtype)
            assert (half(x.to(dtype)) - y).abs().max() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.train()(x).dtype == torch.bfloat16
        layer(x).float().sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert C2(4, 4, 3)(x[:0]).shape == x[:0].shape


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_functional_transforms():
    torch.manual_seed(0)
    layer, x = C2(2, 2, 3).double(), torch.randn(3, 2, 4, 4, dtype=torch.float64)

    def loss(weight, image):
        return torch.func.functional_call(layer, {"weight": weight}, image[None]).pow(3).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight.detach(), x)
    for i, image in enumerate(x):
        assert_close(each[i], torch.func.grad(loss)(layer.weight.detach(), image))
    layer.eval()
    y, tangent = torch.func.jvp(layer, (x,), (x,))
    assert_close(tangent, y - layer.bias.view(-1, 1, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiles_whole_with_dynamic_shapes():
    torch.manual_seed(0)
    layer = C2(4, 4, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (2, 3, 5):
        x = torch.randn(n, 4, 6, 6)
        assert_close(compiled(x), layer(x))
    layer.eval()
    expected = layer(x)
    assert_close(compiled(x), expected)
    step = layer.train()(x).sum()
    step.backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    layer.eval()
    after = compiled(x)
    assert (after - expected).abs().max() > 1e-3
    assert_close(after, layer(x), torch.float32)


@pytest.mark.parametrize(("kind", "arguments", "options", "sides", "_"), ORTHOGONAL[:6:5])
def test_exports(kind, arguments, options, sides, _):
    layer = kind(*arguments, **options).eval()
    x = torch.randn(2, arguments[0], *sides)
    program = torch.export.export(layer.export(), (x,))
    assert_close(program.module()(x), layer(x))


REFUSED = [
    (lambda: C2(4, 4, 1, 2), "kernel_size: got 1, want at least the stride 2"),
    (lambda: C2(4, 4, 3, 2, dilation=2), "dilation: got 2, want one without a common divisor"),
    (lambda: C2(4, 4, 3, 1, 2), "padding: got 2, want at most 1 with circular padding"),
    (lambda: C2(4, 4, 3, padding_mode="reflect"), "padding_mode: got 'reflect'"),
    (lambda: C2(4, 4, 3, padding="full"), "padding: got 'full'"),
    (lambda: C2(4, 6, 3, groups=4), "out_channels: got 6, want a multiple of 4 groups"),
    (lambda: C2(4, 4, (3, 3, 3)), "kernel_size: got .3, 3, 3., want an integer or 2"),
    (lambda: T2(4, 4, 3, 2, 1), "padding: got 1, want 'same' or 0 with circular padding"),
    (lambda: C2(4, 4, 3, 2)(torch.zeros(1, 4, 5, 4)), "x: .* want sides that the stride"),
    (lambda: C2(4, 4, 2, 2)(torch.zeros(1, 4, 5, 4)), "x: .* want sides that the stride"),
    (lambda: C2(4, 4, 9)(torch.zeros(1, 4, 3, 9)), "x: .* want sides of at least 4, the padding"),
    (lambda: C2(4, 4, 3)(torch.zeros(1, 3, 4, 4)), r"x: got shape .*, want \[N, 4, n, n\]"),
    (lambda: lip.OrthogonalLinear(3, 0), "out_features: got 0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
