"""The planned graph: a traced network in which masks are computed, filled in and multiplied by."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustcore.masking.masks import Mask
from robustcore.masking.plan import Plan, Step
from robustcore.masking.rules.table import MODULES
from robustcore.ops.masking.epilogue import consume_multiply, mask_multiply
from robustcore.ops.masking.fill import consume_fill, neighbor_fill
from robustcore.ops.masking.masked_conv2d import partial_correction
from robustcore.ops.masking.pools import mask_pool, mean_correction

# Their results are new tensors that only their users know.
_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def masked_graph(traced: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """``traced`` as a function of (x, mask), after its plan; it calls the same modules."""
    graph = _Builder(traced, plan).build()
    module = fx.GraphModule(traced, graph, f"Masked{traced.__class__.__name__}")
    for name, child in traced.named_children():
        module.add_module(name, child)  # itself, not fx's copy of its structure
    return module


class _Builder:
    def __init__(self, traced: fx.GraphModule, plan: Plan) -> None:
        self.traced, self.plan = traced, plan
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.masks: dict[Mask, fx.Node] = {}
        self.clean: dict[fx.Node, fx.Node] = {}

    def build(self) -> fx.Graph:
        given: fx.Node | None = None
        for node, step in self.plan.steps.items():
            if node.op == "placeholder" and given is not None:
                self.nodes[node] = node.args[0]  # type: ignore[assignment]  # its default
                continue
            self.nodes[node] = self.copy(node, step)
            if node.op == "placeholder":
                given = self.graph.placeholder("mask")
                roots = (mask for mask in self.plan.masks if mask.kind == "input")
                self.masks.update((mask, given) for mask in roots)
        return self.graph

    def copy(self, node: fx.Node, step: Step) -> fx.Node:
        row, replaced = step.row, dict(self.nodes)
        for source, iters in step.fills.items():
            mask = self.mask(self.plan.mask_of(source))
            function = consume_fill if self.is_own(source) else neighbor_fill
            replaced[source] = self.graph.call_function(function, (self.nodes[source], mask, iters))
        for source in step.clean:
            replaced[source] = self.cleaned(source)
        if step.alive:
            (source,) = row.inputs
            mask = self.mask(self.plan.mask_of(source))
            replaced[source] = self.graph.call_function(_alive_only, (self.nodes[source], mask))
        if self.can_add_in_place(node):
            a, b = (replaced[n] for n in node.args if isinstance(n, fx.Node))
            return self.graph.call_function(add_in_place, (a, b))
        result = self.graph.node_copy(node, lambda n: replaced[n])
        if row.then is None:
            return result
        source = row.inputs[0]
        mask = self.mask(self.plan.mask_of(source))
        if row.then == "mean":
            return self.graph.call_function(mean_correction, (result, mask))
        if row.then == "partial":
            assert row.window is not None
            w = row.window
            shape = (w.kernel, w.stride, w.pads, w.dilation)
            bias = self.parameter(node, "bias")
            return self.graph.call_function(partial_correction, (result, mask, bias, *shape))
        parameters = (self.parameter(node, "weight"), self.parameter(node, "bias"))
        eps: Any = self.traced.get_submodule(str(node.target)).eps
        return self.graph.call_function(
            _visible_norm, (result, replaced[source], mask, row.groups, *parameters, eps)
        )

    def cleaned(self, source: fx.Node) -> fx.Node:
        """source times its mask; once, unless an operation in place may come between two uses."""
        if source not in self.clean or any(self.is_in_place(user) for user in source.users):
            mask = self.mask(self.plan.mask_of(source))
            function = consume_multiply if self.is_own(source) else mask_multiply
            node = self.graph.call_function(function, (self.nodes[source], mask))
            self.clean[source] = node
        return self.clean[source]

    def is_own(self, node: fx.Node) -> bool:
        """Whether a node's result is memory of its own that one operation reads, and only that."""
        if len(node.users) > 1:
            return False
        if node.op == "call_function":
            return node.target in (operator.add, operator.mul, torch.cat)
        if node.op != "call_module" or self.plan.values[node].kind != "map":
            return False
        module = self.traced.get_submodule(str(node.target))
        passes_on = isinstance(module, (nn.Identity, nn.Dropout)) or self.is_in_place(node)
        if passes_on:
            return isinstance(node.args[0], fx.Node) and self.is_own(node.args[0])
        return type(module) in MODULES

    def is_in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.traced.get_submodule(str(node.target)), "inplace", False))
        name = getattr(node.target, "__name__", str(node.target))
        return bool(node.kwargs.get("inplace")) or name.endswith("_") or name.startswith("i")

    def can_add_in_place(self, node: fx.Node) -> bool:
        """Whether this is a sum of images into one that nothing else reads, as eager ``a += b``,
        which torch.fx records as ``a + b``."""
        if node.op != "call_function" or node.target not in (operator.add, torch.add):
            return False
        if len(node.args) != 2 or node.kwargs:
            return False
        a, b = node.args
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b or len(a.users) > 1:
            return False
        if a.op != "call_module" or self.plan.values[b].kind != "map":
            return False
        return isinstance(self.traced.get_submodule(str(a.target)), _FRESH)

    def parameter(self, node: fx.Node, name: str) -> fx.Node | None:
        module = self.traced.get_submodule(str(node.target))
        if getattr(module, name, None) is None:
            return None
        return self.graph.get_attr(f"{node.target}.{name}")

    def mask(self, mask: Mask) -> fx.Node:
        if mask not in self.masks:
            parents = [self.mask(parent) for parent in mask.parents]
            function, arguments = _mask_function(mask, parents)
            self.masks[mask] = self.graph.call_function(function, arguments)
        return self.masks[mask]


