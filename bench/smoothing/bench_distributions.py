"""The other noises, ablation and vote certificates, against the published sequences."""

import numpy as np
import pytest
import torch

from robustcore import ops
from robustcore.smoothing import dpa_certificate, finite_aggregation_certificate

SCALE = 0.3
SAMPLES = 1000


def published_noise(kind, x):
    """One image's samples as published: repeat, draw, scale, add or split."""
    batch = x.repeat(SAMPLES, 1, 1, 1)
    if kind == "uniform":
        return (torch.rand_like(batch) - 0.5) * 2 * SCALE + batch
    if kind == "laplace":
        zero = torch.zeros((), device=x.device)
        return torch.distributions.Laplace(zero, SCALE).sample(batch.shape) + batch
    s = torch.rand_like(batch) * 2 * SCALE
    upper = torch.ceil((batch - s) / (2 * SCALE)) * 2 * SCALE + s
    return (upper.clamp(max=1.0) + (upper - 2 * SCALE).clamp(min=0.0)) / 2


@pytest.mark.parametrize("impl", ["robustcore", "published"])
@pytest.mark.parametrize("kind", ["uniform", "laplace", "splitting"])
def test_noise(kind, impl, measure, device):
    x = torch.rand(1, 3, 32, 32, device=device)
    op = getattr(ops, f"{kind}_noise")
    out = op(x, SAMPLES, SCALE, seed=0)
    # The same distribution about the same image, before anything is timed.
    ours, theirs = out[0].flatten(1).double(), published_noise(kind, x).flatten(1).double()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.1
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.1
    if impl == "published":
        measure(f"{kind}_noise: 1000 samples of 3x32x32", impl, lambda: published_noise(kind, x))
        return
    step = iter(range(0, 2**40, SAMPLES))
    measure(
        f"{kind}_noise: 1000 samples of 3x32x32",
        impl,
        lambda: op(x, SAMPLES, SCALE, seed=1, sample_offset=next(step), out=out),
    )


def published_choice(n, k, batch, device):
    """k of n without replacement, a row each: the i-th draw is moved past those before it."""
    chosen = torch.zeros(batch, k, dtype=torch.long, device=device)
    for i in range(k):
        chosen[:, i] = torch.randint(0, n - i, (batch,), device=device)
        moved = torch.zeros(batch, dtype=torch.long, device=device)
        while i:
            passed = (chosen[:, :i] <= (chosen[:, i] + moved).unsqueeze(1)).sum(1)
            if torch.equal(passed, moved):
                break
            moved = passed
        chosen[:, i] += moved
    return chosen


def published_ablation(x, k):
    flat = x.repeat(SAMPLES, 1, 1, 1).permute(0, 2, 3, 1).flatten(1, 2)
    kept, inverse = torch.zeros_like(flat), torch.zeros_like(flat)
    index = published_choice(flat.shape[1], k, SAMPLES, x.device)
    rows = torch.arange(SAMPLES, device=x.device).unsqueeze(1)
    kept[rows, index] = flat[rows, index]
    inverse[rows, index] = 1 - flat[rows, index]
    both = torch.cat([kept, inverse], 2)
    return both.permute(0, 2, 1).reshape(SAMPLES, -1, *x.shape[2:])


@pytest.mark.parametrize("impl", ["robustcore", "published"])
@pytest.mark.parametrize("channels", [1, 3])
def test_ablate_pixels(channels, impl, measure, device):
    x = torch.rand(1, channels, 32, 32, device=device) * 0.9 + 0.05
    group = f"ablate_pixels: 1000 samples of {channels}x32x32, k = 75"
    out = ops.ablate_pixels(x, SAMPLES, 75, seed=0)
    for made in (out[0], published_ablation(x, 75)):
        assert (made[:, :channels] != 0).sum((1, 2, 3)).unique().tolist() == [75 * channels]
    if impl == "published":
        measure(group, impl, lambda: published_ablation(x, 75), rounds=3)
        return
    step = iter(range(0, 2**40, SAMPLES))
    measure(
        group,
        impl,
        lambda: ops.ablate_pixels(x, SAMPLES, 75, seed=1, sample_offset=next(step), out=out),
    )


def published_blocks(x, size):
    """Every block as published: a Python loop over the positions."""
    both = torch.cat([x, 1 - x], 1)
    height, width = x.shape[2:]
    out = []
    for top in range(height):
        for left in range(width):
            rows = [(top + i) % height for i in range(size)]
            columns = [(left + i) % width for i in range(size)]
            one = torch.zeros_like(both)
            index = (slice(None), slice(None), torch.tensor(rows)[:, None], torch.tensor(columns))
            one[index] = both[index]
            out.append(one)
    return torch.stack(out, 1)


@pytest.mark.parametrize("impl", ["robustcore", "published"])
def test_ablate_patches(impl, measure, device):
    x = torch.rand(1, 3, 32, 32, device=device)
    assert torch.equal(ops.ablate_patches(x, 12), published_blocks(x, 12))
    fn = {
        "robustcore": lambda: ops.ablate_patches(x, 12),
        "published": lambda: published_blocks(x, 12),
    }[impl]
    measure("ablate_patches: all 12x12 blocks of 3x32x32", impl, fn, rounds=5)


@pytest.mark.parametrize("what", ["dpa", "finite aggregation"])
def test_poisoning_certificates(what, measure, device):
    if device.type != "cpu":
        pytest.skip("its votes are on the CPU")
    # 10 000 test points; k = 250 partitions, spread d = 16: 4000 learners.
    generator = np.random.default_rng(0)
    learners = 250 if what == "dpa" else 4000
    votes = generator.integers(0, 10, (10_000, learners))
    votes[:, : learners // 2] = 3
    votes = torch.from_numpy(generator.permuted(votes, axis=1))
    shifts = sorted(generator.choice(4000, 16, replace=False).tolist())

    def certify():
        if what == "dpa":
            return dpa_certificate(torch.nn.functional.one_hot(votes, 10).sum(1))
        return finite_aggregation_certificate(votes, 10, shifts)

    assert bool((certify().prediction == 3).all())
    measure(f"{what}: 10 000 test points, k = 250, d = 16", "robustcore", certify, rounds=1)
