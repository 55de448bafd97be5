"""ops.perceptual_distance and its gradient against the operations that published code composes."""

import pytest
import torch

from robustcore import ops

# The layers of AlexNet, as LPIPS and PAT take them, of images of 64 pixels a side.
SHAPES = [(64, 15, 15), (192, 7, 7), (384, 3, 3), (256, 3, 3), (256, 3, 3)]
BATCH = 32


def composed(features, reference):
    total = 0
    for f, r in zip(features, reference, strict=True):
        f = f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
        r = r / (r.square().sum(1, keepdim=True).sqrt() + 1e-10)
        total = total + (f - r).square().sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("impl", ["robustcore", "published"])
@pytest.mark.parametrize("gradient", [False, True], ids=["distance", "and gradient"])
def test_perceptual_distance(gradient, impl, measure, device):
    torch.manual_seed(0)
    features, reference = ([torch.randn(BATCH, *s, device=device) for s in SHAPES] for _ in "fr")
    distance = {"robustcore": ops.perceptual_distance, "published": composed}[impl]

    def fn():
        if not gradient:
            with torch.no_grad():
                return [distance(features, reference)]
        leaves = [f.detach().requires_grad_() for f in features]
        return torch.autograd.grad(distance(leaves, reference).sum(), leaves)

    if not gradient:
        torch.testing.assert_close(fn()[0], composed(features, reference))
    title = ", with the gradient of one" if gradient else ""
    measure(f"perceptual distance, {BATCH} images, AlexNet's layers{title}", impl, fn)
