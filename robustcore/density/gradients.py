"""Input gradients and their norms, by double backward or by finite differences."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
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
from robustcore.density.half import scaled_gradient, scaled_norm
from robustcore.ops.autograd import transforming
from robustcore.ops.checks import check_integer, check_tensor
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


def lse_score(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """The log of the marginal density, up to a constant."""
    return over_tokens(ops.logsumexp(logits), weights)


def logit_score(target: Tensor, weights: Tensor | None = None) -> Score:
    """The raw logit of a class."""
    at = target.unsqueeze(-1)
    return lambda logits: over_tokens(logits.gather(-1, at).squeeze(-1), weights)


def loss_score(target: Tensor, weights: Tensor | None = None) -> Score:
    """The cross entropy."""

    def score(logits: Tensor) -> Tensor:
        loss = cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        return over_tokens(loss.view(target.shape), weights)

    return score


def over_tokens(values: Tensor, weights: Tensor | None) -> Tensor:
    """``[N]`` of values ``[N]`` or, of tokens, ``[N, T]``: their weighted sum, or their mean."""
    if weights is not None:
        values = values * weights
    if values.dim() == 1:
        return values
    return values.mean(1) if weights is None else values.sum(1)


def check_tokens(
    target: Tensor | None, logits: Tensor, ignore_index: Any, token_weights: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Targets with classes where they are ignored, and what rows or tokens weigh, None: all the
    same.

    The weights of a sample's tokens sum to 1, or are all 0.
    """
    shape, weights = logits.shape[:-1], None
    if token_weights is not None:
        require_floating("token_weights", token_weights)
        if token_weights.shape != shape or token_weights.device != logits.device:
            raise ValueError(
                f"token_weights: got shape {list(token_weights.shape)} on {token_weights.device}, "
                f"want {list(shape)} on {logits.device}"
            )
        weights = token_weights.to(logits.dtype)
    ignore_index = check_integer("ignore_index", ignore_index, -(1 << 62))
    if target is not None:
        check_tensor("target", target)
    if target is not None and target.dtype == torch.int64 and target.shape == shape:
        ignored = target == ignore_index
        target = target.masked_fill(ignored, 0)
        kept = (~ignored).to(logits.dtype)
        weights = kept if weights is None else weights * kept
    if weights is not None and weights.dim() == 2:
        total = weights.sum(1, keepdim=True)
        weights = weights / torch.where(total == 0, 1, total)
    return target, weights


def check_x(x: Any, name: str = "x") -> None:
    """x is a batch of floating tensors."""
    if require_floating(name, x).dim() < 2:
        raise ValueError(f"{name}: got shape {list(x.shape)}, want a batch [N, *D]")


def check_differentiable(x: Tensor) -> None:
    """x and where it is used are not in inference mode, nor in forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise ValueError("x: made or used in inference mode, which has no gradients; want no_grad")
    if forward_ad._current_level >= 0:
        raise ValueError(
            "x: used inside forward-mode differentiation (jvp, jacfwd, hessian), which a penalty "
            "has not; want torch.func.grad or jacrev"
        )


def check_baseline(baseline: Any, x: Tensor) -> Tensor:
    """Where a path to x starts: as given, or 0."""
    if baseline is None:
        return torch.zeros_like(x)
    return require_broadcast("baseline", require_floating("baseline", baseline), x)


def check_logits(logits: Any, x: Tensor, got: str = "model: gave", tokens: bool = False) -> Tensor:
    """Logits ``[N, K]``, or of ``tokens`` ``[N, T, K]``, in float32 at least; an error naming rows
    with a NaN."""
    n = x.shape[0]
    want = f"want floating logits [{n}, K], one row an input"
    want += f", or [{n}, T, K] of tokens" if tokens else ""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{got} {type(logits).__name__}, {want}")
    if logits.device != x.device:
        raise ValueError(f"{got} a tensor on {logits.device}, {want}, on {x.device}")
    if not logits.is_floating_point() or logits.layout != torch.strided or logits.is_nested:
        raise TypeError(f"{got} {logits.dtype}, {logits.layout}, {want}")
    fits = logits.dim() == 2 or (tokens and logits.dim() == 3)
    if not fits or logits.shape[0] != n or 0 in logits.shape[1:]:
        raise ValueError(f"{got} shape {list(logits.shape)}, {want}")
    if _values_are_seen(x):
        # Looking costs a synchronisation of the device, so not inside a CUDA graph.
        nan = ops.logsumexp(logits.detach()).isnan()
        nan = nan.any(1) if nan.dim() > 1 else nan
        if nan.any():
            raise ValueError(f"logits: NaN in rows {nan.nonzero().flatten().tolist()}")
    return widen(logits)


def check_graph(x: Tensor, logits: Tensor) -> None:
    """Whether logits given with x can be differentiated in it."""
    if transforming():
        return
    if not x.requires_grad:
        raise ValueError(
            "x: has to require grad where logits are given, and logits to be model(x) of it"
        )
    if not logits.requires_grad:
        raise ValueError("logits: are detached; want those of model(x), made with gradients on")


def widen(t: Tensor) -> Tensor:
    """t in float32 at least."""
    return t if t.dtype == torch.float64 else t.float()


def functional() -> bool:
    """Inside torch.compile or a torch.func transform, where gradients are those of torch.func."""
    return torch.compiler.is_compiling() or transforming()


def _values_are_seen(x: Tensor) -> bool:
    return not (functional() or (x.is_cuda and torch.cuda.is_current_stream_capturing()))


def check_target(target: Any, logits: Tensor) -> Tensor:
    """A class of each row or token: as given, or what the model says."""
    if target is None:
        return logits.detach().argmax(-1)
    shape, classes = logits.shape[:-1], logits.shape[-1] if _values_are_seen(logits) else None
    if isinstance(target, Tensor) and len(shape) > 1:
        if target.shape != shape:
            raise ValueError(f"target: got shape {list(target.shape)}, want {list(shape)}")
        return require_classes("target", target.flatten(), shape.numel(), classes).view(shape)
    return require_classes("target", target, shape[0], classes)


# Steps of a forward pass whose backward pass has no derivative of its own.
COMPILED = "CompiledFunctionBackward"
ONCE_DIFFERENTIABLE = {
    COMPILED,
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


def serves_twice(logits: Tensor, mode: str) -> bool:
    """Whether the graph of logits bears what a mode does with it, and the loss's backward after."""
    if torch.compiler.is_compiling():
        return True
    steps = once_differentiable(logits)
    return not steps if mode == "double_backward" else COMPILED not in steps


