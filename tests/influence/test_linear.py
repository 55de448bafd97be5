"""influence.exact_linear against training without a sample, and influence.lds against SciPy."""

import pytest
import torch
from scipy.stats import spearmanr

from robustcore.influence import exact_linear, lds
from testing import assert_same


def regression(n=40, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, test = (torch.randn(m, d, generator=generator, dtype=torch.float64) for m in (n, 7))
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, x[:, 0] - 2 * x[:, 1] + noise, test


def without(t, i):
    return torch.cat([t[:i], t[i + 1 :]])


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_the_ridge_leave_one_out(ridge):
    x, y, test = regression()
    got = exact_linear(x, y, test, ridge=ridge)

    def fit(x, y):
        return torch.linalg.solve(x.T @ x + ridge * torch.eye(5), x.T @ y)

    whole = fit(x, y)
    torch.testing.assert_close(got.coefficients, whole)
    for i in range(len(x)):
        b = fit(without(x, i), without(y, i))
        torch.testing.assert_close(got.scores[:, i], test @ (whole - b), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(got.left_out[i], x[i] @ b, rtol=1e-9, atol=1e-11)
    if ridge == 0:
        torch.testing.assert_close(got.leverages.sum(), torch.tensor(5.0).double())


def fit_logistic(x, y, ridge):
    b = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [b], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ b, y, reduction="sum")
        value = value + ridge / 2 * b.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return b.detach()


def test_the_logistic_leave_one_out():
    x, y, test = regression(n=300)
    y = (y > 0).double()
    got = exact_linear(x, y, test, loss="logistic", ridge=1.0)
    whole = fit_logistic(x, y, 1.0)
    torch.testing.assert_close(got.coefficients, whole, rtol=1e-5, atol=1e-6)
    some = range(0, 300, 10)
    truth = torch.stack(
        [test @ (whole - fit_logistic(without(x, i), without(y, i), 1.0)) for i in some], 1
    )
    near = got.scores[:, list(some)]
    # One Newton step: second order in what one of 300 weighs.
    assert (near - truth).abs().max() < 0.05 * truth.abs().max()


def test_separable_classes_want_a_ridge():
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    y = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="ridge: got 0"):
        exact_linear(x, y, x, loss="logistic", ridge=0.0)
    assert exact_linear(x, y, x, loss="logistic", ridge=0.1).scores.isfinite().all()


X, Y, TEST = regression()
BAD = [
    (lambda: exact_linear(X[0], Y, TEST), ValueError, r"x: got shape \[5\]"),
    (lambda: exact_linear(X, Y[:3], TEST), ValueError, r"y: got shape \[3\], want \[40\]"),
    (lambda: exact_linear(X, Y, TEST[:, :3]), ValueError, r"test: got shape \[7, 3\]"),
    (lambda: exact_linear(X * float("nan"), Y, TEST), ValueError, "x: got NaN"),
    (lambda: exact_linear(X, Y, TEST, loss="hinge"), ValueError, "loss: got 'hinge'"),
    (lambda: exact_linear(X, Y, TEST, loss="logistic"), ValueError, "y: got other labels"),
    (lambda: exact_linear(X, Y, TEST, ridge=-1.0), ValueError, "ridge: got -1"),
    (lambda: exact_linear(X[:3], Y[:3], TEST, ridge=0.0), ValueError, "ridge: got 0"),
    (lambda: lds(X, torch.ones(4, 5), X[:4]), TypeError, "subsets: got torch.float32"),
    (lambda: lds(X, torch.ones(1, 5).bool(), X[:1]), ValueError, "subsets: got shape"),
    (lambda: lds(X, torch.ones(4, 5).bool(), X[:4]), ValueError, "outputs: got shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- lds -----------------------------------------------------------------------------------------


def test_lds_is_the_rank_correlation_of_sums():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 20, generator=generator)
    subsets = torch.rand(12, 20, generator=generator) > 0.5
    outputs = torch.randn(12, 3, generator=generator)
    got = lds(scores, subsets, outputs)
    for t in range(3):
        sums = [float(scores[t][subset].double().sum()) for subset in subsets]
        want = spearmanr(sums, outputs[:, t].numpy()).statistic
        assert got[t] == pytest.approx(want)
    linear = (subsets.double() @ scores.double().T).exp()  # any rising function of the sums
    torch.testing.assert_close(lds(scores, subsets, linear), torch.ones(3).double())
    assert lds(scores, subsets, torch.ones(12, 3)).isnan().all()


def test_exact_influence_predicts_ridge_models_on_subsets():
    x, y, test = regression(n=60)
    scores = exact_linear(x, y, test, ridge=1.0).scores
    generator = torch.Generator().manual_seed(1)
    subsets = torch.rand(80, 60, generator=generator) > 0.3
    outputs = (
        torch.stack([exact_linear(x[s], y[s], test, ridge=1.0).coefficients for s in subsets])
        @ test.mT
    )
    assert lds(scores, subsets, outputs).min() > 0.85
    shuffled = scores[:, torch.randperm(60, generator=generator)]
    assert lds(shuffled, subsets, outputs).mean().abs() < 0.3


def test_scores_do_not_depend_on_the_dtype():
    x, y, test = regression()
    want = exact_linear(x.float(), y.float(), test.float()).scores
    assert_same(
        want, exact_linear(x.float().double(), y.float().double(), test.float().double()).scores
    )
