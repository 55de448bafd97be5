"""Images and gradients, norms of differences, and the projections in float64."""

import torch

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 6.0, "l0": 7}


def uniform(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normal(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norms(d, norm):
    d = d.double()
    if norm == "l0":
        return (d.flatten(2) != 0).any(1).sum(1).double()
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(d.flatten(1), order, dim=1)


def check_inside(x, x0, norm, eps, low=0.0, high=1.0):
    assert x.min() >= low
    assert x.max() <= high
    slack = {"linf": 0, "l0": 0}.get(norm, 1e-6)
    assert (norms(x.double() - x0.double(), norm) <= eps * (1 + slack)).all()


def reference(v, x0, norm, eps, low=0.0, high=1.0):
    """The projection in float64, by 200 bisections of its one number; l0 by a sort."""
    v, x0 = v.double(), x0.double()
    d = v - x0
    if norm == "linf":
        return (x0 + d.clamp(-eps, eps)).clamp(low, high)
    if norm == "l0":
        clipped = v.clamp(low, high)
        gain = (d.square() - (v - clipped).square()).flatten(2).sum(1)
        keep = torch.zeros_like(gain)
        keep.scatter_(1, gain.sort(dim=1, descending=True, stable=True).indices[:, : int(eps)], 1)
        return torch.where(keep.view(len(v), 1, *v.shape[2:]) > 0, clipped, x0)

    def at(t):
        t = t.view(-1, *[1] * (v.dim() - 1))
        moved = t * d if norm == "l2" else d.sign() * (d.abs() - (1 / t - 1)).clamp_min(0)
        return (x0 + moved).clamp(low, high)

    low_t, high_t = torch.full((len(v),), 1e-12).double(), torch.ones(len(v)).double()
    for _ in range(200):
        t = (low_t + high_t) / 2
        out = norms(at(t) - x0, norm) > eps
        low_t, high_t = torch.where(out, low_t, t), torch.where(out, t, high_t)
    return torch.where(
        (norms(at(torch.ones_like(low_t)) - x0, norm) <= eps).view(-1, *[1] * (v.dim() - 1)),
        at(torch.ones_like(low_t)), at(low_t),
    )  # fmt: skip
