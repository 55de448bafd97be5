"""Certified radii of any model whose graph is bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcore.common import graph as traced
from robustcore.common.checks import require_choice, require_flag, require_floating
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
from robustcore.lipschitz.rounding import Bound
from robustcore.lipschitz.rules.call import Call, Value

_PRECISE = (torch.float32, torch.float64)
_KEEP_CLASSES = {"flatten", "view", "reshape", "squeeze", "_unsafe_view"}


@torch.no_grad()
def certify(
    model: nn.Module, x: Tensor, *, norm: str = "l2", rounding: bool = False
) -> Certificate:
    """Predictions of ``model`` and their certified radii.

    Args:
        model: in eval mode, all of it, float32 or float64; anything that :func:`lipschitz_bound`
            understands. A NormalizedLinear, linear layer or CRCHead at its end is taken apart from
            the rest, for larger radii.
        x: a batch of inputs ``[N, *D]``, float32 or float64. The bound is for their size.
        norm: of the radii, ``"l2"`` or ``"linf"``.
        rounding: whether radii are those of the program: the rounding of its arithmetic, at x and
            at every input of its dtype within the radius, is bounded and taken off the margins.
            Else they are those of exact arithmetic on the logits computed. The bound is one of the
            worst case; what it does not know the rounding of (transforms of Winograd or Fourier,
            such as float32 SOC of 3 x 3) is refused by name.

    Returns:
        A :class:`Certificate`. Logits are the model's, computed without TF32 or autocast; radii are
        those of exact arithmetic on the logits computed. Not differentiable. Raises ValueError or
        TypeError naming the argument, as :func:`lipschitz_bound` where nothing bounds the model.

    Source: Tsuzuku, Sato, Sugiyama, 2018; Singla and Feizi, "Second-order provable defenses", 2020.
    """
    model = checked_model(model, strict=True)
    require_choice("norm", norm, NORMS)
    require_flag("rounding", rounding)
    if require_floating("x", x).dim() < 2:
        raise ValueError(f"x: got shape {list(x.shape)}, want a batch [N, *D]")
    if x.dtype not in _PRECISE:
        raise TypeError(f"x: got {x.dtype}, want float32 or float64")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in _PRECISE:
            raise TypeError(f"model: {name} is {tensor.dtype}, want float32 or float64")
    with exact_products(), evaluated_once(model):
        exact = _certified(model, x, norm, None)
        if not rounding or len(x) == 0:
            return exact
        # Rounding only makes radii smaller: what it does within these it does within those.
        within = exact.radius.nan_to_num(0.0, math.inf).clamp(min=0)
        rounded = _certified(model, x, norm, within)
        radius = torch.minimum(rounded.radius, exact.radius)
        return Certificate(exact.prediction, radius, rounded.bound)


def _certified(model: nn.Module, x: Tensor, norm: str, within: Tensor | None) -> Certificate:
    bounds = Bounds(model, x, norm, batch=len(x), radius=within)
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
    pair = ROOT_OF_TWO if norm == "l2" else 2.0
    constants = torch.full_like(logits, pair, dtype=torch.float64)
    if head.rows is not None:
        constants = rows_apart(head.rows, 2 if norm == "l2" else 1)[chosen]
    lost = torch.as_tensor(head.lost).mul(pair * (1 + 1e-12)).to(constants)
    slack = torch.as_tensor(head.value.slack).to(constants)
    bound = head.value.bound
    radius = radii_of_margins(logits.double(), chosen, constants, bound, slack, lost)
    return Certificate(chosen, radius, bound)


@dataclass
class _Head:
    """A last layer that allows for better certificates: what is known of its input, and its rows
    or, of a CRCHead, itself."""

    value: Value
    rows: Tensor | None = None
    module: CRCHead | None = None
    lost: Bound = 0.0  # the rounding of its own sums


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
            return _Head(value, rows=module.normalized_weight(), lost=_lost(bounds, node))
        once = sum(is_leaf(n) and n.args[1] == node.args[1] for n in bounds.values) == 1
        plain = bounds.norm.l2 and bounds.errors is None and not value.slack
        usable = isinstance(module, CRCHead) and once and plain
        return _Head(value, module=module) if usable else whole
    if traced.name_of(node) == "linear" and bounds.values.get(node) is not None:
        source = call.args["input"]
        if len(traced.sizes(source)) == 2 and call.source is source:
            rows = call.constant(call.args["weight"])
            return _Head(call.plain(source), rows=rows, lost=_lost(bounds, node))
    return whole


def _lost(bounds: Bounds, node: fx.Node) -> Bound:
    return 0.0 if bounds.errors is None else bounds.errors.local[node]


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
