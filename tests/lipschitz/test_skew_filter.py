"""The kernels of a SOC's filter against its definition: norms, value and gradient."""

import pytest
import torch

from robustcore.lipschitz import SOC
from robustcore.ops.lipschitz.skew import skew
from robustcore.ops.lipschitz.soc import (
    SingularVectors,
    has_kernels,
    normalised_filter,
    power_step,
    reshapes,
)
from testing import assert_close, assert_same, check_repeatable

raw = torch.ops.robustcore
SHAPES = [(1, 1), (5, 3), (16, 5), (40, 3), (70, 1), (9, 7)]  # channels, side
NARROW = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
pytestmark = pytest.mark.kernel


def made(channels, side, seed=0):
    """A weight and vectors, shaped as a layer keeps them, of length 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    c, k = channels, side
    vectors = [draw(1, c, 1, k), draw(c, 1, k, 1), draw(1, c, k, k), draw(c, 1, 1, 1)]
    return draw(c, c, k, k) / c**0.5, SingularVectors(*(v / v.norm() for v in vectors))


def moved(vectors, *to):
    return SingularVectors(*(v.to(*to) for v in vectors))


def step_by_torch(weight, vectors):
    """In float64: each vector from the other, over its norm, and ``v^T M u`` of both matrices."""
    u1, _, u3, _ = (v.double().flatten() for v in vectors)
    mixed, flat = reshapes(skew(weight.double()))
    v1, v3 = mixed @ u1, flat @ u3
    v1, v3 = v1 / v1.norm(), v3 / v3.norm()
    u1, u3 = v1 @ mixed, v3 @ flat
    u1, u3 = u1 / u1.norm(), u3 / u3.norm()
    return (u1, v1, u3, v3), torch.stack([v1 @ mixed @ u1, v3 @ flat @ u3])


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_a_step_of_power_iteration(shape, size, device):
    weight, vectors = made(*shape)
    weight *= size
    want, norms = step_by_torch(weight, vectors)
    kept = SingularVectors(*(v.clone() for v in vectors))
    got, found = power_step(weight, kept)
    for a, b, c in zip(got, want, kept, strict=True):
        assert_close(a.flatten(), b)
        assert_same(a, c)
    assert_close(found[:2] / size, norms / size)
    least = 1e-3 * max(0.1 * shape[0] ** -0.5, float(weight.abs().max()))
    assert float(found[2]) == pytest.approx(least, rel=1e-6)
    there = moved(vectors, device)
    on_device = power_step(weight.to(device), there)
    for a, b in zip((*on_device[0], *there, on_device[1]), (*got, *kept, found), strict=True):
        assert_same(a.cpu(), b)


def test_vectors_stay_where_the_weight_is_zero(device):
    weight, vectors = made(7, 3)
    got, norms = power_step(0 * weight.to(device), moved(vectors, device))
    for a, b in zip(got, vectors, strict=True):
        assert_same(a.cpu(), b)
    assert norms[:2].tolist() == [0, 0]


def test_a_weight_that_is_not_finite_gives_a_filter_that_is_not():
    weight, vectors = made(7, 3)
    weight[2, 3, 1, 1] = float("nan")
    _, norms = power_step(weight, vectors)
    filter = raw.skew_filter(weight, torch.tensor(0.7), norms, weight, False)
    assert filter.isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_filter(shape, dtype, layout, device):
    weight, vectors = made(*shape)
    fresh, norms = power_step(weight, vectors)
    scale, like = torch.tensor(0.7), torch.empty(0, dtype=dtype)
    got = raw.skew_filter(weight, scale, norms, like, layout is torch.channels_last)
    assert got.is_contiguous(memory_format=layout)
    wide = normalised_filter(weight.double(), scale.double(), moved(fresh, torch.float64))
    assert_close(got, wide)
    assert_same(got, -got.transpose(0, 1).flip(2, 3) + 0.0)  # skew to the bit
    there = [t.to(device) for t in (weight, scale, norms, like)]
    assert_same(raw.skew_filter(*there, layout is torch.channels_last).cpu(), got)


@pytest.mark.parametrize("which", ["mixed", "flat", "clamped"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(5, 3), (40, 3), (6, 1), (9, 5)])
def test_the_gradient(shape, dtype, layout, which, device):
    weight, vectors = made(*shape)
    fresh, norms = power_step(weight, vectors)
    if which == "clamped":
        norms[2] = 2 * norms[:2].max()
    else:  # a vector that is shorter makes its norm the smaller one
        fresh[0 if which == "mixed" else 2].div_(20)
        norms[0 if which == "mixed" else 1] /= 20
    scale = torch.tensor(0.7)
    grads = [
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(s)).to(dtype)
        .contiguous(memory_format=layout) for s in (1, 2)
    ]  # fmt: skip
    given = [*grads, 0.3, -1.2, weight, scale, norms, *fresh]
    got = raw.skew_filter_backward(*given)
    wide = weight.double().requires_grad_()
    if which == "clamped":
        value = skew(wide) * (scale / norms[2])
    else:
        value = normalised_filter(wide, scale.double(), moved(fresh, torch.float64))
    upstream = 0.3 * grads[0].double() - 1.2 * grads[1].double()
    (want,) = torch.autograd.grad(value, wide, upstream)
    assert_close(got / want.abs().max(), want / want.abs().max(), torch.float32)
    there = [t.to(device) if isinstance(t, torch.Tensor) else t for t in given]
    assert_same(raw.skew_filter_backward(*there).cpu(), got)
    alone = raw.skew_filter_backward(upstream.float().contiguous(), None, 1.0, 0.0, *given[4:])
    assert_close(alone / want.abs().max(), want / want.abs().max(), torch.float32)


def everything(weight, vectors, dtype=torch.float32):
    fresh, norms = power_step(weight, SingularVectors(*(v.clone() for v in vectors)))
    scale = torch.tensor(0.7)
    filter = raw.skew_filter(weight, scale, norms, weight.to(dtype), False)
    grad = raw.skew_filter_backward(filter + 1, filter, 0.3, 2.0, weight, scale, norms, *fresh)
    return torch.cat([t.flatten().float() for t in (*fresh, norms, filter, grad)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NARROW)
def test_bits_on_every_instruction_set_and_any_threads(shape, dtype, simd):
    weight, vectors = made(*shape)
    want = everything(weight, vectors, dtype)
    simd()
    assert_same(everything(weight, vectors, dtype), want)
    check_repeatable(lambda: everything(weight, vectors, dtype))


def test_opcheck():
    weight, vectors = made(5, 3)
    torch.library.opcheck(raw.skew_power.default, (weight, *vectors))
    fresh, norms = power_step(weight, vectors)
    scale = torch.tensor(0.7)
    for last in (False, True):
        like = torch.empty(2, dtype=torch.bfloat16)
        torch.library.opcheck(raw.skew_filter.default, (weight, scale, norms, like, last))
    given = (weight + 1, None, 1.0, 0.0, weight, scale, norms, *fresh)
    torch.library.opcheck(raw.skew_filter_backward.default, given)


def test_bad_input():
    weight, vectors = made(5, 3)
    fresh, norms = power_step(weight, vectors)
    scale = torch.tensor(0.7)
    with pytest.raises(ValueError, match=r"weight: got shape \[5, 5, 9, 9\]"):
        raw.skew_power(torch.zeros(5, 5, 9, 9), *vectors)
    with pytest.raises(ValueError, match=r"u1: got float32 \[1, 4, 1, 3\], want 15 contiguous"):
        raw.skew_power(weight, vectors.u1[:, :4], *vectors[1:])
    with pytest.raises(ValueError, match="weight: got float64"):
        raw.skew_power(weight.double(), *vectors)
    with pytest.raises(ValueError, match="like: got float64, want float32, float16 or bfloat16"):
        raw.skew_filter(weight, scale, norms, weight.double(), False)
    with pytest.raises(ValueError, match=r"other: got float16 \[5, 5, 3, 3\], want as weight"):
        raw.skew_filter_backward(
            weight, weight.half(), 1.0, 1.0, weight, scale, norms, *fresh
        )  # fmt: skip


def step_of(layer, x):
    layer(x).square().sum().backward()
    return layer.weight.grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_in_any_form(layout):
    """Kernels where they reach, operations of torch elsewhere: the same training."""
    for side in (3, 9):
        torch.manual_seed(0)
        layer = SOC(4, 4, side)
        x = torch.randn(2, 4, 10, 10)
        layer(x)
        twin = SOC(4, 4, side).double()
        twin.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
        twin._radius, twin._until_refresh = layer._radius, layer._until_refresh
        layer = layer.to(memory_format=layout)
        assert has_kernels(layer.weight, layer.scale) == (side == 3)
        got, want = step_of(layer, x), step_of(twin, x.double())
        assert_close(got / want.norm(), want / want.norm(), torch.float32)
        for name in ("_u1", "_v1", "_u3", "_v3"):
            assert_close(getattr(layer, name), getattr(twin, name))
