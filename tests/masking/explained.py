"""Small models whose explanations are known, for the tests of explanations."""

import torch
from torch import nn

SEGMENTS = torch.arange(16)[:, None] // 4 * 4 + torch.arange(16) // 4  # 4 x 4 of them


class Patch(nn.Module):
    """Class 1 if the patch of segment 5 is bright: the mean of a convolution that looks there."""

    def __init__(self):
        super().__init__()
        self.pixel = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.pixel.weight.copy_(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1))
            self.pixel.bias.zero_()
        self.requires_grad_(False)
        self.eval()

    def forward(self, x):
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.pixel(x), 1), 1)


class OneLogit(Patch):
    """One output an image: a regression, or the logit of one class against none."""

    def forward(self, x):
        return super().forward(x)[:, 1:]


class Map(Patch):
    """A map of two classes under a name, as torchvision's segmentation networks give it."""

    def forward(self, x):
        return {"out": self.pixel(x)}


def image():
    """Bright in segment 5, darker than nothing elsewhere."""
    x = torch.full((1, 16, 16), -0.1)
    x[0][SEGMENTS == 5] = 1
    return x


def shown_segments(mask, segments=SEGMENTS):
    """Which segments a mask ``[N, 1, H, W]`` shows, float64 ``[N, S]``."""
    first = [int((segments.flatten() == s).nonzero()[0]) for s in segments.unique()]
    return mask.flatten(1)[:, first].double()


def of_sets(value, segments=SEGMENTS):
    """A function of (x, mask) whose one output is ``value`` of the shown sets ``[N, S]``."""

    def predict(x, mask):
        return value(shown_segments(mask, segments))

    return predict


def nonlinear(number, seed=0):
    """A function of sets ``[N, S]`` with products of two and of three segments."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(number, generator=generator, dtype=torch.float64)
    two = torch.randn(number, number, generator=generator, dtype=torch.float64)

    def value(z):
        pairs = ((z @ two) * z).sum(1)
        return 0.3 + z @ one + pairs + 2 * z[:, 0] * z[:, number // 2] * z[:, -1]

    return value
