"""A context in which a model's layers get a double backward as cheap as it can be."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from robustcore import ops
from robustcore.ops.autograd import transforming
from robustcore.ops.density import batch_norm, conv3x3, relu


class fast_double_backward(TorchFunctionMode):
    """A context: run a model in it whose input gradient will be differentiated again.

    ::

        with fast_double_backward():
            logits = model(x)

    Convolutions (not transposed, of numeric padding), batch normalisation, ReLU and attention then
    take other ways through backward and double backward: the
    same derivatives to any order, in less time. They round about as torch's do, but for float32
    convolutions of 3 x 3 and stride 1 on the CPU: by Winograd, to about 1e-6 of the norm, and a
    value that is not finite spoils its tile of up to 6 x 6. All else, and layers under autocast,
    are torch's; attention then by its math backend, the one that has a double backward. What
    non-reentrant checkpointing recomputes is recomputed in this context too, as torch's own is not
    (pytorch/pytorch#147995). The penalties of :mod:`robustcore.density` enter it where they call
    the model themselves; give it to the forward pass whose ``logits`` you hand to them.
    """

    def __enter__(self) -> fast_double_backward:
        _keep_freed_memory()
        checkpoint._CheckpointFrame = _CheckpointFrame  # type: ignore[misc]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _multi_head_attention(*args, **kwargs)
        layer = LAYERS.get(func)
        if layer is not None and torch.is_grad_enabled():
            result = layer(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


class _CheckpointFrame(checkpoint._CheckpointFrame):
    """What torch keeps of a function it will call again; in the context it is made in."""

    def __init__(self, recompute_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        modes = torch.overrides._get_current_function_mode_stack()
        if any(isinstance(mode, fast_double_backward) for mode in modes):
            recompute_fn = functools.partial(_within, recompute_fn)
        super().__init__(recompute_fn, *args, **kwargs)


def _within(function: Callable[..., Any], *args: Any) -> Any:
    with fast_double_backward():
        return function(*args)


# torch's own, whose calls come to a mode too: it asks for modes itself, and what they do not take
# would go past them.
_multi_head_attention = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**vars(functional), "has_torch_function": lambda tensors: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)


@functools.cache
def _keep_freed_memory() -> None:
    """Lets glibc keep twice 31 MiB of freed memory instead of a few, once a process.

    A double backward frees and takes so much that else its pages go back to the system, and fault
    in again, in every step. glibc learns what to keep from the largest block that it saw freed, of
    at most 32 MiB; so one is, untouched. Where glibc was told what to do (MALLOC_TRIM_THRESHOLD_
    and its like) or is not there, this changes nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _ours(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary floating tensors of one dtype, with something to differentiate."""
    there = [t for t in tensors if t is not None]
    x = there[0]
    return (
        all(type(t) in (Tensor, torch.nn.Parameter) and t.dtype == x.dtype for t in there)
        and x.is_floating_point()
        and any(t.requires_grad for t in there)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


def _convolution(dims: int) -> Callable[..., Tensor | None]:
    def each(value: Any) -> list[int]:
        return [value] * dims if isinstance(value, int) else list(value)

    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or not _ours(input, weight, bias) or input.dim() != dims + 2:
            return None
        return conv3x3.convolution(
            input, weight, bias, each(stride), each(padding), each(dilation), groups
        )

    return convolution


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if input.dim() < 2 or not _ours(input, weight, bias, running_mean, running_var):
        return None
    if not training and running_mean is not None and running_var is not None:
        return batch_norm.batch_norm_by(input, weight, bias, running_mean, running_var, eps)
    if not training or input.numel() <= input.shape[1]:
        return None  # torch's own, or its error
    return batch_norm.batch_norm(input, weight, bias, running_mean, running_var, momentum, eps)


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    # Under torch.func a Function of Python cannot write into its input.
    if not _ours(input) or (inplace and transforming()):
        return None
    return relu.relu(input, inplace)


def _relu_(input: Tensor) -> Tensor | None:
    return _relu(input, True)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    if torch.compiler.is_compiling() or not any(t.requires_grad for t in (query, key, value)):
        return None
    if dropout_p == 0 and _takes_ours(query, key, value, attn_mask, is_causal):
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        return ops.attention(query, key, value, scale=scale, causal=is_causal, mask=attn_mask)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen = attn_mask
        attn_mask = query.new_zeros(seen.shape).masked_fill_(~seen, -math.inf)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which does not know the math backend
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    result: Tensor = _math_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return result


def _takes_ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
    """Whether attention is ours; float64 on the CPU is not, where our kernel has no vectors."""
    if not _ours(q, k, v) or (q.dtype == torch.float64 and q.device.type == "cpu"):
        return False
    return mask is None or not (mask.requires_grad or causal)


_math_attention = torch.ops.aten._scaled_dot_product_attention_math.default

LAYERS: dict[Any, Callable[..., Tensor | None]] = {
    functional.conv1d: _convolution(1),
    functional.conv2d: _convolution(2),
    functional.conv3d: _convolution(3),
    functional.batch_norm: _batch_norm,
    functional.scaled_dot_product_attention: _attention,
    functional.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu: _relu,
    Tensor.relu_: _relu_,
}
