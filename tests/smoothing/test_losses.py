"""Losses of certified training: the published formulas, derivatives, saturation, bad input."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F

from robustcore.smoothing import losses
from testing import check_gradients

LABELS = torch.tensor([0, 2, 1, 3])


def make(*shape, scale=1.0, seed=0):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * t


def right(scale=2.0):
    """Logits of which most are right, so that MACER's hinge is at work."""
    return make(4, 5, 4) + scale * F.one_hot(LABELS, 4)[:, None]


def macer_published(logits, labels, sigma, lam, gamma, beta):
    """As the published code writes it, in float64."""
    mean = logits.softmax(2).mean(1)
    classification = F.nll_loss(mean.log(), labels, reduction="sum")
    top, index = (beta * logits).softmax(2).mean(1).topk(2)
    at = index[:, 0] == labels
    normal = torch.distributions.Normal(0.0, 1.0)
    robustness = normal.icdf(top[at, 1]) - normal.icdf(top[at, 0])
    used = robustness.isfinite() & (robustness.abs() <= gamma)
    hinge = (robustness[used] + gamma).sum() * sigma / 2
    return (classification + lam * hinge) / len(logits)


def test_smooth_adv():
    logits = make(4, 5, 4)
    expected = -logits.softmax(2).mean(1).gather(1, LABELS[:, None]).log().mean()
    torch.testing.assert_close(losses.smooth_adv(logits, LABELS), expected)
    # The gradient that the paper gives.
    z = logits.clone().requires_grad_()
    losses.smooth_adv(z, LABELS).backward()
    p = logits.softmax(2)
    own = p.gather(2, LABELS[:, None, None].expand(-1, 5, 1))
    expected = own / own.sum(1, keepdim=True) * (p - F.one_hot(LABELS, 4)[:, None]) / 4
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("gamma", [2.0, 8.0])
def test_macer(scale, gamma):
    logits = right(scale)
    arguments = 0.25, 12.0, gamma, 2.0
    expected = macer_published(logits, LABELS, *arguments)
    got = losses.macer(logits, LABELS, 0.25, lam=12.0, gamma=gamma, beta=2.0)
    torch.testing.assert_close(got, expected)


