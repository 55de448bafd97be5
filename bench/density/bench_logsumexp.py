"""ops.logsumexp and ops.grad_norm against eager and compiled torch: forward and gradient."""

import pytest
import torch

from robustcore import ops

CASES = {
    "4096 x 1000": (4096, 1000),
    "128 x 10": (128, 10),
    "64 x 50000": (64, 50_000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impl", ["robustcore", "eager", "compiled"])
@pytest.mark.parametrize("case", CASES)
def test_logsumexp_and_gradient(case, impl, measure, device):
    rows, classes = CASES[case]
    logits = torch.randn(rows, classes, device=device, requires_grad=True)
    eager = lambda z: z.logsumexp(1)  # noqa: E731
    op = ops.logsumexp if impl == "robustcore" else eager
    if impl == "compiled":
        op = torch.compile(eager, dynamic=False)

    def fn():
        return torch.autograd.grad(op(logits).sum(), logits)[0]

    torch.testing.assert_close(fn(), logits.softmax(1), rtol=1e-4, atol=1e-6)
    measure(f"logsumexp and its gradient: {case}", impl, fn, launches=50 if rows < 1000 else 1)


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
@pytest.mark.parametrize("p", [2.0, 3.0])
def test_grad_norm_and_gradient(p, impl, measure, device):
    g = torch.randn(128, 3, 32, 32, device=device, requires_grad=True)

    def fn():
        if impl == "robustcore":
            norm = ops.grad_norm(g, p)
        else:
            norm = torch.linalg.vector_norm(g.flatten(1), p, dim=1)
        return torch.autograd.grad(norm.sum(), g)[0]

    norm = torch.linalg.vector_norm(g.flatten(1), p, dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(fn(), g * g.abs() ** (p - 2) / norm ** (p - 1), rtol=1e-3, atol=1e-6)
    measure(f"grad_norm and its gradient: 128 x 3 x 32 x 32, p = {p:g}", impl, fn)
