"""Per-sample gradients of Linear and Conv2d, piece by piece, from what went in and came back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

# Elements of a weight's gradient that are held at a time, of one sample; with 32 samples 8 MiB.
PIECE = 1 << 16
SAMPLES = 32
# Elements of unfolded inputs held at a time.
UNFOLDED = 1 << 22

Piece = tuple[slice, str, int, Tensor]
"""Samples, parameter, its first element, and the gradient ``[samples, elements]``."""


def is_known(module: nn.Module) -> bool:
    """Whether the weight's gradient is a product of the input and the output's gradient."""
    # Not of a subclass, which may do something else; parametrized modules are such.
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return False
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def fits(module: nn.Module, value: Tensor, samples: int) -> bool:
    """Whether the first dimension of the input may be that of the samples."""
    return value.dim() >= (4 if isinstance(module, nn.Conv2d) else 2) and len(value) == samples


def pieces(module: Any, value: Tensor, grad: Tensor) -> Iterator[Piece]:
    """The gradients of the parameters that want one, of input and output's gradient ``[N, ...]``.

    No more than PIECE elements of SAMPLES samples at a time.
    """
    conv = isinstance(module, nn.Conv2d)
    if module.bias is not None and module.bias.requires_grad:
        for some in _split(len(value), SAMPLES):
            g = grad[some]
            yield some, "bias", 0, g.flatten(2).sum(2) if conv else _places(g).sum(1)
    if not module.weight.requires_grad:
        return
    groups = module.groups if conv else 1
    outputs, width = len(module.weight) // groups, module.weight[0].numel()
    rows = max(1, PIECE // width)
    for some, inputs, outs in _factors(module, value, grad):
        for group in range(groups):
            columns = inputs[:, :, group * width : (group + 1) * width]
            for first in range(0, outputs, rows):
                row = group * outputs + first
                out = outs[:, row : row + min(rows, outputs - first)]
                yield some, "weight", row * width, (out @ columns).flatten(1)


def _factors(module: Any, value: Tensor, grad: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Inputs ``[n, places, width]`` and output gradients ``[n, outputs, places]`` of samples."""
    if not isinstance(module, nn.Conv2d):
        for some in _split(len(value), SAMPLES):
            yield some, _places(value[some]), _places(grad[some]).mT
        return
    window, padding = module.kernel_size, cast("tuple[int, ...]", module.padding)
    each = value[0].shape[0] * window[0] * window[1] * grad[0, 0].numel()
    for some in _split(len(value), min(SAMPLES, max(1, UNFOLDED // max(1, each)))):
        columns = unfold(value[some], window, module.dilation, padding, module.stride)
        yield some, columns.mT, grad[some].flatten(2)


def _places(t: Tensor) -> Tensor:
    """``[n, *D, width]`` as ``[n, places, width]``."""
    return t.flatten(1, -2) if t.dim() > 2 else t[:, None]


def _split(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


class Recorder:
    """Writes down, in a forward pass, what went into each module and where its output came from."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.calls: list[tuple[str, Tensor, Any]] = []
        self._modules = modules
        self._hooks: list[Any] = []

    def __enter__(self) -> Recorder:
        for name, module in self._modules.items():

            def record(module: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
                if not output.requires_grad:
                    return
                # The edge, because a ReLU in place would make the tensor another one.
                edge = torch.autograd.graph.get_gradient_edge(output)
                self.calls.append((name, given[0].detach(), edge))

            self._hooks.append(module.register_forward_hook(record))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
