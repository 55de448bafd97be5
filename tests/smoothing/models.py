"""Base classifiers whose votes are known, whatever the batch that an image is in."""

import torch
from torch import nn


class Pixels(nn.Module):
    """The logits are the first K pixels: nothing is added up, so nothing is rounded."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.eval()

    def forward(self, x):
        return x.flatten(1)[:, : self.num_classes]


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))
        self.eval()

    def forward(self, x):
        return self.logits.expand(len(x), -1)


class HalfSpace(nn.Module):
    """Class 1 where w.x + b > 0, else class 0; in float64."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight.double(), bias
        self.eval()

    def margin(self, x):
        return x.flatten(1).double() @ self.weight + self.bias

    def forward(self, x):
        margin = self.margin(x)
        return torch.stack([-margin, margin], 1)
