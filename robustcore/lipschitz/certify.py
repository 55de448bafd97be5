"""Certified radii of any model whose graph is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcore.common import graph as traced
from robustcore.common.checks import require_choice, require_floating
from robustcore.lipschitz.bounds import NORMS, Bounds, checked_model
from robustcore.lipschitz.certificates import (
    ROOT_OF_TWO,
    Certificate,
    crc_certificate,
    radii_of_margins,
    rows_apart,
)
from robustcore.lipschitz.layers import CRCHead, NormalizedLinear
from robustcore.lipschitz.leaves import evaluated_once, is_leaf, leaf_path
from robustcore.lipschitz.precision import exact_products
from robustcore.lipschitz.rules.call import Call, Value

_PRECISE = (torch.float32, torch.float64)
_KEEP_CLASSES = {"flatten", "view", "reshape", "squeeze", "_unsafe_view"}


@torch.no_grad()
def certify(model: nn.Module, x: Tensor, *, norm: str = "l2") -> Certificate:
    """Predictions of ``model`` and their certified radii.

    Args:
        model: in eval mode, all of it, float32 or float64; anything that :func:`lipschitz_bound`
            understands. A NormalizedLinear, linear layer or CRCHead at its end is taken apart from
            the rest, for larger radii.
        x: a batch of inputs ``[N, *D]``, float32 or float64. The bound is for their size.
        norm: of the radii, ``"l2"`` or ``"linf"``.

    Returns:
        A :class:`Certificate`. Logits are the model's, computed without TF32 or autocast; radii are
        those of exact arithmetic on the logits computed. Not differentiable. Raises ValueError or
        TypeError naming the argument, as :func:`lipschitz_bound` where nothing bounds the model.

    Source: Tsuzuku, Sato, Sugiyama, 2018; Singla and Feizi, "Second-order provable defenses", 2020.
    """
    model = checked_model(model, strict=True)
    require_choice("norm", norm, NORMS)
    if require_floating("x", x).dim() < 2:
        raise ValueError(f"x: got shape {list(x.shape)}, want a batch [N, *D]")
    if x.dtype not in _PRECISE:
        raise TypeError(f"x: got {x.dtype}, want float32 or float64")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in _PRECISE:
            raise TypeError(f"model: {name} is {tensor.dtype}, want float32 or float64")
    with exact_products(), evaluated_once(model):
        bounds = Bounds(model, x, norm, batch=len(x))
        head = _head(bounds)
        with _inputs_of(head.module) as seen:
            logits = model(x)
        if not isinstance(logits, Tensor):
            raise TypeError(f"model: gives a {type(logits).__name__}, want logits [N, K]")
        logits = logits.flatten(1) if logits.dim() > 1 else logits
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"model: gives logits {list(logits.shape)}, want [N, K] with K >= 2")
        chosen = logits.argmax(1)
        if len(seen) == 1:
            assert isinstance(head.module, CRCHead)
            radius = crc_certificate(head.module, seen[0], head.value.bound, labels=chosen)
            return Certificate(chosen, radius, head.value.bound)
        value = bounds.result if head.rows is None else head.value
        if head.rows is not None:
            constants = rows_apart(head.rows, 2 if norm == "l2" else 1)[chosen]
        else:
            pair = ROOT_OF_TWO if norm == "l2" else 2.0
            constants = torch.full_like(logits, pair, dtype=torch.float64)
        radius = radii_of_margins(logits.double(), chosen, constants, value.bound, value.slack)
        return Certificate(chosen, radius, value.bound)


@dataclass
class _Head:
    """A last layer that allows for better certificates: what is known of its input, and its rows
    or, of a CRCHead, itself."""

    value: Value
    rows: Tensor | None = None
    module: CRCHead | None = None


def _head(bounds: Bounds) -> _Head:
    whole = _Head(bounds.result)
    node: Any = bounds.outputs[0]
    if len(bounds.outputs) != 1 or not isinstance(node, fx.Node):
        return whole
    while traced.name_of(node) in _KEEP_CLASSES and isinstance(node.args[0], fx.Node):
        before = traced.sizes(node.args[0])
        if traced.sizes(node)[:2] != before[:2] or set(before[2:]) - {1}:
            return whole
        node = node.args[0]
    if node.op != "call_function" or len(traced.sizes(node)) != 2:
        return whole
    call = Call(node, bounds)
    if is_leaf(node):
        module: Any = bounds.model.get_submodule(leaf_path(node))
        value = call.plain(node.args[0])
        if isinstance(module, NormalizedLinear):
            return _Head(value, rows=module.normalized_weight())
        once = sum(is_leaf(n) and n.args[1] == node.args[1] for n in bounds.values) == 1
        usable = isinstance(module, CRCHead) and once and bounds.norm.l2 and not value.slack
        return _Head(value, module=module) if usable else whole
    if traced.name_of(node) == "linear" and bounds.values.get(node) is not None:
        source = call.args["input"]
        if len(traced.sizes(source)) == 2 and call.source is source:
            return _Head(call.plain(source), rows=call.constant(call.args["weight"]))
    return whole


@contextmanager
def _inputs_of(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collects what a module is called with, after its own hooks."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
