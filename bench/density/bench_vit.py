"""A training step of a ViT-tiny with the density penalty, and without; attention by torch too."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from robustcore import density

WEIGHT = 0.1


class VisionTransformer(nn.Module):
    """ViT-tiny: patches of 16 pixels, 12 layers of 192 channels and 3 heads."""

    def __init__(self, side=224, patch=16, depth=12, width=192, heads=3, classes=100):
        super().__init__()
        tokens = (side // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.layers(tokens + self.positions)[:, 0])


def step(impl, model, x, y):
    x = x.detach().requires_grad_(impl != "no penalty")
    contexts = {
        "robustcore": density.fast_double_backward,
        "math backend": lambda: sdpa_kernel(SDPBackend.MATH),
    }
    with contexts.get(impl, nullcontext)():
        logits = model(x)
    loss = cross_entropy(logits, y)
    if impl != "no penalty":
        loss = loss + WEIGHT * density.marginal_density_penalty(model, x, logits=logits)
    loss.backward()
    return loss.detach()


@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("impl", ["robustcore", "math backend", "no penalty"])
def test_training_step(impl, measure, device):
    torch.manual_seed(0)
    model = VisionTransformer().to(device)
    x, y = torch.rand(16, 3, 224, 224, device=device), torch.randint(100, (16,), device=device)

    def run(impl):
        model.zero_grad()
        return step(impl, model, x, y)

    if impl == "math backend":
        torch.testing.assert_close(run(impl), run("robustcore"), rtol=1e-4, atol=1e-4)
    other = {"robustcore": "no penalty", "math backend": "robustcore"}.get(impl)
    measure(
        "density training step: ViT-tiny, 16 x 3 x 224 x 224", impl, lambda: run(impl),
        rounds=3, warmups=1, against=other and (other, lambda: run(other)),
    )  # fmt: skip
