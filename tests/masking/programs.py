"""Random small networks, and what masks mean for them written out plainly, in float64.

A program is a list of steps, each an operation of :data:`OPERATIONS` on earlier results.
``Network`` runs it as a model would. :func:`expected` runs it on pairs (x, m): m is as large as x
in every dimension but channels, and what the README's table says of an operation is done in full,
with nothing left out, symbolic or shared.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from masking.reference import fill, times


class Step(NamedTuple):
    """An operation and which results it reads: 0 is the image, i the i-th step's."""

    name: str
    inputs: tuple[int, ...]


class Pair(NamedTuple):
    """A result and where it is visible; m None: a vector."""

    x: torch.Tensor
    m: torch.Tensor | None


C = 4  # channels of every map but the image


def window(x, m, f, kernel, stride=1, padding=0, dilation=1):
    """A window's output: its input filled, its mask the largest it sees."""
    ones = m.new_ones(1, 1, kernel, kernel)
    seen = functional.conv2d(m, ones, None, stride, padding, dilation) > 0
    return Pair(times(f(fill(x, m, dilation * (kernel - 1) + 1)), seen.double()), seen.double())


def pointwise(f):
    return lambda net, i, p: Pair(times(f(net, i, p.x), p.m), p.m)


def conv(kernel, stride=1, padding=0, dilation=1, groups=1):
    def make():
        return nn.Conv2d(C, C, kernel, stride, padding, dilation, groups)

    def of_pair(net, i, p):
        return window(p.x, p.m, net.layers[i], kernel, stride, padding, dilation)

    return make, lambda net, i, x: net.layers[i](x), of_pair


def plain(f, make=None):
    """The same at every pixel."""
    return make, f, pointwise(f)


def pool(f, seen):
    """What is hidden is 0; visible: what ``seen`` says."""

    def of_pair(net, i, p):
        m = (seen(p.m) > 0).double()
        return Pair(times(f(times(p.x, p.m)), m), m)

    return None, lambda net, i, x: f(x), of_pair


def moved(f):
    return None, lambda net, i, x: f(x), lambda net, i, p: Pair(f(p.x), f(p.m))


def resized(f, reach):
    def of_pair(net, i, p):
        m = (f(p.m) > 0).double()
        return Pair(times(f(fill(p.x, p.m, reach) if reach else p.x), m), m)

    return None, lambda net, i, x: f(x), of_pair


def visible_mean(p, dims, keep=False):
    share = p.m.mean(dims, keepdim=keep)
    mean = times(p.x, p.m).mean(dims, keepdim=keep)
    return mean / torch.where((share == 0) | (share == 1), 1, share + 1e-8)


def excite(net, i, x):
    return x * net.layers[i](x.mean((2, 3), keepdim=True)).sigmoid()


def excite_pair(net, i, p):
    return Pair(times(p.x * net.layers[i](visible_mean(p, (2, 3), True)).sigmoid(), p.m), p.m)


def norm_pair(net, i, p):
    """GroupNorm of each sample's visible pixels alone."""
    y = torch.zeros_like(p.x)
    for n, shown in enumerate(p.m[:, 0] > 0):
        if shown.any():
            y[n, :, shown] = net.layers[i](p.x[n : n + 1, :, shown])[0]
    return Pair(y, p.m)