def resolve_mode(mode: str) -> str:
    """What "auto" stands for (inside torch.compile it comes to a PenaltyOp, before this).

    There is a third way to the same derivative, reverse over forward mode along the dual direction.
    It is no mode, since it is slower than double backward on the CPU (bench_penalty.py measures
    both), and with BatchNorm in training mode not right: torch's jvp of it takes the statistics for
    constants when it is differentiated (pytorch/pytorch#196699).
    """
    require_choice("mode", mode, MODES)
    return "double_backward" if mode == "auto" else mode


def leaf(x: Tensor) -> Tensor:
    """x as something a gradient can be taken in, still part of the graph it may come from."""
    if x.requires_grad or functional():  # see gradients()
        return x
    return x.detach().requires_grad_()


def evaluate(model: Model, x: Tensor, mode: str, tokens: bool = False) -> Tensor:
    """The checked logits at x, in a graph that the mode can differentiate."""
    compiling = torch.compiler.is_compiling()
    double = mode == "double_backward" and not compiling
    with torch.enable_grad(), nullcontext() if compiling else _as_written(double):
        logits = model(x)
    logits = check_logits(logits, x, tokens=tokens)
    if double and not transforming() and (steps := once_differentiable(logits)):
        raise ValueError(f"model: takes steps without a double backward: {', '.join(steps)}")
    return logits


@contextmanager
def _as_written(double: bool = True) -> Iterator[None]:
    """Where a model runs so that its graph serves twice: its compiled parts uncompiled.

    Compiled code has no double backward, and may overwrite its buffers in the first of two.
    """
    compiler = sys.modules.get("torch._dynamo")  # not there: nothing is compiled
    with (
        fast_double_backward() if double else nullcontext(),
        compiler.set_stance("force_eager") if compiler else nullcontext(),
    ):
        yield


def _pure(model: Model, x: Tensor) -> Tensor:
    """model(x) without its effects on buffers, which torch.func.grad cannot have."""
    if not isinstance(model, torch.nn.Module):
        return model(x)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits: Tensor = torch.func.functional_call(model, buffers, (x,))
    return logits


def gradients(
    model: Model, score: Score, points: Sequence[Point], create_graph: bool, scale: float = 1.0
) -> Tensor:
    """scale times the weighted sum of the points' gradients ``[N, *D]``, in float32 at least."""
    total: Any = 0
    for x, values, weight in points:
        g: Tensor | None
        # Rows are independent, so the gradient of the sum holds every row's own.
        if functional():
            # The one form of an input gradient that torch.compile traces and torch.func transforms;
            # it calls the model anew.
            with nullcontext() if torch.compiler.is_compiling() else _as_written():
                g = torch.func.grad(lambda at: score(widen(_pure(model, at))).sum())(x.detach())
        else:
            g = None
            if values.requires_grad:
                total_value = values.sum() * scale if scale != 1 else values.sum()
                (g,) = torch.autograd.grad(
                    total_value, x, create_graph=create_graph, retain_graph=True, allow_unused=True
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
    model: Model,
    score: Score,
    points: Sequence[Point],
    p: float,
    mode: str,
    step: float,
    through_float16: bool = False,
) -> Tensor:
    """norm_p of :func:`gradients` for each sample, differentiable in the model's parameters.

    By finite differences, the value is exact and its derivative is that of the score along the dual
    direction v of the gradient: ``(score(x + step u) - score(x - step u)) |v| / (2 step)``,
    u = v / |v|.
    """
    track = torch.is_grad_enabled()
    second = track and mode == "double_backward"
    take = functools.partial(gradients, model, score, points, second)
    with torch.enable_grad():
        g = scaled_gradient(take) if through_float16 else take()
    if second and through_float16:
        return scaled_norm(g, p)
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
