"""Input gradients and their norms, by double backward or by finite differences."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.functional import cross_entropy

from robustcore import ops
from robustcore.common.checks import (
    require_broadcast,
    require_choice,
    require_classes,
    require_floating,
)
from robustcore.density.double_backward import fast_double_backward
from robustcore.ops.density.grad_norm import dual_direction

Model = Callable[[Tensor], Tensor]
Score = Callable[[Tensor], Tensor]  # logits [N, K] -> [N]
MODES = ("auto", "double_backward", "finite_difference")
REDUCTIONS = ("mean", "sum", "none")

# Of a finite difference, in the units of x and along a direction of l2 norm 1. A central difference
# of a smooth model errs by O(STEP^2), float32 rounding by about 1e-6 |score| / STEP.
STEP = 1e-2
MAX_STEPS = 2**20  # of a path


class Point(NamedTuple):
    """A gradient to take: of ``values`` ``[N]`` in ``x``, times ``weight`` (a number or like x)."""

    x: Tensor
    values: Tensor
    weight: Any = 1.0


def lse_score(logits: Tensor) -> Tensor:
    """The log of the marginal density, up to a constant."""
    return ops.logsumexp(logits)


def logit_score(target: Tensor) -> Score:
    """The raw logit of a class."""
    return lambda logits: logits.gather(1, target.unsqueeze(1)).squeeze(1)


def loss_score(target: Tensor) -> Score:
    """The cross entropy."""
    return lambda logits: cross_entropy(logits, target, reduction="none")


def check_x(x: Any, name: str = "x") -> None:
    """x is a batch of floating tensors."""
    if require_floating(name, x).dim() < 2:
        raise ValueError(f"{name}: got shape {list(x.shape)}, want a batch [N, *D]")


def check_differentiable(x: Tensor) -> None:
    """x and where it is used are not in inference mode."""
    if not torch.compiler.is_compiling() and (
        torch.is_inference_mode_enabled() or x.is_inference()
    ):
        raise ValueError("x: made or used in inference mode, which has no gradients; want no_grad")


def check_baseline(baseline: Any, x: Tensor) -> Tensor:
    """Where a path to x starts: as given, or 0."""
    if baseline is None:
        return torch.zeros_like(x)
    return require_broadcast("baseline", require_floating("baseline", baseline), x)


def check_logits(logits: Any, x: Tensor, got: str = "model: gave") -> Tensor:
    """Logits ``[N, K]`` in float32 at least; an error naming the rows that hold a NaN."""
    want = f"want floating logits [{x.shape[0]}, K], one row an input"
    if not isinstance(logits, Tensor):
        raise TypeError(f"{got} {type(logits).__name__}, {want}")
    if logits.device != x.device:
        raise ValueError(f"{got} a tensor on {logits.device}, {want}, on {x.device}")
    if not logits.is_floating_point() or logits.layout != torch.strided or logits.is_nested:
        raise TypeError(f"{got} {logits.dtype}, {logits.layout}, {want}")
    if logits.dim() != 2 or logits.shape[0] != x.shape[0]:
        raise ValueError(f"{got} shape {list(logits.shape)}, {want}")
    if not (torch.compiler.is_compiling() or _capturing(x)):
        # Looking costs a synchronisation of the device, so not inside a CUDA graph.
        nan = ops.logsumexp(logits.detach()).isnan()
        if nan.any():
            raise ValueError(f"logits: NaN in rows {nan.nonzero().flatten().tolist()}")
    return widen(logits)


def check_graph(x: Tensor, logits: Tensor) -> None:
    """Whether logits given with x can be differentiated in it."""
    if not x.requires_grad:
        raise ValueError(
            "x: has to require grad where logits are given, and logits to be model(x) of it"
        )
    if not logits.requires_grad:
        raise ValueError("logits: are detached; want those of model(x), made with gradients on")


def widen(t: Tensor) -> Tensor:
    """t in float32 at least."""
    return t if t.dtype == torch.float64 else t.float()


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def check_target(target: Any, logits: Tensor) -> Tensor:
    """A class of each row: as given, or what the model says."""
    if target is None:
        return logits.detach().argmax(1)
    looks = not (torch.compiler.is_compiling() or _capturing(logits))
    rows, classes = logits.shape
    return require_classes("target", target, rows, classes if looks else None)


# Steps of a forward pass whose backward pass has no derivative of its own.
ONCE_DIFFERENTIABLE = {
    "CompiledFunctionBackward",
    "ScaledDotProductFlashAttentionForCpuBackward0",
    "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
}


def once_differentiable(logits: Tensor) -> set[str]:
    """What, on the way to logits, has no double backward, as far as can be seen.

    ValueError for reentrant checkpointing, through which there is no gradient of an input at all.
    """
    names, seen = set(), set()
    nodes: list[Node | None] = [logits.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(node.name())
        nodes += [n for n, _ in node.next_functions]
    if "CheckpointFunctionBackward" in names:
        raise ValueError(
            "logits: come through reentrant checkpointing, which gives no gradient of x; want "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    return names & ONCE_DIFFERENTIABLE


def resolve_mode(mode: str) -> str:
    """What "auto" stands for: inside torch.compile there is no double backward, all else has one.

    There is a third way to the same derivative, reverse over forward mode along the dual direction.
    It is no mode, since it is slower than double backward on the CPU (bench_penalty.py measures
    both), and with BatchNorm in training mode not right: torch's jvp of it takes the statistics for
    constants when it is differentiated (pytorch/pytorch#196699).
    """
    require_choice("mode", mode, MODES)
    if mode != "auto":
        return mode
    return "finite_difference" if torch.compiler.is_compiling() else "double_backward"


def leaf(x: Tensor) -> Tensor:
    """x as something a gradient can be taken in, still part of the graph it may come from."""
    if x.requires_grad or torch.compiler.is_compiling():  # see gradients()
        return x
    return x.detach().requires_grad_()


def evaluate(model: Model, x: Tensor, mode: str) -> Tensor:
    """The checked logits at x, in a graph that the mode can differentiate."""
    double = mode == "double_backward" and not torch.compiler.is_compiling()
    with torch.enable_grad(), _as_written() if double else nullcontext():
        logits = model(x)
    logits = check_logits(logits, x)
    if double and (steps := once_differentiable(logits)):
        raise ValueError(f"model: takes steps without a double backward: {', '.join(steps)}")
    return logits


@contextmanager
def _as_written() -> Iterator[None]:
    """Where a model runs so that it has a double backward: its compiled parts uncompiled."""
    compiler = sys.modules.get("torch._dynamo")  # not there: nothing is compiled
    with fast_double_backward(), compiler.set_stance("force_eager") if compiler else nullcontext():
        yield


def _pure(model: Model, x: Tensor) -> Tensor:
    """model(x) without its effects on buffers, which torch.func.grad cannot have; for compiling."""
    if not isinstance(model, torch.nn.Module):
        return model(x)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits: Tensor = torch.func.functional_call(model, buffers, (x,))
    return logits


def gradients(model: Model, score: Score, points: Sequence[Point], create_graph: bool) -> Tensor:
    """The weighted sum of the points' gradients ``[N, *D]``, in float32 at least."""
    total: Any = 0
    for x, values, weight in points:
        g: Tensor | None
        # Rows are independent, so the gradient of the sum holds every row's own.
        if torch.compiler.is_compiling():
            # The one form of an input gradient that torch.compile traces; it calls the model anew.
            g = torch.func.grad(lambda at: score(widen(_pure(model, at))).sum())(x.detach())
        else:
            g = None
            if values.requires_grad:
                (g,) = torch.autograd.grad(
                    values.sum(), x, create_graph=create_graph, retain_graph=True, allow_unused=True
                )
        if g is None:
            raise ValueError("logits: do not depend on x; want those of model(x), x requiring grad")
        total = total + weight * widen(g)
    gradient: Tensor = total
    return gradient


def gradient_at(model: Model, score: Score, x: Tensor) -> Tensor:
    """The gradient of the score of model(x) in x, outside any graph, in float32 at least."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        values = score(check_logits(model(at), at))
        return gradients(model, score, [Point(at, values)], create_graph=False)


def gradient_norm(
    model: Model, score: Score, points: Sequence[Point], p: float, mode: str, step: float
) -> Tensor:
    """norm_p of :func:`gradients` for each sample, differentiable in the model's parameters.

    By finite differences, the value is exact and its derivative is that of the score along the dual
    direction v of the gradient: ``(score(x + step u) - score(x - step u)) |v| / (2 step)``,
    u = v / |v|.
    """
    track = torch.is_grad_enabled()
    second = track and mode == "double_backward"
    with torch.enable_grad():
        g = gradients(model, score, points, create_graph=second)
    norm = ops.grad_norm(g if second else g.detach(), p)
    if second or not track:
        return norm
    u, length = unit(dual_direction(g.detach(), p))
    slope: Any = 0
    for x, _, weight in points:
        shift = (step * weight * u).to(x.dtype)
        ahead, behind = (score(widen(model(x.detach() + s))) for s in (shift, -shift))
        slope = slope + (ahead - behind) * (length / (2 * step))
    surrogate: Tensor = slope - slope.detach()
    return norm + surrogate


def unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """v ``[N, *D]`` with samples of l2 norm 1 (0 where v is), and the norms they had."""
    length = ops.grad_norm(v, 2.0)
    return v / torch.where(length == 0, 1, length).view(-1, *[1] * (v.dim() - 1)), length


def reduce(values: Tensor, reduction: str) -> Tensor:
    """``[N]`` to its mean, its sum, or as it is."""
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values
