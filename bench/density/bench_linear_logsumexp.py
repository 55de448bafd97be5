"""ops.linear_logsumexp against eager: time and peak memory, with one backward and with two."""

import pytest
import torch
from torch.nn.functional import linear

from robustcore import ops

CASES = {
    "N 4096, D 512, K 50000": (4096, 512, 50_000),
    "N 512, D 256, K 10000": (512, 256, 10_000),
    "N 128, D 512, K 10 (a small head)": (128, 512, 10),
}


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
@pytest.mark.parametrize("order", ["forward and backward", "double backward"])
@pytest.mark.parametrize("case", CASES)
def test_linear_logsumexp(case, order, impl, measure, device):
    n, d, k = CASES[case]
    features = torch.randn(n, d, device=device)
    weight = torch.randn(k, d, device=device) / d**0.5
    bias = torch.randn(k, device=device)
    inputs = [t.requires_grad_() for t in (features, weight, bias)]

    def lse(features, weight, bias):
        if impl == "robustcore":
            return ops.linear_logsumexp(features, weight, bias)
        return linear(features, weight, bias).logsumexp(1)

    def fn():
        value = lse(*inputs)
        if order == "double backward":
            # The density penalty at the features of a head.
            (g,) = torch.autograd.grad(value.sum(), inputs[0], create_graph=True)
            value = ops.grad_norm(g)
        return torch.autograd.grad(value.mean(), inputs)

    rows = slice(0, 8)
    want = linear(features[rows], weight, bias).logsumexp(1)
    torch.testing.assert_close(lse(features[rows], weight, bias), want, rtol=1e-5, atol=1e-5)
    small = k <= 10_000
    measure(f"linear_logsumexp, {order}: {case}", impl, fn, rounds=None if small else 3)
