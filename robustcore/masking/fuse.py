"""Convolutions with the sum and ReLU after them as one oneDNN call, where nothing is to derive."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustcore.masking.graph import add_in_place

_ADD = (add_in_place, operator.add, torch.add)


def fuse_convolutions(module: fx.GraphModule) -> fx.GraphModule:
    """In place: ``relu(conv(x))`` and ``relu(conv(x) + y)`` become one call each.

    Only where nothing else reads what lies between. Where gradients are tracked, off the CPU or
    without oneDNN the one call makes the same operations one after the other.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if not _is_conv(module, node):
            continue
        chain, added = [node], None
        user = _only_user(node)
        if user is not None and user.target in _ADD and len(user.args) == 2 and not user.kwargs:
            others = [a for a in user.args if a is not node]
            if len(others) == 1 and isinstance(others[0], fx.Node):
                added = others[0]
                chain.append(user)
                user = _only_user(user)
        relu = user is not None and _is_relu(module, user)
        if relu:
            assert user is not None
            chain.append(user)
        if len(chain) == 1:
            continue
        last = chain[-1]
        conv: Any = module.get_submodule(str(node.target))
        with graph.inserting_before(last):
            weight = graph.get_attr(f"{node.target}.weight")
            bias = None if conv.bias is None else graph.get_attr(f"{node.target}.bias")
            own = added is not None and _dies_at(module, added, chain[1])
            options = (conv.stride, conv.padding, conv.dilation, conv.groups, relu, own)
            fused = graph.call_function(convolution, (node.args[0], weight, bias, added, *options))
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
        window = (list(padding), list(stride), list(dilation), groups)
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


def _is_conv(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or len(node.args) != 1:
        return False
    conv = module.get_submodule(str(node.target))
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros"


def _dies_at(module: fx.GraphModule, node: fx.Node, last: fx.Node) -> bool:
    """Whether a fused result may take node's memory: nothing but convolutions read it before."""
    fresh = node.target is convolution or _is_conv(module, node)
    order = {n: i for i, n in enumerate(module.graph.nodes)}
    return fresh and all(
        user is last
        or (order[user] < order[last] and (user.target is convolution or _is_conv(module, user)))
        for user in node.users
    )


def _is_relu(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) is nn.ReLU
    return node.target in (functional.relu, torch.relu)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
