"""density.groups: Group DRO and accuracies, on a model whose answers have a closed form."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from robustcore import ops
from robustcore.density.groups import GroupDRO, core_accuracy, group_accuracy

G = 4
AGREE = 0.95  # of the samples, where the spurious coordinate has the sign of the class


# ---- a linear model of Gaussian data -------------------------------------------------------------


def gaussian_data(n, seed, agree=AGREE):
    """x = (y + z, 2 a + z'), classes y and attributes a of -1 and 1; x, y in {0, 1}, groups."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < agree
    a = torch.where(same, y, 1 - y)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return torch.stack([2.0 * y - 1, 2 * (2.0 * a - 1)], 1) + z, y, 2 * y + a


def closed_form(w, b):
    """The accuracy of sign(w x + b) in each group: y (w x + b) is normal there."""
    signs = [(2 * y - 1, 2 * a - 1) for y in (0, 1) for a in (0, 1)]
    margins = [y * (w[0] * y + w[1] * 2 * a + b) for y, a in signs]
    return torch.tensor([norm.cdf(float(m) / float(w.norm())) for m in margins])


def fitted(reduction):
    """A logistic regression by gradient descent on the losses [N] reduced with the groups [N]."""
    x, y, groups = gaussian_data(10_000, seed=0)
    head = nn.Linear(2, 1, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    for _ in range(250):
        losses = binary_cross_entropy_with_logits(head(x)[:, 0], y.double(), reduction="none")
        optimizer.zero_grad()
        reduction(losses, groups).backward()
        optimizer.step()
    return head.weight[0].detach(), head.bias[0].detach()


def test_the_worst_group_of_a_linear_gaussian_model():
    plain = fitted(lambda losses, groups: losses.mean())
    robust = fitted(GroupDRO(G, eta=0.1))
    x, y, groups = gaussian_data(40_000, seed=1)
    for w, b in (plain, robust):
        got = group_accuracy((x @ w + b > 0).long(), y, groups)
        want = closed_form(w, b)
        deviation = (want * (1 - want) / got.counts).sqrt()
        assert ((got.groups - want).abs() < 4.5 * deviation + 1e-9).all()
        assert got.worst == got.groups.min()
    # Of all directions, worst over groups, the one without the spurious coordinate is the best.
    best = norm.cdf(1.0)
    assert closed_form(*plain).min() < 0.5
    assert best - 0.01 < closed_form(*robust).min() <= best


# ---- Group DRO -----------------------------------------------------------------------------------


def test_group_dro_by_hand():
    dro = GroupDRO(3, eta=0.5)
    losses = torch.tensor([1.0, 3.0, 4.0], requires_grad=True)
    loss = dro(losses, torch.tensor([0, 0, 2]))
    grown = torch.tensor([math.exp(1.0), 1.0, math.exp(2.0)])  # group 1 has no sample
    want = grown / grown.sum()
    torch.testing.assert_close(dro.weights, want)
    torch.testing.assert_close(loss, want[0] * 2 + want[2] * 4)
    (grad,) = torch.autograd.grad(loss, losses)
    torch.testing.assert_close(grad, torch.stack([want[0] / 2, want[0] / 2, want[2]]))
    dro(losses, torch.tensor([0, 0, 2]))
    torch.testing.assert_close(dro.weights, grown**2 / (grown**2).sum())


def test_evaluation_leaves_the_weights():
    dro = GroupDRO(2, eta=1.0)
    dro(torch.tensor([1.0, 5.0]), torch.tensor([0, 1]))
    before = dro.weights.clone()
    loss = dro.eval()(torch.tensor([2.0, 3.0]), torch.tensor([0, 1]))
    assert torch.equal(dro.weights, before)
    torch.testing.assert_close(loss, before @ torch.tensor([2.0, 3.0]))
    other = GroupDRO(2)
    other.load_state_dict(dro.state_dict())
    assert torch.equal(other.weights, before)


def test_the_adjustment_is_larger_for_small_groups_and_has_no_gradient():
    dro = GroupDRO(2, eta=0.0, adjustment=2.0, group_counts=[100, 4])
    losses = torch.tensor([1.0, 1.0], requires_grad=True)
    loss = dro(losses, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.tensor((1.2 + 2.0) / 2))
    (grad,) = torch.autograd.grad(loss, losses)
    torch.testing.assert_close(grad, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(dro(losses[:1], torch.tensor([0])), torch.tensor(0.6))


def test_weights_stay_finite_and_come_back():
    dro = GroupDRO(2, eta=1.0)
    dro(torch.tensor([1e4, 0.0]), torch.tensor([0, 1]))
    assert dro.weights.tolist() == [1.0, 0.0]
    dro(torch.tensor([0.0, 1e4]), torch.tensor([0, 1]))
    torch.testing.assert_close(dro.weights, torch.tensor([0.5, 0.5]))


def test_two_passes_before_a_backward():
    dro = GroupDRO(2, eta=0.5)
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    first = dro(losses, torch.tensor([0, 1]))
    weights = dro.weights.clone()
    dro(losses, torch.tensor([0, 1]))
    (grad,) = torch.autograd.grad(first, losses)
    torch.testing.assert_close(grad, weights)


@pytest.mark.slow
def test_ranks_see_the_same_groups(tmp_path):
    """Two ranks of half a batch: the weights, and in the mean the gradient, of the whole batch."""
    worker = Path(__file__).with_name("dro_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(worker), str(tmp_path)], check=True, cwd="/", timeout=120)
    dro = GroupDRO(3, eta=0.5)
    losses = torch.arange(1.0, 7.0, requires_grad=True)
    loss = dro(losses, torch.tensor([0, 0, 1, 1, 1, 2]))
    (want,) = torch.autograd.grad(loss, losses)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for weights, _, _ in ranks:
        torch.testing.assert_close(weights, dro.weights)
    torch.testing.assert_close(sum(value for _, value, _ in ranks) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([grad for _, _, grad in ranks]) / 2, want)


# ---- accuracies ----------------------------------------------------------------------------------


def test_group_accuracy_by_hand():
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    groups = torch.tensor([0, 0, 1, 3, 3, 3])
    got = group_accuracy(predicted, labels, groups, num_groups=5, train_counts=[10, 20, 0, 70, 0])
    assert got.counts.tolist() == [2, 1, 0, 3, 0]
    torch.testing.assert_close(
        got.groups,
        torch.tensor([1.0, 0.0, torch.nan, 2 / 3, torch.nan], dtype=torch.float64),
        equal_nan=True,
    )
    assert (got.worst, got.worst_group) == (0.0, 1)
    assert got.mean == pytest.approx(4 / 6)
    assert got.adjusted == pytest.approx(0.1 + 0.7 * 2 / 3)
    assert group_accuracy(predicted, labels, groups).adjusted is None
    assert len(group_accuracy(predicted, labels, groups).groups) == 4
    assert math.isnan(group_accuracy(predicted, labels, groups, train_counts=[1] * 4).adjusted)


def corner_model(weight):
    """Class 1 where weight times the pixels is above 0."""
    head = nn.Linear(4, 2, bias=False)
    head.weight.data = torch.stack([torch.zeros(4), torch.tensor(weight)])
    return nn.Sequential(nn.Flatten(), head)


def test_core_accuracy():
    x = torch.tensor([0.0, 1.0]).repeat(300).view(600, 1, 1, 1).expand(600, 1, 2, 2)
    y = torch.tensor([0, 1]).repeat(300)
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 0] = 0.2  # soft: what counts is its share of the largest
    inside, outside = corner_model([1.0, 0, 0, 0]), corner_model([0, 0, 0, 1.0])
    assert core_accuracy(outside, x, y, mask) == 1
    # Class 0 is wrong where the noise is above 0, and clipped it is never below.
    got = core_accuracy(inside, x, y, mask, seed=3)
    z = ops.gaussian_noise(torch.zeros(600, 4), 1, 1.0, seed=3)[:, 0, 0]
    wrong = (y == 0) & (z > 0) | (y == 1) & (1 + 0.25 * z <= 0)
    assert got == 1 - float(wrong.double().mean())
    assert 0.7 < got < 0.8
    assert core_accuracy(inside, x, y, mask, sigma=0.0) == 1
    nothing = torch.zeros(1, 2, 2)
    assert core_accuracy(inside, x, y, nothing) == 1
    assert core_accuracy(inside, x, y, mask > 0, seed=3) == got
    halves = [core_accuracy(inside, x[a:b], y[a:b], mask, seed=3, image_offset=a)
              for a, b in ((0, 200), (200, 600))]  # fmt: skip
    assert (200 * halves[0] + 400 * halves[1]) / 600 == pytest.approx(got)


BAD = [
    (lambda: GroupDRO(0), "num_groups: got 0"),
    (lambda: GroupDRO(2, adjustment=1.0), "adjustment: got 1.0 without group_counts"),
    (lambda: GroupDRO(2, group_counts=[1, 0]), "group_counts: got 0"),
    (lambda: GroupDRO(2, group_counts=[1]), "group_counts: got 1 counts, want 2"),
    (lambda: GroupDRO(2)(torch.ones(3), torch.tensor([0, 1, 2])), "groups: got 0 to 2"),
    (lambda: GroupDRO(2)(torch.tensor([torch.nan]), torch.tensor([0])), "losses: got NaN"),
    (lambda: GroupDRO(2)(torch.ones(3, 1), torch.tensor([0, 1, 1])), r"losses: got shape \[3, 1\]"),
    (
        lambda: group_accuracy(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).long()),
        r"labels: got shape \[0\]",
    ),
    (
        lambda: core_accuracy(corner_model([1.0] * 4), torch.rand(2, 4), torch.tensor([0, 1]),
                              -torch.ones(4)),
        "mask: got a value below 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
