"""Kernel SHAP: exact where all sets are asked, Captum's values on equal samples."""

import itertools
import math

import pytest
import torch

from masking.explained import SEGMENTS, Patch, image, nonlinear, of_sets
from robustcore.masking import MaskedModel, explain_shap
from robustcore.masking.explain.shap import coalitions, shapley_regression
from robustcore.masking.segments import blocks


def brute_force(value, number):
    """Shapley values by their definition: the mean of what a segment adds, over all orders."""
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=number)), dtype=torch.float64)
    worth = dict(zip(map(tuple, sets.tolist()), value(sets).tolist(), strict=True))
    values = []
    for i in range(number):
        total = 0.0
        for z in worth:
            if z[i]:
                continue
            k = int(sum(z))
            orders = math.factorial(k) * math.factorial(number - k - 1) / math.factorial(number)
            total += orders * (worth[(*z[:i], 1.0, *z[i + 1 :])] - worth[z])
        values.append(total)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8])
def test_shapley_values(number):
    segments = torch.arange(16).clamp(max=number - 1).expand(16, -1)
    value = nonlinear(number)
    result = explain_shap(of_sets(value, segments), image(), segments, 2**number)
    torch.testing.assert_close(result.weights, brute_force(value, number), rtol=1e-9, atol=1e-9)
    assert result.exact
    assert len(result.shown) == max(2, 2**number)
    assert result.base == pytest.approx(0.3)
    assert torch.equal(result.attribution, result.weights[segments])


def test_shapley_values_of_a_network():
    """Of a masked network, in double precision."""
    model, x = MaskedModel(Patch().double()), image().double()
    segments = blocks(16, 16, 8)

    def value(z):
        mask = z[:, segments].unsqueeze(1)
        return model(x[None], mask).softmax(1)[:, 1]

    result = explain_shap(model, x, 8, target=1)
    assert result.exact
    torch.testing.assert_close(result.weights, brute_force(value, 4), rtol=1e-8, atol=1e-10)


def test_samples_come_close():
    """12 segments, a fifth of the sets; and the values add up whatever was drawn."""
    segments = torch.arange(16).clamp(max=11).expand(16, -1)
    value = nonlinear(12)
    want = brute_force(value, 12)
    errors = []
    for samples in (100, 800):
        result = explain_shap(of_sets(value, segments), image(), segments, samples)
        assert not result.exact
        assert len(result.scores) <= samples
        assert float(result.weights.sum()) == pytest.approx(result.score - result.base)
        errors.append(float((result.weights - want).abs().max()))
    assert errors[1] < 0.1 * float(want.abs().max())
    assert errors[1] < errors[0]


def test_an_additive_score_needs_no_luck():
    want = torch.linspace(-1, 2, 16, dtype=torch.float64)
    for samples, seed in itertools.product((60, 200), range(3)):
        model = of_sets(lambda z: 1 + z @ want)
        result = explain_shap(model, image(), SEGMENTS, samples, seed=seed)
        torch.testing.assert_close(result.weights, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("number", "budget"), [(5, 30), (9, 100), (12, 700), (40, 300), (6, 1000)])
def test_coalitions(number, budget):
    generator = torch.Generator().manual_seed(0)
    z, weight, exact = coalitions(number, budget, generator)
    shown = z.sum(1)
    assert len(z) == len(weight) <= budget
    assert ((shown > 0) & (shown < number)).all()
    assert exact == (2**number - 2 <= budget)
    # Of each size, the weight that all its sets have by the kernel; sampled sizes, by expectation.
    total = sum(1 / (k * (number - k)) for k in range(1, number))
    assert float(weight.sum()) == pytest.approx(total)
    listed = [k for k in range(1, number) if (shown == k).sum() == math.comb(number, k)]
    if exact:
        assert listed == list(range(1, number))
        assert len(z.unique(dim=0)) == len(z)
        for k in listed:
            mass = float(weight[shown == k].sum())
            assert mass == pytest.approx(1 / (k * (number - k)))
    # Every set comes with its complement.
    rows = {tuple(row) for row in z.tolist()}
    assert rows == {tuple(row) for row in (~z).tolist()}


def test_the_values_are_those_of_captum():
    """Captum's own KernelShap and the samples that it drew: it weighs the two ends by a million."""
    attr = pytest.importorskip("captum.attr", exc_type=ImportError)
    seen, model = [], MaskedModel(Patch())

    def forward(mask, x):
        seen.append(mask[:, 0])
        return model(x, mask).softmax(1)

    torch.manual_seed(0)
    attribution = attr.KernelShap(forward).attribute(
        torch.ones(1, 1, 16, 16),
        baselines=0,
        target=1,
        additional_forward_args=(image()[None],),
        feature_mask=SEGMENTS[None, None],
        n_samples=300,
    )
    masks = torch.cat(seen[-300:])
    y = model(image()[None], masks.unsqueeze(1)).double().softmax(1)[:, 1]
    z = torch.stack([masks[:, s == SEGMENTS][:, 0] for s in range(16)], 1).double()
    inner = z.sum(1).remainder(16) != 0
    base = y[z.sum(1) == 0][0]
    whole = y[z.sum(1) == 16][0]
    ours = shapley_regression(z[inner], y[inner] - base, torch.ones_like(y[inner]), whole - base)
    torch.testing.assert_close(ours[SEGMENTS], attribution[0, 0].double(), rtol=1e-3, atol=1e-5)


def test_too_few_samples():
    for samples in (2, 3, 8):
        with pytest.raises(ValueError, match=f"num_samples: got {samples}, too few to tell 16"):
            explain_shap(of_sets(nonlinear(16)), image(), SEGMENTS, samples)


def test_the_seed():
    def weights(seed):
        return explain_shap(of_sets(nonlinear(16)), image(), SEGMENTS, 200, seed=seed).weights

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
