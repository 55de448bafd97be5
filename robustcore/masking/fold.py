"""BatchNorm folded into the convolution before it: a pure pass over a traced graph."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustcore.common import graph as traced


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """In place: every batch_norm that directly follows a conv2d becomes part of it.

    What is folded are the parameters as they are now, constants of the graph. A convolution that is
    used elsewhere too stays as it is.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or traced.name_of(node) != "batch_norm":
            continue
        conv, norm = node.args[0], traced.arguments(node)
        if traced.name_of(conv) != "conv2d" or len(conv.users) > 1 or norm["training"]:
            continue
        given = traced.arguments(conv)
        parts = [given["weight"], given["bias"], norm["running_mean"], norm["running_var"],
                 norm["weight"], norm["bias"]]  # fmt: skip
        if any(p is not None and p.op != "get_attr" for p in parts):
            continue
        values: list[Any] = [p if p is None else attrgetter(p.target)(module) for p in parts]
        fuse: Any = fuse_conv_bn_weights
        folded = fuse(*values[:4], norm["eps"], *values[4:])
        constants: Any = module.get_submodule("constants")
        with graph.inserting_before(conv):
            new = []
            for name, value in zip(("weight", "bias"), folded, strict=True):
                key = f"folded_{conv.name}_{name}"
                constants.register_buffer(key, value.detach())
                new.append(graph.get_attr(f"constants.{key}"))
                new[-1].meta = dict(given["weight"].meta) if name == "weight" else {}
        conv.args = (conv.args[0], *new, *conv.args[3:])
        conv.kwargs = {k: v for k, v in conv.kwargs.items() if k not in ("weight", "bias")}
        node.replace_all_uses_with(conv)
        graph.erase_node(node)
    module.recompile()
    return module
