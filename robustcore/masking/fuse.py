"""Convolutions with the sum and ReLU after them as one oneDNN call, where nothing is to derive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from robustcore.common import graph as traced
from robustcore.masking.calls import add_in_place


def fuse_convolutions(module: fx.GraphModule) -> fx.GraphModule:
    """In place: ``relu(conv(x))`` and ``relu(conv(x) + y)`` become one call each.

    Only where nothing else reads what lies between. Where gradients are tracked, off the CPU or
    without oneDNN the one call makes the same operations one after the other.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if not _is_conv(node):
            continue
        chain, added = [node], None
        user = _only_user(node)
        if user is not None and _is_sum(user):
            others = [a for a in user.args[:2] if a is not node]
            if len(others) == 1 and isinstance(others[0], fx.Node):
                added = others[0]
                chain.append(user)
                user = _only_user(user)
        relu = user is not None and traced.name_of(user) in ("relu", "relu_")
        if relu:
            assert user is not None
            chain.append(user)
        if len(chain) == 1:
            continue
        last = chain[-1]
        given = traced.arguments(node)
        with graph.inserting_before(last):
            own = added is not None and _dies_at(added, chain[1])
            options = [given[n] for n in ("stride", "padding", "dilation", "groups")]
            tensors = (given["input"], given["weight"], given["bias"], added)
            fused = graph.call_function(convolution, (*tensors, *options, relu, own))
        last.replace_all_uses_with(fused)
        for old in reversed(chain):
            graph.erase_node(old)
    module.recompile()
    return module


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    relu: bool,
    own: bool,
) -> Tensor:
    """``conv2d(x) + added``, with a ReLU if told so; ``own``: nobody else reads ``added`` later."""
    if _onednn_takes(x, weight, bias, added) and not isinstance(padding, str):
        window = (_two(padding), _two(stride), _two(dilation), groups)
        none = "none" if added is None else None
        unary: Any = ("relu" if relu else none, [], "")
        fused: Any = torch.ops.mkldnn._convolution_pointwise
        y: Tensor
        if added is None:
            y = fused(x, weight, bias, *window, *unary)
        elif own:
            into: Any = torch.ops.mkldnn._convolution_pointwise_
            y = into.binary(added, x, weight, bias, *window, "add", 1.0, *unary)
        else:
            y = fused.binary(x, added, weight, bias, *window, "add", 1.0, *unary)
        return y
    y = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if added is not None:
        y = y + added
    return functional.relu_(y) if relu else y


def _two(values: Any) -> list[int]:
    return list(values) * (2 // len(values))


def _onednn_takes(x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None) -> bool:
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise") or torch.compiler.is_compiling():
        return False
    tensors = [t for t in (x, weight, bias, added) if t is not None]
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    whole = added is None or len(added) == len(x)  # not one image beside many
    return (
        plain
        and whole
        and not tracked
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _is_conv(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is torch.ops.aten.conv2d.default


def _is_sum(node: fx.Node) -> bool:
    if node.target is add_in_place:
        return bool(node.args[2] == 1)
    return traced.name_of(node) in ("add", "add_") and not node.kwargs and len(node.args) == 2


def _dies_at(node: fx.Node, last: fx.Node) -> bool:
    """Whether a fused result may take node's memory: nothing but convolutions read it before."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}

    def convolves(n: fx.Node) -> bool:
        return n.target is convolution or _is_conv(n)

    return convolves(node) and all(
        user is last or (order[user] < order[last] and convolves(user)) for user in node.users
    )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
