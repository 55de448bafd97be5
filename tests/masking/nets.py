"""Small networks of each kind of block, eval mode, float64, random statistics; no torchvision."""

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """ResNet's, with a stride in the 3x3 convolution."""

    def __init__(self, inputs, width, stride=1, groups=1):
        super().__init__()
        out = 2 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.skip = nn.Identity()
        if stride != 1 or inputs != out:
            self.skip = nn.Sequential(nn.Conv2d(inputs, out, 1, stride), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.body(x)
        out += self.skip(x)
        return self.relu(out)


class Basic(nn.Module):
    """ResNet-18's block."""

    def __init__(self, inputs, out, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.skip = nn.Identity()
        if stride != 1 or inputs != out:
            self.skip = nn.Sequential(nn.Conv2d(inputs, out, 1, stride), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.body(x) + self.skip(x))


class Fire(nn.Module):
    """SqueezeNet's."""

    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.one(x)), self.relu(self.three(x))], 1)


class Dense(nn.Module):
    """A DenseNet block."""

    def __init__(self, inputs, growth, layers):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + i * growth), nn.ReLU(inplace=True),
                nn.Conv2d(inputs + i * growth, growth, 3, 1, 1),
            )
            for i in range(layers)
        )  # fmt: skip

    def forward(self, x):
        parts = [x]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)))
        return torch.cat(parts, 1)


class SqueezeExcite(nn.Module):
    """MobileNetV3's block: depthwise convolution and a scale from the mean."""

    def __init__(self, width):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Hardswish())
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 5, 1, 2, groups=2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.scale = nn.Sequential(
            nn.Conv2d(2 * width, 3, 1), nn.ReLU(), nn.Conv2d(3, 2 * width, 1), nn.Hardsigmoid()
        )
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x):
        y = functional.silu(self.depthwise(self.expand(x)))
        return x + self.project(self.scale(self.pool(y)) * y)


class Head(nn.Module):
    """Global mean and a dense layer; ``hidden``: two of them."""

    def __init__(self, inputs, hidden=False):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        layers = [nn.Linear(inputs, 6), nn.ReLU(), nn.Dropout(0.5)] if hidden else []
        self.dense = nn.Sequential(*layers, nn.Linear(6 if hidden else inputs, 5))

    def forward(self, x):
        return self.dense(torch.flatten(self.pool(x), 1))


def stem(out, kernel=7):
    return [
        nn.Conv2d(3, out, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(out),
        nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip


NETS = {
    "bottlenecks": lambda: nn.Sequential(
        *stem(8), Bottleneck(8, 6), Bottleneck(12, 6, groups=3), Bottleneck(12, 8, 2), Head(16)
    ),
    "basic blocks": lambda: nn.Sequential(
        *stem(6), Basic(6, 6), Basic(6, 8, 2), Basic(8, 8), Head(8)
    ),
    "fires": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8, 4, 6),
        nn.MaxPool2d(3, 2, ceil_mode=True), Fire(12, 4, 6), Head(12),
    ),
    "dense blocks": lambda: nn.Sequential(
        *stem(8), Dense(8, 4, 3), nn.BatchNorm2d(20), nn.ReLU(inplace=True), nn.Conv2d(20, 10, 1),
        nn.AvgPool2d(2), Dense(10, 4, 4), nn.BatchNorm2d(26), Head(26),
    ),
    "squeeze-excite": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(), SqueezeExcite(8), SqueezeExcite(8),
        Head(8, hidden=True),
    ),
    "plain, flattened": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, (3, 5), (2, 1), (1, 2), bias=False), nn.BatchNorm2d(6), nn.ReLU(True),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(),
        nn.Linear(8 * 4 * 8, 7), nn.ReLU(), nn.Linear(7, 5),
    ),
}  # fmt: skip
SIZE = 64


def build(name, seed=0, dtype=torch.float64):
    """A net of NETS for images [N, 3, 64, 64], logits [N, 5]."""
    return randomized(NETS[name](), seed, dtype)


def randomized(model, seed=0, dtype=torch.float64):
    """model in eval mode, with statistics and biases that are not 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            with torch.no_grad():
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.bias.normal_(generator=generator)
    return model.to(dtype).eval()


def image(n=2, size=SIZE, seed=0, dtype=torch.float64):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blocks(n=2, size=SIZE, block=16, share=0.5, seed=0, dtype=torch.float64):
    """Masks of random visible blocks [n, 1, size, size]."""
    side = -(-size // block)
    generator = torch.Generator().manual_seed(seed)
    m = (torch.rand(n, 1, side, side, generator=generator) < share).to(dtype)
    return m.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :size, :size]
