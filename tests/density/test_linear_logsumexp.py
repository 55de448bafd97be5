"""ops.linear_logsumexp: values, chunks, targets, derivatives, memory, dtypes, errors."""

import pytest
import torch

from robustcore import ops
from robustcore.ops.density import linear_chunks
from robustcore.ops.density import linear_logsumexp as topic
from testing import assert_same, check_gradients, check_repeatable

# Of cut-cross-entropy's own tests, with their shapes and inputs.
TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SHAPES = [(256, 128, 512), (252, 128, 507), (252, 123, 507)]  # N, D, K


def layer(n, d, k, dtype=torch.float32, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    features, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((n, d), (k, d), (k,))
    )
    weight = weight / d**0.5
    targets = torch.randint(k, (n,), generator=generator)
    return *(t.requires_grad_(requires_grad) for t in (features, weight, bias)), targets


def eager(features, weight, bias=None, targets=None):
    logits = torch.nn.functional.linear(features, weight, bias)
    lse = logits.logsumexp(1)
    return lse if targets is None else (lse, logits.gather(1, targets.unsqueeze(1)).squeeze(1))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(linear_chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr(linear_chunks, "CHUNK_CLASSES", 4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cut_cross_entropys_tolerances(shape, dtype, device, monkeypatch):
    monkeypatch.setattr(linear_chunks, "CHUNK_CLASSES", 100)
    n, d, k = shape
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (torch.randn(s, generator=generator) for s in ((n, d), (k, d), (k,)))
    features = features / d**0.5
    weight[: min(n, k) // 2] = features[: min(n, k) // 2]
    inputs = [t.to(device, dtype).requires_grad_() for t in (features, weight, 0.02 * bias)]
    targets = torch.randint(k, (n,), generator=generator).to(device)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    lse, target = ops.linear_logsumexp(*inputs, targets=targets)
    want, want_target = eager(*wide, targets)
    assert lse.dtype == target.dtype == dtype
    tolerance = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse.double(), want, **tolerance)
    torch.testing.assert_close(target.double(), want_target, **tolerance)
    (lse - target).mean().backward()
    (want - want_target).mean().backward()
    for got, exact in zip(inputs, wide, strict=True):
        torch.testing.assert_close(got.grad.double(), exact.grad, **tolerance)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 11), (3, 2, 4), (6, 3, 8), (4, 1, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_any_chunks(shape, with_bias, small_chunks):
    features, weight, bias, targets = layer(*shape, torch.float64)
    bias = bias if with_bias else None
    lse, target = ops.linear_logsumexp(features, weight, bias, targets=targets)
    want, want_target = eager(features, weight, bias, targets)
    torch.testing.assert_close(lse, want)
    torch.testing.assert_close(target, want_target)
    inputs = [t for t in (features, weight, bias) if t is not None]
    loss, want_loss = (lse * 2 - target).sin().sum(), (want * 2 - want_target).sin().sum()
    for got, exact in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(want_loss, inputs), strict=True
    ):
        torch.testing.assert_close(got, exact)


def test_gradients(small_chunks, device):
    features, weight, bias, targets = layer(7, 3, 9, torch.float64)
    features, weight, bias = (
        t.detach().to(device).requires_grad_() for t in (features, weight, bias)
    )
    targets = targets.to(device)
    check_gradients(ops.linear_logsumexp, features, weight)
    check_gradients(lambda *t: ops.linear_logsumexp(*t, targets=targets), features, weight, bias)


def penalty(lse, features, p=2.0):
    (g,) = torch.autograd.grad(lse.sum(), features, create_graph=True)
    return ops.grad_norm(g, p).mean()


@pytest.mark.parametrize("with_targets", [True, False])
def test_double_backward_of_a_penalty(with_targets, small_chunks):
    # The way without a pass of its own for <p, u>: one cotangent, of the features.
    features, weight, bias, targets = layer(7, 5, 11, torch.float64)
    results = []
    for fn in (ops.linear_logsumexp, eager):
        if with_targets:
            lse, target = fn(features, weight, bias, targets=targets)
            value = penalty(lse - target, features)
        else:
            value = penalty(fn(features, weight, bias), features)
        results.append((value, *torch.autograd.grad(value, (features, weight, bias))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_rows_without_an_upstream_gradient(small_chunks):
    features, weight, bias, targets = layer(6, 3, 9, torch.float64)
    upstream = torch.tensor([1.0, 0, 2, 0, 0, -1], dtype=torch.float64)
    results = []
    for fn in (ops.linear_logsumexp, eager):
        lse, target = fn(features, weight, bias, targets=targets)
        (g,) = torch.autograd.grad((lse * upstream + target).sum(), features, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), (features, weight, bias)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_double_backward(dtype):
    features, weight, _, _ = layer(64, 32, 200, dtype)
    wide = [t.detach().double().requires_grad_() for t in (features, weight)]
    penalty(ops.linear_logsumexp(features, weight), features).backward()
    penalty(eager(*wide), wide[0]).backward()
    for got, want in zip((features, weight), wide, strict=True):
        error = (got.grad.double() - want.grad).abs().max() / want.grad.abs().max()
        assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_products_as_a_gpu_takes_them(dtype, small_chunks, monkeypatch):
    """Without a wider copy, products of narrow matrices in float32: the same results."""

    def results():
        torch.manual_seed(0)
        x, w = (torch.randn(n, 4, dtype=dtype, requires_grad=True) for n in (7, 11))
        lse = ops.linear_logsumexp(x, w)
        (grad,) = torch.autograd.grad(lse.sum(), x, create_graph=True)
        return lse, grad, *torch.autograd.grad(grad.float().square().sum(), (x, w))

    def product(out, a, b, first):
        assert a.dtype == b.dtype == dtype
        products.append(a.shape)
        out.copy_(a.float() @ b.float()) if first else out.add_(a.float() @ b.float())

    wanted, products = results(), []
    monkeypatch.setattr(linear_chunks, "_multiplies_exactly", lambda *_: True)
    monkeypatch.setattr(linear_chunks, "_add_exact_product", product)
    for got, want in zip(results(), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=2**-7)
    assert len(products) > 10


def test_the_weights_gradient_is_not_computed_for_nothing(monkeypatch):
    features, weight, bias, _ = layer(8, 4, 6)
    asked = []
    backward = topic._LinearLogSumExpBackward.apply

    def spy(*arguments):
        asked.append(arguments[-2])
        return backward(*arguments)

    monkeypatch.setattr(topic._LinearLogSumExpBackward, "apply", spy)
    hidden = features * 1
    torch.autograd.grad(ops.linear_logsumexp(hidden, weight, bias).sum(), hidden)
    ops.linear_logsumexp(hidden, weight, bias).sum().backward()
    assert [a[:2] for a in asked] == [(True, False), (True, True)]


def test_a_penalty_does_not_come_back_to_the_forward(monkeypatch):
    # lse is a constant of the backward pass; were it not detached there, the engine would compute
    # both gradients again, from zeros.
    features, weight, bias, _ = layer(8, 4, 6)
    value = penalty(ops.linear_logsumexp(features, weight, bias), features)
    monkeypatch.setattr(
        topic._LinearLogSumExpBackward, "apply", lambda *_: pytest.fail("came back")
    )
    value.backward()
    assert weight.grad.abs().max() > 0


def test_third_derivative_is_refused():
    features, weight, bias, _ = layer(3, 2, 4, torch.float64)
    value = penalty(ops.linear_logsumexp(features, weight, bias), features)
    (second,) = torch.autograd.grad(value, features, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable twice"):
        second.sum().backward()


def test_memory():
    n, d, k = 1024, 16, 20_000
    features, weight, bias, _ = layer(n, d, k)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        penalty(ops.linear_logsumexp(features, weight, bias), features).backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    buffers = 2 * 4 * n * linear_chunks.CHUNK_CLASSES
    gradients = 4 * (2 * (k * d + k) + 8 * n * d)
    assert peak < buffers + gradients + 2**20
    assert peak < 4 * n * k / 4  # the logits alone are four times that


def test_extremes(small_chunks):
    features, weight, bias, targets = layer(5, 3, 10, requires_grad=False)
    bias[2] = -float("inf")
    features[1] *= 1e30
    lse = ops.linear_logsumexp(features, weight, bias)
    torch.testing.assert_close(lse, eager(features, weight, bias))
    targets[3] = 10
    targets[4] = -7
    assert ops.linear_logsumexp(features, weight, bias, targets=targets)[1][3:].isnan().all()


def test_empty_batch():
    features, weight, bias, targets = layer(0, 3, 10)
    lse, target = ops.linear_logsumexp(features, weight, bias, targets=targets)
    (lse - target).sum().backward()
    assert lse.shape == target.shape == (0,)
    assert (weight.grad == 0).all()
    assert (bias.grad == 0).all()


def test_repeatable_and_any_layout(small_chunks):
    features, weight, bias, targets = layer(20, 8, 30, requires_grad=False)
    expected = ops.linear_logsumexp(features, weight, bias, targets=targets)
    laid = features.t().contiguous().t(), weight.t().contiguous().t(), bias.repeat(2)[30:]
    far = torch.stack([targets, targets], 1)[:, 0]
    for got, want in zip(ops.linear_logsumexp(*laid, targets=far), expected, strict=True):
        torch.testing.assert_close(got, want)
    check_repeatable(lambda: ops.linear_logsumexp(features, weight, bias))


def test_opcheck():
    features, weight, bias, targets = layer(5, 3, 10, requires_grad=False)
    forward = (features, weight, bias, targets)
    lse, _, mean = linear_chunks.forward_op(*forward, True)
    torch.library.opcheck(linear_chunks.forward_op, (*forward, True))
    backward = (lse, lse, *forward, lse, mean, True, True, True)
    torch.library.opcheck(linear_chunks.backward_op, backward)
    double = (features, None, None, lse, lse, *forward, lse, mean, True, True, True)
    torch.library.opcheck(linear_chunks.double_backward_op, double)


def test_torch_func():
    features, weight, bias, _ = layer(4, 3, 6, torch.float64, requires_grad=False)
    f = lambda e, w: ops.linear_logsumexp(e, w, bias).sum()  # noqa: E731
    got = torch.func.grad(f, argnums=(0, 1))(features, weight)
    want = torch.func.grad(lambda e, w: eager(e, w, bias).sum(), argnums=(0, 1))(features, weight)
    torch.testing.assert_close(got, want)
    stack = torch.stack([features, 2 * features])
    torch.testing.assert_close(
        torch.func.vmap(lambda e: ops.linear_logsumexp(e, weight))(stack),
        torch.stack([eager(e, weight) for e in stack]),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile():
    def loss(features, weight, bias, targets):
        lse, target = ops.linear_logsumexp(2 * features, weight, bias, targets=targets)
        return (lse - target).mean()

    compiled = torch.compile(loss, fullgraph=True)
    for n in (5, 6, 9):
        *inputs, targets = layer(n, 3, 10)
        compiled(*inputs, targets).backward()
        wanted = [t.detach().clone().requires_grad_() for t in inputs]
        loss(*wanted, targets).backward()
        for got, want in zip(inputs, wanted, strict=True):
            torch.testing.assert_close(got.grad, want.grad)


E, W, B = layer(4, 3, 6, requires_grad=False)[:3]
BAD = [
    (dict(features=E.numpy()), "features: got ndarray"),
    (dict(features=E[0]), r"features: got shape \[3\]"),
    (dict(weight=W[:, :2]), r"weight: got shape \[6, 2\], want \[K, 3\]"),
    (dict(weight=W[:0]), "weight: got shape"),
    (dict(weight=W.double()), "weight: got torch.float64, want torch.float32"),
    (dict(bias=B[:5]), r"bias: got shape \[5\], want \[6\]"),
    (dict(targets=torch.zeros(4)), "targets: got torch.float32, want an int64 tensor"),
    (dict(targets=torch.zeros(3, dtype=torch.int64)), r"targets: got shape \[3\], want \[4\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.linear_logsumexp(**{"features": E, "weight": W, "bias": B, **change})


def test_a_chunk_is_checked():
    z, lse = torch.zeros(2, 3), torch.zeros(2)
    raw = torch.ops.robustcore
    with pytest.raises(ValueError, match="logits: a chunk has to be contiguous"):
        raw.logsumexp_chunk_weights_(torch.zeros(3, 2).t(), None, lse, lse, None, None, 0)
    with pytest.raises(ValueError, match="logits: got float16"):
        raw.logsumexp_chunk_weights_(z.half(), None, lse, lse, None, None, 0)
    with pytest.raises(ValueError, match="grad_target: wanted with targets"):
        raw.logsumexp_chunk_weights_(z, None, lse, lse, None, lse, 0)
    assert_same(z, torch.zeros(2, 3))
