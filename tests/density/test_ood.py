"""OOD metrics: small sets by hand, loaders, temperature."""

from dataclasses import astuple

import pytest
import torch
from torch import nn

from robustcore import density

pytest.importorskip("sklearn")


def identity(x):
    return x


def column(*scores):
    """Inputs whose only logit is that score."""
    return torch.tensor(scores)[:, None]


def test_by_hand():
    inside, outside = column(4.0, 3.0, 2.0, 0.0), column(1.0, -1.0)
    got = density.ood_metrics(identity, inside, outside)
    assert got.auroc == pytest.approx(7 / 8)  # of eight pairs, (0, 1) is the wrong way round
    assert got.fpr95 == pytest.approx(1 / 2)  # all inside pass at 0, and so does 1
    assert got.aupr_inside == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    assert got.aupr_outside == pytest.approx((1 + 2 / 3) / 2)
    assert density.ood_auroc(identity, inside, outside) == got.auroc
    apart = density.ood_metrics(identity, inside + 9, outside)
    assert apart == density.OODMetrics(1.0, 0.0, 1.0, 1.0)


def test_fpr_is_where_95_percent_pass():
    inside = torch.arange(100.0)[:, None]  # 95 of them are at least 5
    outside = column(4.0, 4.5, 5.5, -7.0)
    assert density.ood_metrics(identity, inside, outside).fpr95 == 0.25


def test_chance():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    got = density.ood_metrics(identity, x, x)
    assert abs(got.auroc - 0.5) < 1e-9
    assert got.fpr95 == pytest.approx(0.95)
    assert got.aupr_inside == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("t", [0.5, 1.0, 20.0])
@pytest.mark.parametrize(
    ("score", "function"),
    [
        ("lse", lambda f, t: t * (f / t).logsumexp(1)),
        ("max_logit", lambda f, t: f.amax(1)),
        ("max_softmax", lambda f, t: (f / t).softmax(1).amax(1)),
    ],
)
def test_scores_and_temperature(score, function, t):
    torch.manual_seed(0)
    inside, outside = 2 * torch.randn(60, 5), torch.randn(60, 5)
    higher = function(inside, t)[:, None] > function(outside, t)
    got = density.ood_auroc(identity, inside, outside, score=score, temperature=t)
    assert got == pytest.approx(float(higher.double().mean()))


def test_loaders():
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    inside, outside = torch.randn(50, 8), 3 * torch.randn(33, 8)
    want = density.ood_metrics(model, inside, outside)
    data = torch.utils.data.TensorDataset(inside, torch.zeros(50))
    got = density.ood_metrics(
        model, torch.utils.data.DataLoader(data, 16), (part for part in outside.split(10))
    )
    assert astuple(got) == pytest.approx(astuple(want))


X = torch.rand(4, 8)
BAD = [
    (lambda: density.ood_metrics(identity, X, X[:0]), ValueError, "outside: got shape"),
    (lambda: density.ood_metrics(identity, [], X), ValueError, "inside: got no batches"),
    (lambda: density.ood_metrics(identity, X, [X, 3]), TypeError, "outside: got int, want a tens"),
    (lambda: density.ood_metrics(identity, X, 3), TypeError, "outside: got int, want a batch"),
    (lambda: density.ood_metrics(identity, X, X, score="odin"), ValueError, "score: got 'odin'"),
    (lambda: density.ood_auroc(identity, X, X, temperature=0), ValueError, "temperature: got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