def _mask_function(mask: Mask, parents: list[fx.Node]) -> tuple[Any, tuple[Any, ...]]:
    if mask.kind in ("pool", "seen"):
        w = mask.params
        window = (w.kernel, w.stride, w.pads, w.dilation, w.ceil_mode)
        return (mask_pool if mask.kind == "pool" else _seen), (*parents, *window)
    if mask.kind == "both":
        return operator.mul, tuple(parents)
    if mask.kind in ("either", "majority"):
        return (_either if mask.kind == "either" else _majority), (parents,)
    if mask.kind == "alive":
        return _alive, tuple(parents)
    if mask.kind == "adaptive":
        return _adaptive, (*parents, mask.params)
    if mask.kind == "resize":
        return _resized, (*parents, *mask.params)
    window, padding, output_padding = mask.params
    return _transposed, (
        *parents, window.kernel, window.stride, padding, output_padding, window.dilation
    )  # fmt: skip


# ---- What the graphs call beside the ops ---------------------------------------------------------


def add_in_place(a: Tensor, b: Tensor) -> Tensor:
    """``a += b`` of images."""
    # One image that has met no mask yet may be added to many that have.
    return a.add_(b) if torch.broadcast_shapes(a.shape, b.shape) == a.shape else a + b


def _alive_only(x: Tensor, alive: Tensor) -> Tensor:
    """x ``[N, ...]``, 0 for samples that are not alive ``[N, 1, 1, 1]``."""
    return torch.where(alive.reshape(-1, *[1] * (x.dim() - 1)) > 0, x, 0)


def _alive(mask: Tensor) -> Tensor:
    return mask.amax((1, 2, 3), keepdim=True).gt(0).to(mask.dtype)


def _seen(mask: Tensor, *window: Any) -> Tensor:
    return mask_pool(mask, *window).gt(0).to(mask.dtype)


def _either(masks: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*masks)).amax(0)


def _majority(masks: list[Tensor]) -> Tensor:
    votes = torch.stack(torch.broadcast_tensors(*masks)).sum(0)
    return votes.gt(len(masks) / 2).to(votes.dtype)


def _adaptive(mask: Tensor, size: Any) -> Tensor:
    return functional.adaptive_avg_pool2d(mask, size).gt(0).to(mask.dtype)


def _resized(mask: Tensor, size: Any, scale: Any, mode: str, align_corners: bool | None) -> Tensor:
    if mode.startswith("nearest"):
        return functional.interpolate(mask, size, scale, mode)
    wide = functional.interpolate(mask, size, scale, "bilinear", align_corners)
    return wide.gt(0).to(mask.dtype)


def _transposed(
    mask: Tensor, kernel: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> Tensor:
    ones = mask.new_ones(1, 1, *kernel)
    reached = functional.conv_transpose2d(
        mask, ones, None, stride, padding, output_padding, 1, dilation
    )
    return reached.gt(0).to(mask.dtype)


def _visible_norm(
    plain: Tensor,
    x: Tensor,
    mask: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """x ``[N, C, H, W]`` normalised by the mean and variance of its visible pixels, in groups.

    A sample that is visible everywhere takes ``plain``, the module's own result.
    """
    n, channels = x.shape[:2]
    grouped = x.to(mask.dtype).reshape(n, groups, channels // groups, *x.shape[2:])
    shown = mask.unsqueeze(1)  # [N, 1, 1, H, W]; x is already multiplied by it
    total = (shown.sum((2, 3, 4), keepdim=True) * (channels // groups)).clamp(min=eps)
    mean = grouped.sum((2, 3, 4), keepdim=True) / total
    inverse = torch.where(shown > 0, 1 / shown.clamp(min=1e-30), 0)
    centred = torch.where(shown > 0, grouped * inverse - mean, 0)
    variance = (shown * centred.square()).sum((2, 3, 4), keepdim=True) / total
    y = (centred / (variance + eps).sqrt()).reshape(x.shape)
    per_pixel = weight is not None and weight.dim() == 3
    if weight is not None:
        y = y * (weight if per_pixel else weight.view(-1, 1, 1))
    if bias is not None:
        y = y + (bias if per_pixel else bias.view(-1, 1, 1))
    whole = mask.amin((1, 2, 3), keepdim=True) == 1
    return torch.where(whole, plain, y.to(plain.dtype))
