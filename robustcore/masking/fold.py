"""BatchNorm folded into the convolution before it: a pure pass over a traced graph."""

from __future__ import annotations

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_batch_norm(traced: fx.GraphModule) -> fx.GraphModule:
    """A copy in which every BatchNorm2d that directly follows a Conv2d is part of it.

    Both have to be in eval mode (ValueError names the one that is not). A convolution or norm that
    is used elsewhere too stays as it is. The copy has parameters of its own.
    """
    folded = copy.deepcopy(traced)
    modules = dict(folded.named_modules())
    uses: dict[str, int] = {}
    for node in folded.graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    for node in list(folded.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[str(node.target)], _NORMS):
            continue
        source = node.args[0]
        if source.op != "call_module" or type(modules[str(source.target)]) is not nn.Conv2d:
            continue
        if len(source.users) > 1 or uses[str(source.target)] > 1 or uses[str(node.target)] > 1:
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        if norm.training or conv.training:
            name = str(node.target).removeprefix("model.")
            raise ValueError(f"fold: {name!r} is in training mode; call eval() before wrapping")
        parent, _, name = str(source.target).rpartition(".")
        setattr(modules[parent], name, fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(source)
        folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded
