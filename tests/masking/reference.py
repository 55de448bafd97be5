"""The published rules written out plainly: (x, mask) at every node, nothing left out, any dtype.

Source: Balasubramanian and Feizi, "Towards improved input masking for convolutional neural
networks", 2023; for operations that it does not have, the table of robustcore.masking.rules.
"""

import operator

import torch
from torch import fx, nn
from torch.nn import functional


def fill(x, mask, iters):
    """The fill, one convolution with ones a sum."""
    x = torch.where(mask == 0, 0, x * mask)
    box = x.new_ones(1, 1, 3, 3)
    for _ in range(iters):
        num = functional.conv2d(x, box.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])
        den = functional.conv2d(mask, box, padding=1)
        x = x + (1 - mask) * num / (den + 1e-5)
        mask = (mask + den).clip(0, 1)
    return x


def window_max(mask, conv):
    """The largest mask value that each output of a convolution reads, by the convolution itself."""
    ones = torch.ones(1, 1, *conv.kernel_size, dtype=mask.dtype)
    options = (None, conv.stride, conv.padding, conv.dilation)
    return (functional.conv2d(mask, ones, *options) > 0).to(mask.dtype)


def times(x, mask):
    return torch.where(mask == 0, 0, x * mask)


def share(mask):
    """Of each sample that is visible; in float32, as published, 1 + 1e-8 is 1."""
    mean = mask.mean((2, 3), keepdim=True)
    return torch.where(mean == 1, mean, mean + 1e-8)


class Published(fx.Interpreter):
    """``Published(model)(x, mask)``: logits. Maps are pairs (x, mask), vectors pairs (x, None)."""

    def __init__(self, model, leaves=()):
        class Tracer(fx.Tracer):
            def is_leaf_module(self, m, name):
                return isinstance(m, tuple(leaves)) or super().is_leaf_module(m, name)

        super().__init__(fx.GraphModule(model, Tracer().trace(model)))

    def __call__(self, x, mask):
        self.alive = mask.amax((1, 2, 3)) > 0
        out = super().run((x, mask))
        return out[0] if out[1] is None else times(*out)

    def run_node(self, node):
        values, options = self.fetch_args_kwargs_from_env(node)
        if node.op in ("placeholder", "output", "get_attr"):
            return super().run_node(node)
        f = self.fetch_attr(node.target) if node.op == "call_module" else node.target
        first = values[0]
        if f is torch.cat:
            return self.concat(node, first)
        x, m = first
        if m is None:
            return self.vector(f, values, options)
        if isinstance(f, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            return self.window(f, x, m)
        if isinstance(f, nn.AdaptiveAvgPool2d) or f is functional.adaptive_avg_pool2d:
            return functional.adaptive_avg_pool2d(times(x, m), 1) / share(m), None
        if f == "mean":
            return times(x, m).mean((2, 3)) / share(m)[:, :, 0, 0], None
        if f is torch.flatten or isinstance(f, nn.Flatten):
            return times(x, m).flatten(1), None
        if f in (operator.add, operator.mul):
            y, n = values[1]
            n = m if n is None else n
            return times(f(times(x, m), y if n is m else times(y, n)), m * n), m * n
        if isinstance(f, nn.Module):
            return times(f(times(x, m)), m), m
        return times(f(times(x, m), *values[1:], **options), m), m

    def window(self, f, x, m):
        if isinstance(f, nn.Conv2d):
            spans = [d * (k - 1) for d, k in zip(f.dilation, f.kernel_size, strict=True)]
            return times(f(fill(x, m, max(spans) + 1)), window_max(m, f)), window_max(m, f)
        if isinstance(f, nn.MaxPool2d):
            return times(f(times(x, m)), f(m)), f(m)
        seen = (f(m) > 0).to(m.dtype)
        return times(f(times(x, m)), seen), seen

    def vector(self, f, values, options):
        x = values[0][0]
        if isinstance(f, nn.Linear):
            x = torch.where(self.alive[:, None], x, 0)
        if f is operator.mul and values[1][1] is not None:
            y, n = values[1]
            return times(x * times(y, n), n), n
        return (f(x) if isinstance(f, nn.Module) else f(x, *values[1:], **options)), None

    def concat(self, node, parts):
        nodes = node.args[0]
        dense = any(a in _ancestors(b) for a in nodes for b in nodes)
        votes = sum(m for _, m in parts)
        mask = votes > len(parts) / 2 if dense else votes > 0
        mask = mask.to(parts[0][0].dtype)
        return times(torch.cat([times(x, m) for x, m in parts], 1), mask), mask


def _ancestors(node):
    found, stack = set(), [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found
