"""ops.linear_logsumexp: time and peak memory, with one backward, with two, as a cross entropy."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from robustcore import ops

CASES = {
    "N 4096, D 512, K 50000": (4096, 512, 50_000),
    "N 1024, D 256, K 20000": (1024, 256, 20_000),
    "N 512, D 256, K 10000": (512, 256, 10_000),
    "N 128, D 512, K 10 (a small head)": (128, 512, 10),
}


def head(case, device):
    n, d, k = CASES[case]
    features = torch.randn(n, d, device=device)
    weight = torch.randn(k, d, device=device) / d**0.5
    bias = torch.randn(k, device=device)
    return [t.requires_grad_() for t in (features, weight, bias)]


def repeats(case):
    """The large head takes seconds a call."""
    return dict(rounds=3, warmups=1) if CASES[case][2] > 10_000 else {}


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
@pytest.mark.parametrize("order", ["forward and backward", "double backward"])
@pytest.mark.parametrize("case", CASES)
def test_linear_logsumexp(case, order, impl, measure, device):
    inputs = features, weight, bias = head(case, device)

    def lse(impl, features, weight, bias):
        if impl == "robustcore":
            return ops.linear_logsumexp(features, weight, bias)
        return linear(features, weight, bias).logsumexp(1)

    def fn(impl=impl):
        value = lse(impl, *inputs)
        if order == "double backward":
            # The density penalty at the features of a head.
            (g,) = torch.autograd.grad(value.sum(), features, create_graph=True)
            value = ops.grad_norm(g)
        return torch.autograd.grad(value.mean(), inputs)

    rows = slice(0, 8)
    want = linear(features[rows], weight, bias).logsumexp(1)
    got = lse(impl, features[rows], weight, bias)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    against = ("eager", lambda: fn("eager")) if impl == "robustcore" else None
    measure(f"linear_logsumexp, {order}: {case}", impl, fn, **repeats(case), against=against)


def _ours(features, weight, bias, targets):
    lse, target = ops.linear_logsumexp(features, weight, bias, targets=targets)
    return (lse - target).mean()


def _eager(features, weight, bias, targets):
    return cross_entropy(linear(features, weight, bias), targets)


def _torch_chunked(features, weight, bias, targets):
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if fused is None:
        pytest.skip("this torch has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return fused(features, weight, targets, linear_bias=bias, options=options)


def _cut(features, weight, bias, targets):
    cut = pytest.importorskip("cut_cross_entropy")
    return cut.linear_cross_entropy(features, weight, targets, bias=bias)


def _liger(features, weight, bias, targets):
    functional = pytest.importorskip("liger_kernel.transformers.functional")
    return functional.liger_fused_linear_cross_entropy(features, weight, targets, bias)


CROSS_ENTROPIES = {
    "robustcore": _ours,
    "eager": _eager,
    "compiled": _eager,
    "torch, chunked": _torch_chunked,
    "cut-cross-entropy": _cut,
    "Liger": _liger,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impl", CROSS_ENTROPIES)
@pytest.mark.parametrize("case", ["N 4096, D 512, K 50000", "N 512, D 256, K 10000"])
def test_cross_entropy(case, impl, measure, device):
    if device.type == "cpu" and impl in ("cut-cross-entropy", "Liger"):
        pytest.skip("runs on a GPU only")
    if device.type == "cpu" and CASES[case][2] > 10_000:
        pytest.skip("minutes on a CPU")
    inputs = head(case, device)
    n, _, k = CASES[case]
    targets = torch.randint(k, (n,), device=device)
    loss = CROSS_ENTROPIES[impl]
    if impl == "compiled":
        loss = torch.compile(loss, dynamic=False)

    def fn():
        return torch.autograd.grad(loss(*inputs, targets), inputs)

    # What runs on tensor cores multiplies with fewer digits.
    tolerance = 1e-5 if device.type == "cpu" else 1e-2
    for got, want in zip(fn(), torch.autograd.grad(_eager(*inputs, targets), inputs), strict=True):
        assert (got - want).norm() < tolerance * want.norm()
    measure(f"cross entropy and its gradient: {case}", impl, fn, **repeats(case))