def channels(net, i, x):
    return net.layers[i](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def reduced(f):
    """What is added to each channel is f of all its pixels ``[C, P]``; of visible ones alone."""

    def of_pair(net, i, p):
        y = torch.stack([
            f(x[:, m > 0]) if (m > 0).any() else x.new_zeros(C)
            for x, m in zip(p.x, p.m[:, 0], strict=True)
        ])  # fmt: skip
        return Pair(times(p.x + y[:, :, None, None], p.m), p.m)

    def plain(net, i, x):
        return x + f(x.flatten(2)).view(*x.shape[:2], 1, 1)

    return None, plain, of_pair


def coordinates(net, i, x):
    """Means of rows and of columns, seen together, gate the pixels."""
    return gated(net.layers[i], x, x.mean(3, True), x.mean(2, True))


def gated(layer, x, rows, columns):
    both = layer(torch.cat([rows, columns.transpose(2, 3)], 2)).sigmoid()
    rows, columns = both.split([rows.shape[2], columns.shape[3]], 2)
    return x * rows * columns.transpose(2, 3)


def coordinates_pair(net, i, p):
    means = visible_mean(p, (3,), True), visible_mean(p, (2,), True)
    return Pair(times(gated(net.layers[i], p.x, *means), p.m), p.m)


def attend(net, i, x):
    """Attention of pixels as tokens, with a class token that is added to all afterwards."""
    n, c, h, w = x.shape
    t = torch.cat([net.token.expand(n, 1, c), x.flatten(2).transpose(1, 2)], 1)
    t = t + attention(net.layers[i], t)
    return t[:, 1:].transpose(1, 2).reshape(n, c, h, w) + t[:, 0, :, None, None]


def attention(layer, t):
    q, k, v = layer(t).chunk(3, 2)
    return functional.scaled_dot_product_attention(q, k, v)


def attend_pair(net, i, p):
    """Hidden tokens do not occur."""
    y = torch.zeros_like(p.x)
    for n, shown in enumerate(p.m[:, 0] > 0):
        t = torch.cat([net.token[0], p.x[n, :, shown].T])[None]
        t = (t + attention(net.layers[i], t))[0]
        y[n, :, shown] = (t[1:] + t[:1]).T
    return Pair(y, p.m)


def scores(net, i, x):
    """Attention of channels: a product over pixels."""
    y = x.flatten(2)
    return torch.einsum("ncp,nkp->nck", y, y).softmax(2) @ y


def scores_pair(net, i, p):
    y = scores(net, i, times(p.x, p.m)).view_as(p.x)
    return Pair(times(y, p.m), p.m)


# What makes the layer, what the network does, what is expected.
OPERATIONS = {
    "conv 3": conv(3, padding=1), "conv 3, stride 2": conv(3, 2, 1), "conv 5": conv(5, padding=2),
    "conv 3, dilation 2": conv(3, padding=2, dilation=2), "conv 2": conv(2), "conv 1": conv(1),
    "depthwise": conv(3, padding=1, groups=C),
    "batch norm": plain(lambda net, i, x: net.layers[i](x), lambda: nn.BatchNorm2d(C)),
    "silu": plain(lambda net, i, x: functional.silu(x)),
    "relu in place": plain(lambda net, i, x: functional.relu_(x + 0.1)),
    "softmax": plain(lambda net, i, x: 3 * x.softmax(1)),
    "layer norm": plain(channels, lambda: nn.LayerNorm(C)),
    "linear": plain(channels, lambda: nn.Linear(C, C)),
    "group norm": (lambda: nn.GroupNorm(2, C), lambda net, i, x: net.layers[i](x), norm_pair),
    "max pool": pool(lambda x: functional.max_pool2d(x, 2), lambda m: functional.max_pool2d(m, 2)),
    "average pool": pool(
        lambda x: functional.avg_pool2d(x, 3, 1, 1), lambda m: functional.max_pool2d(m, 3, 1, 1)
    ),
    "adaptive pool": pool(*[lambda t: functional.adaptive_avg_pool2d(t, 3)] * 2),
    "nearest": resized(lambda x: functional.interpolate(x, scale_factor=2), 0),
    "bilinear": resized(
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"), 1
    ),
    "flip": moved(lambda x: x.flip(3)), "roll": moved(lambda x: x.roll((1, 2), (2, 3))),
    "cut": moved(lambda x: x[:, :, 1:, :-1]), "turn": moved(lambda x: x.transpose(2, 3)),
    "excite": (lambda: nn.Conv2d(C, C, 1), excite, excite_pair),
    "largest": reduced(lambda x: x.amax(-1)), "smallest": reduced(lambda x: x.min(-1)[0]),
    "variance": reduced(lambda x: x.var(-1, correction=0)),
    "deviation": reduced(lambda x: x.std(-1) if x.shape[-1] > 1 else x[..., 0] * 0),
    "log-sum-exp": reduced(lambda x: x.logsumexp(-1)),
    "coordinates": (lambda: nn.Conv2d(C, C, 1), coordinates, coordinates_pair),
    "attention": (lambda: nn.Linear(C, 3 * C), attend, attend_pair),
    "scores": (None, lambda net, i, x: scores(net, i, x).view_as(x), scores_pair),
}  # fmt: skip


def add(a, b):
    return a + b


def concatenate(a, b):
    return torch.cat([a, b], 1)[:, 1 : C + 1]


def product(a, b):
    return a * b.tanh()


JOINS = {"add": add, "cat": concatenate, "product": product}


class Network(nn.Module):
    """A program as a model ``[N, 3, H, W]``; the last result's mean goes into a dense layer, or
    (``maps``) the result is the output."""

    def __init__(self, program, maps, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.program, self.maps = program, maps
        self.stem, self.head = nn.Conv2d(3, C, 3, padding=1), nn.Linear(C, 5)
        self.token = nn.Parameter(torch.randn(1, 1, C))
        makes = [OPERATIONS[s.name][0] if s.name in OPERATIONS else None for s in program]
        self.layers = nn.ModuleList(make() if make else nn.Identity() for make in makes)
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.running_mean)
                nn.init.normal_(layer.bias)
        self.double().eval()

    def forward(self, x):
        results = [self.stem(x)]
        for i, step in enumerate(self.program):
            given = [results[j] for j in step.inputs]
            f = JOINS.get(step.name)
            results.append(f(*given) if f else OPERATIONS[step.name][1](self, i, *given))
        return results[-1] if self.maps else self.head(results[-1].mean((2, 3)))


def expected(net, x, mask):
    """What a masked network gives, by the README's rules."""
    results = [window(x, mask, net.stem, 3, padding=1)]
    before = [set()]  # of each result, those that it comes from
    for i, step in enumerate(net.program):
        given = [results[j] for j in step.inputs]
        if step.name in JOINS:
            nested = any(a in before[b] for a in step.inputs for b in step.inputs)
            results.append(joined(step.name, *given, nested))
        else:
            results.append(OPERATIONS[step.name][2](net, i, *given))
        before.append(set(step.inputs).union(*(before[j] for j in step.inputs)))
    last = results[-1]
    if net.maps:
        return times(*last)
    alive = last.m.amax((1, 2, 3)) > 0
    return net.head(torch.where(alive[:, None], visible_mean(last, (2, 3)), 0))


def joined(name, a, b, nested):
    if name == "cat":
        m = a.m * b.m if nested else torch.maximum(a.m, b.m)
        return Pair(times(JOINS[name](times(*a), times(*b)), m), m)
    m = a.m * b.m
    return Pair(times(JOINS[name](a.x, b.x), m), m)
