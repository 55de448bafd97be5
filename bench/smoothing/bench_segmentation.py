"""Certified segmentation without the model's own time: SmoothSegmentation against SegCertify."""

import numpy as np
import pytest
import torch

from robustcore import ops
from robustcore.smoothing import SmoothSegmentation

CLASSES, SIZE, N0, N, BATCH = 19, (128, 256), 10, 100, 10
SIGMA, TAU, ALPHA = 0.25, 0.75, 0.001


@pytest.fixture
def model(device):
    """Hands out logits that are there already, of which most samples agree."""
    torch.manual_seed(0)
    kept = torch.randn(1, CLASSES, *SIZE) * 2 + torch.randn(BATCH, CLASSES, *SIZE)
    kept = kept.to(device)
    return lambda batch: kept[: len(batch)]


def published(model, x):
    """Fischer et al.: all maps to the host, then a mode and a test a pixel, sorted by Holm."""
    from scipy import stats

    maps = []
    for first in range(0, N0 + N, BATCH):
        batch = x.repeat(min(BATCH, N0 + N - first), 1, 1, 1)
        maps.append(model(batch + torch.randn_like(batch) * SIGMA).argmax(1).cpu().numpy())
    samples = np.concatenate(maps).reshape(N0 + N, -1)
    classes, p_values = [], []
    for pixel in range(samples.shape[1]):
        own = samples[:, pixel]
        counts = np.zeros(CLASSES)
        for i in range(N0):
            counts[own[i]] += 1
        chosen = counts.argmax()
        votes = np.sum(own[N0:] == chosen)
        classes.append(chosen)
        p_values.append(stats.binom.sf(votes - 1, N, TAU))
    order = np.argsort(p_values)
    stays = np.asarray(p_values)[order] > ALPHA / np.arange(len(order), 0, -1)
    first = stays.argmax() if stays.any() else len(order)
    result = np.full(len(order), -1)
    result[order[:first]] = np.asarray(classes)[order[:first]]
    return torch.from_numpy(result).view(SIZE)


def eager(model, x, seed):
    """What a user would write with torch: classes chosen and counted on the device."""
    from scipy import stats

    def maps(first, count):
        for start in range(first, first + count, BATCH):
            noisy = x + torch.randn(BATCH, *x.shape[1:], device=x.device) * SIGMA
            yield model(noisy[: first + count - start]).argmax(1)

    torch.manual_seed(seed)
    votes = torch.zeros(CLASSES, *SIZE, dtype=torch.int64, device=x.device)
    for classes in maps(0, N0):
        votes += torch.nn.functional.one_hot(classes, CLASSES).sum(0).movedim(-1, 0)
    chosen = votes.argmax(0)
    counts = sum((classes == chosen).sum(0) for classes in maps(N0, N))
    p_values = stats.binom.sf(np.arange(N + 1) - 1, N, TAU)[counts.cpu().numpy().ravel()]
    order = np.argsort(p_values)
    stays = p_values[order] > ALPHA / np.arange(len(order), 0, -1)
    first = stays.argmax() if stays.any() else len(order)
    kept = np.zeros(len(order), bool)
    kept[order[:first]] = True
    return torch.where(torch.from_numpy(kept).view(SIZE), chosen.cpu(), -1)


@pytest.mark.parametrize("impl", ["robustcore", "eager", "published"])
def test_segmentation(impl, model, measure, device):
    x = torch.rand(1, 3, *SIZE, device=device)
    smooth = SmoothSegmentation(model, CLASSES, SIGMA, seed=0)

    def ours():
        return smooth.certify(x, N0, N, TAU, ALPHA, batch_size=BATCH).prediction

    functions = {
        "robustcore": ours,
        "eager": lambda: eager(model, x, 0),
        "published": lambda: published(model, x),
    }
    expected = ours()[0].cpu()
    assert 0.05 < float((expected == -1).double().mean()) < 0.95
    assert torch.equal(functions[impl]().cpu().view(SIZE), expected)
    few = {"rounds": 3, "warmups": 1} if impl == "published" else {}
    measure(
        "segmentation: [1, 19, 128, 256], n = 100, without the model", impl, functions[impl], **few
    )


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
def test_pixel_votes(impl, measure, device):
    logits = torch.randn(BATCH, CLASSES, *SIZE, device=device)
    chosen = logits[0].argmax(0)
    counts = torch.zeros(SIZE, dtype=torch.int32, device=device)

    def ours():
        ops.add_pixel_votes(counts, logits, chosen)

    def with_torch():
        counts.add_((logits.argmax(1) == chosen).sum(0))

    with_torch()
    expected = counts.clone()
    counts.zero_()
    ours()
    assert torch.equal(counts, expected)
    measure(
        "add_pixel_votes: [10, 19, 128, 256]", impl, ours if impl == "robustcore" else with_torch
    )
