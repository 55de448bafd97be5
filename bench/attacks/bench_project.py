"""ops.project on the l1 ball and the box against sorts, as published code has it."""

import pytest
import torch

from robustcore import ops


def sorted_projection(v, x0, eps):
    """The same point, from the sorted kinks of the norm: one sort of two numbers an element."""
    d = v - x0
    room = torch.where(d > 0, 1 - x0, x0)
    kinks, order = torch.cat([d.abs(), (d.abs() - room).clamp_min(0)], 1).sort(1, descending=True)
    slope = torch.where(order < d.shape[1], 1.0, -1.0).cumsum(1)
    norm = torch.zeros_like(kinks)
    norm[:, 1:] = (slope[:, :-1] * (kinks[:, :-1] - kinks[:, 1:])).cumsum(1)
    at = (norm <= eps).sum(1, keepdim=True) - 1
    t = kinks.gather(1, at) - (eps - norm.gather(1, at)) / slope.gather(1, at)
    t = torch.where(norm[:, -1:] <= eps, 0, t)
    return x0 + d.sign() * (d.abs() - t).clamp_min(0).minimum(room)


@pytest.mark.parametrize("impl", ["robustcore", "published"])
@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_l1_projection(spread, impl, measure, device):
    torch.manual_seed(0)
    x0 = torch.rand(128, 3072, device=device)
    v, eps = x0 + spread * torch.randn_like(x0), 12.0
    fn = {
        "robustcore": lambda: ops.project(v, x0, "l1", eps),
        "published": lambda: sorted_projection(v, x0, eps),
    }[impl]
    torch.testing.assert_close(fn(), ops.project(v, x0, "l1", eps), rtol=0, atol=1e-5)
    measure(f"l1 ball and box, 128 x 3072, spread {spread:g}", impl, fn)
