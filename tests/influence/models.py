"""Small networks, data and labels."""

import torch
from torch import nn
from torch.nn.functional import pad

CLASSES = 5


class Convolutions(nn.Module):
    """Strides, groups, dilation, no bias, a ReLU in place, BatchNorm; a layer called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, (3, 2), groups=2, dilation=2, bias=False)
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.second(pad(x, (2, 2, 2, 2))))
        return self.head(self.twice(self.relu(self.twice(x))).mean((2, 3)))


class Tokens(nn.Module):
    """A Linear of several places, attention (its projections are not called), a shared weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
        self.b.weight = self.a.weight
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2))
        x = self.norm(x + self.attend(x, x, x, need_weights=True)[0])
        return self.head(self.b(self.a(x).tanh()).mean(1))


class Elsewhere(nn.Module):
    """Layers that look as if they could be read off, and cannot."""

    def __init__(self):
        super().__init__()
        self.moved = nn.Linear(64, 7)
        self.used = nn.Linear(7, CLASSES)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.moved(x.flatten(1).mT.mT[:, None].transpose(0, 1)).transpose(0, 1)[:, 0]
        return self.used(x) + x.tanh() @ self.used.weight.mT


def network(kind, dtype=torch.float64):
    torch.manual_seed(0)
    return kind().to(dtype).eval()


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def images(n=9, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)


def labels(n=9):
    return torch.arange(n) * 2 % CLASSES


def margin(logits, y):
    """log(p / (1 - p)), written another way."""
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    return p.log() - (-p).log1p()


def gradients(model, x, y, scalar=margin):
    """``[N, parameters]``, sample by sample."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x)):
        value = scalar(model(x[i : i + 1]), y[i : i + 1]).sum()
        grads = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)
