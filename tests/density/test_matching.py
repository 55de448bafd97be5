"""gradient_matching_penalty: against torch's own double backward, and what it teaches a critic."""

import pytest
import torch
from torch import nn

from robustcore.density import gradient_matching_penalty
from robustcore.density.groups import gradient_matching_penalty as of_groups


def network(seed, out=(1,)):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, *out)).double()


def reference(critic, target, x):
    at = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(critic(at).sum(), at, create_graph=True)
    (want,) = torch.autograd.grad(target(at).sum(), at)
    return (got - want).square().flatten(1).sum(1)


def test_value_and_gradients():
    critic, target = network(0), network(1)
    x = torch.randn(7, 5, dtype=torch.float64)
    each = gradient_matching_penalty(critic, x, target, reduction="none")
    want = reference(critic, target, x)
    torch.testing.assert_close(each, want)
    got = torch.autograd.grad(gradient_matching_penalty(critic, x, target), critic.parameters(),
                              allow_unused=True, materialize_grads=True)  # fmt: skip
    expected = torch.autograd.grad(want.mean(), critic.parameters(), allow_unused=True,
                                   materialize_grads=True)  # fmt: skip
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in target.parameters())
    assert of_groups is gradient_matching_penalty


def test_values_of_ones_own_and_a_gradient_as_the_target():
    critic, target = network(0), network(1)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(target(x).sum(), x)
    values = critic(x)
    got = gradient_matching_penalty(critic, x, slope, values=values[:, 0], reduction="sum")
    torch.testing.assert_close(got, reference(critic, target, x.detach()).sum())
    assert torch.autograd.grad(got, critic[0].weight)[0].abs().max() > 0
    with torch.no_grad():
        assert not gradient_matching_penalty(critic, x, target).requires_grad
    assert gradient_matching_penalty(critic, x, critic) == 0


def test_a_critic_learns_a_slope_from_gradients_alone():
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    critic = nn.Linear(5, 1).double()
    x = torch.randn(20, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD([critic.weight], 0.25)
    for _ in range(60):
        optimizer.zero_grad()
        gradient_matching_penalty(critic, x, lambda g: g @ weight).backward()
        optimizer.step()
    torch.testing.assert_close(critic.weight[0].detach(), weight, rtol=1e-6, atol=1e-6)


X = torch.rand(3, 5, dtype=torch.float64)
BAD = [
    (dict(target=torch.zeros(3, 4)), ValueError, r"target: got shape \[3, 4\]"),
    (dict(target=lambda g: g), ValueError, r"target: gave shape \[3, 5\], want \[3\]"),
    (dict(target=lambda g: g.sum().detach().expand(3)), ValueError, "target: do not depend on x"),
    (dict(target=3), TypeError, "target: got int"),
    (dict(critic=lambda g: None), TypeError, "critic: gave NoneType"),
    (dict(values=torch.zeros(3)), ValueError, "values: do not depend on x"),
    (dict(reduction="max"), ValueError, "reduction: got 'max'"),
]


@pytest.mark.parametrize(("more", "error", "message"), BAD)
def test_bad_input(more, error, message):
    arguments = {"critic": network(0), "x": X, "target": network(1), **more}
    with pytest.raises(error, match=message):
        gradient_matching_penalty(**arguments)
