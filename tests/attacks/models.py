"""Models that attacks are tried on."""

import torch
from torch import nn


class Linear(nn.Module):
    """Logits of each image by itself: to the bit the same whatever the batch."""

    def __init__(self, classes=5, elements=48, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, elements, generator=generator))
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        flat = x.flatten(1).to(self.weight.dtype)
        return torch.stack([(flat * w).sum(1) for w in self.weight], 1)


def images(n=12, shape=(3, 4, 4), seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def labelled(model, n=12, **kind):
    """Images and the classes that the model gives them."""
    x = images(n, **kind)
    with torch.no_grad():
        y = model(x).argmax(1)
    model.calls.clear()
    return x, y


def conv_net(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(128, classes),
    ).eval()  # fmt: skip