def test_consistency():
    logits = make(4, 5, 4)
    p = logits.softmax(2)
    mean = p.mean(1)
    divergence = (mean[:, None] * (mean[:, None].log() - p.log())).sum((1, 2)) / 5
    entropy = -(mean * mean.log()).sum(1)
    expected = (3 * divergence + 0.7 * entropy).mean()
    torch.testing.assert_close(losses.consistency(logits, lam=3, eta=0.7), expected)
    same = logits[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(losses.consistency(same, eta=0.0), torch.zeros(()).double())


@pytest.mark.parametrize("zero", [False, True])
def test_smoothmix(zero):
    logits, mixed = right(1.0), make(4, 5, 4, seed=1)
    u = torch.zeros(4) if zero else torch.tensor([0.0, 0.2, 0.5, 0.4])
    mean = logits.softmax(2).mean(1)
    target = (1 - u[:, None].double()) * mean + u[:, None].double() / 4
    each = F.kl_div(mixed.log_softmax(2), target[:, None].expand_as(mixed), reduction="none")
    correct = mean.argmax(1) == LABELS
    assert correct.sum() > 0
    expected = (each.sum(2).mean(1) * correct).mean()
    torch.testing.assert_close(losses.smoothmix(logits, mixed, LABELS, u.double()), expected)


LOSSES = {
    "smooth_adv": lambda z: losses.smooth_adv(z, LABELS),
    "macer": lambda z: losses.macer(z, LABELS, 0.25, beta=1.5),
    "consistency": losses.consistency,
    "smoothmix": lambda z: losses.smoothmix(z, z.flip(1) * 0.5, LABELS, torch.full((4,), 0.3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives(name):
    check_gradients(LOSSES[name], right(1.0).requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [30.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated(name, scale, dtype):
    """Sure of the right class, of a wrong one, and of different ones: finite, twice over."""
    for labels in (LABELS, LABELS.roll(1)):
        z = make(4, 5, 4) * min(scale, 1e3) + scale * F.one_hot(labels, 4)[:, None]
        z[0, 0] = z[0, 0].flip(0)
        z = z.to(dtype).requires_grad_()
        value = LOSSES[name](z)
        (grad,) = torch.autograd.grad(value, z, create_graph=True)
        second = torch.autograd.grad(grad.float().square().sum(), z)[0]
        assert value.isfinite()
        assert grad.isfinite().all()
        assert second.isfinite().all()


def test_macer_pulls_where_float32_says_that_p_is_1():
    """The published code drops such images: 1 - p is rounded away, Phi^-1 infinite."""
    logits = torch.tensor([[[20.0, 0.0, -3.0]]]).requires_grad_()
    assert logits.softmax(2)[0, 0, 0] == 1
    labels = torch.zeros(1, dtype=torch.int64)
    value = losses.macer(logits, labels, 1.0, lam=1.0, gamma=20.0, beta=1.0)
    exact = macer_published(logits.detach().double(), labels, 1.0, 1.0, 20.0, 1.0)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    value.backward()
    assert logits.grad[0, 0, 0] < -1e-2


def test_compiled_and_mapped():
    z = right(1.0)
    for loss in LOSSES.values():
        mapped = torch.func.grad(loss)(z)
        leaf = z.clone().requires_grad_()
        loss(leaf).backward()
        torch.testing.assert_close(mapped, leaf.grad)


LOGITS = {"logits": right().float()}
LABELLED = {**LOGITS, "labels": LABELS}
SHARES = {"mixed_logits": right(), "share": torch.full((4,), 0.3)}
GOOD = {
    losses.smooth_adv: LABELLED,
    losses.macer: {**LABELLED, "sigma": 0.25},
    losses.consistency: LOGITS,
    losses.smoothmix: {**LABELLED, **SHARES},
}
BAD = [
    (dict(logits=torch.rand(4, 4)), r"logits: got shape \[4, 4\], want \[B, m, K\]"),
    (dict(logits=torch.rand(4, 0, 4)), "logits: got shape"),
    (dict(logits=torch.rand(0, 5, 4)), "logits: got shape"),
    (dict(logits=torch.zeros(4, 5, 4).long()), "logits: got torch"),
    (dict(logits=[[[0.0]]]), "logits: got list"),
    (dict(labels=LABELS.float()), "labels: got torch"),
    (dict(labels=LABELS + 1), r"labels: got 1 to 4, want \[0, 4\)"),
    (dict(labels=LABELS - 1), r"labels: got -1 to 2, want \[0, 4\)"),
    (dict(labels=LABELS[:3]), r"labels: got shape \[3\]"),
    (dict(labels=LABELS.to("meta")), "labels: got a tensor on the meta"),
    (dict(sigma=0.0), "sigma: got 0.0"),
    (dict(sigma=math.nan), "sigma: got nan"),
    (dict(lam=-1.0), "lam: got -1.0"),
    (dict(eta=-1.0), "eta: got -1.0"),
    (dict(gamma=math.inf), "gamma: got inf"),
    (dict(beta=None), "beta: got None"),
    (dict(mixed_logits=torch.rand(4, 5, 3)), "mixed_logits: got shape"),
    (dict(mixed_logits=None), "mixed_logits: got NoneType"),
    (dict(share=torch.rand(3)), r"share: got shape \[3\], want \[4\]"),
    (dict(share=LABELS), "share: got torch.int64"),
    (dict(share=torch.tensor([0.1, 0.2, 1.5, 0.3])), r"share: got 0.1 to 1.5, want \[0, 1\)"),
    (dict(share=torch.full((4,), math.nan)), r"share: got nan"),
]
BAD_OF = [
    (loss, change, message)
    for loss in GOOD
    for change, message in BAD
    if next(iter(change)) in inspect.signature(loss).parameters
]


@pytest.mark.parametrize(("loss", "change", "message"), BAD_OF)
def test_bad_input(loss, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        loss(**{**GOOD[loss], **change})


def test_macer_wants_another_class():
    with pytest.raises(ValueError, match=r"logits: got shape .* K at least 2"):
        losses.macer(torch.rand(4, 5, 1), torch.zeros(4, dtype=torch.int64), 0.25)
