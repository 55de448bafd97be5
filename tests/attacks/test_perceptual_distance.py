"""ops.perceptual_distance: the formula, zero columns, derivatives."""

import pytest
import torch

from robustcore import ops
from testing import check_gradients, relayouts

pytestmark = pytest.mark.kernel
SHAPES = [(3, 4, 5, 6), (3, 8, 2, 3), (3, 1, 1, 1)]


def layers(seed=0, dtype=torch.float64, zero=False):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    if zero:
        made[0][:, :, 1, 2] = 0
        made[1][1] = 0
    return [f.to(dtype) for f in made]


def weights():
    generator = torch.Generator().manual_seed(9)
    return [torch.rand(shape[1], generator=generator, dtype=torch.float64) for shape in SHAPES]


def by_hand(features, reference, weights=None):
    total = torch.zeros(len(features[0]), dtype=torch.float64)
    for layer, (f, r) in enumerate(zip(features, reference, strict=True)):
        for b in range(f.shape[0]):
            for h in range(f.shape[2]):
                for w in range(f.shape[3]):
                    one, other = f[b, :, h, w].double().cpu(), r[b, :, h, w].double().cpu()
                    gap = one / (one.norm() + 1e-10) - other / (other.norm() + 1e-10)
                    scale = 1.0 if weights is None else weights[layer].cpu()
                    total[b] += (scale * gap.square()).sum() / (f.shape[2] * f.shape[3])
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_formula(dtype, weighted, device):
    f, r = ([t.to(device) for t in layers(seed, dtype, zero=True)] for seed in (0, 1))
    w = [t.to(device) for t in weights()] if weighted else None
    got = ops.perceptual_distance(f, r, w)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.double().cpu(), by_hand(f, r, w), rtol=tolerance, atol=tolerance)
    assert (ops.perceptual_distance(f, f, w) == 0).all()
    scaled = [7 * t for t in f]  # only the direction counts
    tolerance = {torch.float64: 1e-9}.get(dtype, 5e-2 if dtype.itemsize == 2 else 1e-5)
    torch.testing.assert_close(ops.perceptual_distance(scaled, r, w), got, rtol=tolerance, atol=0)


def test_gradients_twice():
    f, r = ([t[:1, :, :2, :2] for t in layers(seed)] for seed in (0, 1))

    def distance(*tensors):
        return ops.perceptual_distance(tensors[:3], tensors[3:6], tensors[6:])

    check_gradients(distance, *(t.detach().requires_grad_() for t in (*f, *r, *weights())))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_columns_have_zero_gradients(dtype):
    f = [t.requires_grad_() for t in layers(0, dtype, zero=True)]
    r = [t.requires_grad_() for t in layers(1, dtype)]
    r[1].data[0] = 0
    total = ops.perceptual_distance(f, r).sum()
    grads = torch.autograd.grad(total, [*f, *r], create_graph=True)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][:, :, 1, 2] == 0).all()
    assert (grads[1][1] == 0).all()
    assert (grads[4][0] == 0).all()
    assert grads[0].abs().sum() > 0
    seconds = torch.autograd.grad(sum(g.square().sum() for g in grads), [*f, *r])
    assert all(g.isfinite().all() for g in seconds)
    assert (seconds[1][1] == 0).all()


def test_layouts_and_vmap():
    f, r = layers(0, torch.float32), layers(1, torch.float32)
    want = ops.perceptual_distance(f, r)
    for first in relayouts(f[0]).values():
        assert torch.equal(ops.perceptual_distance([first, *f[1:]], r), want)
    mapped = torch.func.vmap(lambda *t: ops.perceptual_distance(t[:3], t[3:]))
    both = [torch.stack([a, b]) for a, b in zip([*f, *r], [*r, *f], strict=True)]
    torch.testing.assert_close(mapped(*both), torch.stack([want, want]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_images_bits_are_its_own(dtype, device):
    f, r = (torch.cat([t.to(device) for t in layers(seed, dtype)[:1]] * 5) for seed in (0, 1))
    w = [t.to(device) for t in weights()[:1]]
    leaf = f.clone().requires_grad_()
    pixels = torch.arange(len(f), device=device) + 1.0

    def gradient(leaf, r, scale):
        total = (ops.perceptual_distance([leaf], [r], w) * scale).sum()
        return torch.autograd.grad(total, leaf)[0]

    whole, threads = gradient(leaf, r, pixels), torch.get_num_threads()
    assert whole.dtype == dtype
    for b in (0, 7):
        one = f[b : b + 1].clone().requires_grad_()
        assert torch.equal(gradient(one, r[b : b + 1], pixels[b : b + 1]), whole[b : b + 1])
    torch.set_num_threads(1)
    try:
        assert torch.equal(gradient(leaf, r, pixels), whole)
    finally:
        torch.set_num_threads(threads)


def test_what_is_differentiated_again_has_the_kernels_values():
    f, r = layers(0, torch.float64, zero=True)[:1], layers(1)[:1]
    leaves = [t.clone().requires_grad_() for t in (*f, *r)]
    total = ops.perceptual_distance(leaves[:1], leaves[1:], weights()[:1]).sum()
    fused = torch.autograd.grad(total, leaves, retain_graph=True)
    composed = torch.autograd.grad(total, leaves, create_graph=True)
    assert not fused[0].requires_grad
    assert composed[0].requires_grad
    for a, b in zip(fused, composed, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-14)


def test_opcheck():
    raw = torch.ops.robustcore
    f, r = (layers(seed, torch.float32)[0] for seed in (0, 1))
    w, tests = weights()[0].float(), ("test_schema", "test_faketensor")
    torch.library.opcheck(raw.perceptual_distance.default, (f, r, w), test_utils=tests)
    upstream = raw.perceptual_distance(f, r, w)
    for wanted in ((True, True), (True, False)):
        arguments = (upstream, f, r, None, *wanted)
        torch.library.opcheck(raw.perceptual_distance_backward.default, arguments, test_utils=tests)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    f, r = layers(0, torch.float32), layers(1, torch.float32)
    want = ops.perceptual_distance(f, r)
    compiled = torch.compile(ops.perceptual_distance, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(f, r), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.rand(3, 4, 5, 6)}, TypeError, "features: got Tensor"),
        ({"features": []}, ValueError, "features: got 0 layers"),
        ({"reference": layers(1)[:2]}, ValueError, "reference: got 2 layers, want 3"),
        ({"reference": layers(1, torch.float32)}, TypeError, "reference: got torch.float32"),
        ({"reference": [t[:2] for t in layers(1)]}, ValueError, "reference: got shape"),
        ({"features": [t[0] for t in layers(1)]}, ValueError, "features: got shape"),
        ({"weights": weights()[:2]}, ValueError, "weights: got 2 layers, want 3"),
        ({"weights": weights()[::-1]}, ValueError, "weights: got shape"),
        ({"weights": [t.int() for t in weights()]}, TypeError, "weights: got torch.int32"),
    ],
)
def test_bad_input(change, error, message):
    given = dict(features=layers(), reference=layers(1), weights=weights())
    with pytest.raises(error, match=message):
        ops.perceptual_distance(**{**given, **change})
