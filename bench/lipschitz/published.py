"""The published SOC as its sequence of torch operations, written from its description.

Singla and Feizi, "Skew orthogonal convolutions", 2021: at every forward the skew kernel, one power
iteration on four reshapes (training), and the Taylor series by autograd, contiguous, with 5 terms in
training and 12 in eval.
"""

import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_unshuffle

TRAIN_TERMS, EVAL_TERMS = 5, 12


def unit(t):
    """t over its norm, which goes through the host as published."""
    return t / max(float(t.square().sum().sqrt()), 1e-12)


class PublishedSOC(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, scale=0.7):
        super().__init__()
        self.stride, self.out_channels, self.scale = stride, out_channels, scale
        c, k = max(in_channels * stride**2, out_channels), kernel_size
        self.weight = nn.Parameter(torch.randn(c, c, k, k) / c**0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        shapes = [(1, c, 1, k), (1, c, k, 1), (1, c, k, k), (c, 1, k, k)]
        self.u = [unit(torch.randn(shape)) for shape in shapes]
        self.v = [None] * 4
        with torch.no_grad():
            for _ in range(50):
                self.iterate(self.skew())

    def skew(self):
        return 0.5 * (self.weight - self.weight.transpose(0, 1).flip(2, 3))

    def iterate(self, kernel):
        for i, (over_v, over_u) in enumerate(
            (((1, 3), (0, 2)), ((1, 2), (0, 3)), ((1, 2, 3), (0,)), ((0, 2, 3), (1,)))
        ):
            self.v[i] = unit((kernel * self.u[i]).sum(over_v, keepdim=True))
            self.u[i] = unit((kernel * self.v[i]).sum(over_u, keepdim=True))

    def kernel(self):
        kernel = self.skew()
        if self.training:
            with torch.no_grad():
                self.iterate(kernel)
        norms = [(kernel * u * v).sum() for u, v in zip(self.u, self.v, strict=True)]
        return self.scale * kernel / torch.stack(norms).min()

    def forward(self, x):
        kernel = self.kernel()
        if self.stride > 1:
            x = pixel_unshuffle(x, self.stride)
        channels = len(kernel)
        if x.shape[1] < channels:
            x = pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
        term = y = x
        for i in range(1, (TRAIN_TERMS if self.training else EVAL_TERMS) + 1):
            term = conv2d(term, kernel, padding=kernel.shape[2] // 2) / i
            y = y + term
        return y[:, : self.out_channels] + self.bias.view(1, -1, 1, 1)
