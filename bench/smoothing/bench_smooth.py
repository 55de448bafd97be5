"""Smooth.certify end to end, against the published loop and a plain one in PyTorch.

All call the same base classifier equally often; `model alone` is that, without any noise, and so
the least that a certification can take.
"""

import numpy as np
import pytest
import torch
from torch import nn

from robustcore.smoothing import Smooth
from robustcore.smoothing.demo import digits_cnn

SIGMA, MEAN, STD = 0.25, 0.3, 0.4
N0, BATCH = 100, 1000


def two_convolutions():
    """A model that costs far more than its noise: there is little to gain."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.around = nn.Identity()
        if stride != 1 or channels != out:
            self.around = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        return torch.relu_(self.main(x) + self.around(x))


def resnet18():
    """He et al., 2016, with the stem for 224 x 224: on 32 x 32 the cheapest form of it."""
    widths, blocks, channels = (64, 128, 256, 512), [], 64
    for i, width in enumerate(widths):
        blocks += [Block(channels, width, 2 if i else 1), Block(width, width, 1)]
        channels = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


# name: images, shape, n, model
GPU_CASES = {  # enough full batches for a CUDA graph
    "1 digit, n = 100 000, demo CNN": (1, (1, 8, 8), 100_000, digits_cnn),
    "1 image of 3x32x32, n = 10 000, ResNet-18": (1, (3, 32, 32), 10_000, resnet18),
}
CASES = GPU_CASES | {
    "4 digits, n = 10 000, demo CNN": (4, (1, 8, 8), 10_000, digits_cnn),
    "64 digits, n = 100, demo CNN": (64, (1, 8, 8), 100, digits_cnn),
    "1 image of 3x32x32, n = 2000, two convolutions": (1, (3, 32, 32), 2000, two_convolutions),
    "1 image of 3x32x32, n = 500, ResNet-18": (1, (3, 32, 32), 500, resnet18),
}


class NormalizeLayer(nn.Module):
    """As published: mean and std as large as the batch."""

    def __init__(self, channels, device):
        super().__init__()
        self.means = torch.full((channels,), MEAN, device=device)
        self.sds = torch.full((channels,), STD, device=device)

    def forward(self, x):
        batch, _, height, width = x.shape
        means = self.means.repeat((batch, height, width, 1)).permute(0, 3, 1, 2)
        sds = self.sds.repeat((batch, height, width, 1)).permute(0, 3, 1, 2)
        return (x - means) / sds


def in_batches(num):
    return [min(BATCH, num - start) for start in range(0, num, BATCH)]


def published_counts(model, image, num):
    """Cohen et al.: four full-size temporaries, a sync a batch, a Python loop over the votes."""
    counts = np.zeros(10, dtype=int)
    for size in in_batches(num):
        batch = image.repeat((size, 1, 1, 1))
        noise = torch.randn_like(batch) * SIGMA
        for index in model(batch + noise).argmax(1).cpu().numpy():
            counts[index] += 1
    return torch.from_numpy(counts)


def eager_counts(model, image, num):
    """What a careful user writes: in place, counts on the device."""
    counts = torch.zeros(10, dtype=torch.int64, device=image.device)
    for size in in_batches(num):
        noise = torch.randn((size, *image.shape), device=image.device)
        batch = noise.mul_(SIGMA).add_(image).sub_(MEAN).div_(STD)
        counts += torch.bincount(model(batch).argmax(1), minlength=10)
    return counts


def model_alone(model, images, n):
    batch = torch.rand((BATCH, *images.shape[1:]), device=images.device)
    for num in (N0, n):
        for size in in_batches(num * len(images)):
            model(batch[:size])


def implementation(impl, model, images, n):
    """A function without arguments: the votes of the estimation, after those of the selection."""
    if impl.startswith("robustcore"):
        graph = None if impl == "robustcore" else False
        smooth = Smooth(model, 10, SIGMA, seed=1, mean=MEAN, std=STD, cuda_graph=graph)
        return lambda: smooth.certify(images, N0, n, batch_size=BATCH).counts
    count = published_counts if impl == "published" else eager_counts
    if impl == "published":
        model = nn.Sequential(NormalizeLayer(images.shape[1], images.device), model)

    def loop():
        with torch.no_grad():
            stages = [[count(model, image, num) for num in (N0, n)] for image in images]
        return torch.stack([estimation for _, estimation in stages]).cpu()

    return loop


IMPLS = ["robustcore", "robustcore, no CUDA graph", "published", "eager", "model alone (limit)"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES)
def test_smooth(case, impl, measure, device):
    if device.type == "cpu" and (case in GPU_CASES or impl == "robustcore, no CUDA graph"):
        pytest.skip("only on a GPU")
    number, shape, n, factory = CASES[case]
    torch.manual_seed(0)
    model = factory().to(device).eval()
    images = torch.rand(number, *shape, device=device)
    if impl == "model alone (limit)":
        with torch.inference_mode():
            measure(f"certify: {case}", impl, lambda: model_alone(model, images, n))
        return
    fn = implementation(impl, model, images, n)
    counts, expected = fn(), implementation("eager", model, images, n)()
    assert counts.sum(1).tolist() == [n] * number
    # Other noise, the same distribution: the difference has a variance below n / 2.
    assert (counts - expected).abs().max() < 6 * (n / 2) ** 0.5
    rounds = 3 if case in GPU_CASES else 15
    against = None
    if impl in ("published", "eager"):
        against = "robustcore", implementation("robustcore", model, images, n)
    measure(f"certify: {case}", impl, fn, rounds=rounds, against=against)


def test_overhead(measure, device):
    """What noise, votes and the loop cost beside a model of the size of a ResNet-18."""
    torch.manual_seed(0)
    model = resnet18().to(device).eval()
    images = torch.rand(1, 3, 32, 32, device=device)

    def alone():
        with torch.inference_mode():
            model_alone(model, images, 500)

    fn = implementation("robustcore", model, images, 500)
    group = "certify: overhead, 1 image of 3x32x32, n = 500, ResNet-18"
    measure(group, "robustcore", fn, rounds=25, against=("the model alone", alone))
