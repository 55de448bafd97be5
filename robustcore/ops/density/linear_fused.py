"""linear_logsumexp on the tensor cores: when it is taken, and its passes.

A kernel makes logits tile by tile where it needs them, and none is kept. A block adds up the rows
of one side alone, in one order and without atomics. So the features' gradient, which the forward
pass takes along, and the weight's are two passes, and the second makes the logits again: four
products with gradients, as many as chunks take, where eager torch takes three. In bfloat16 the
first one has the probabilities in two parts, which is a product more. Of the double backward R and
G (linear_chunks.double_backward_op says what they are) are passes of their own, by rows and by
classes: eight products for a penalty on the features' gradient, where chunks take five.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.ops.autograd import arithmetic, constant_when_compiled, raw

# From which number of rows, of classes and of columns on the kernels are faster than chunks, by
# compute capability and dtype. What measurements wrote, and none has been made: never by a clock at
# run time, for ranks have to agree.
FASTER_FROM: dict[tuple[tuple[int, int], torch.dtype], tuple[int, int, int]] = {}

DTYPES = (torch.float32, torch.bfloat16)

# Blocks on a multiprocessor at a time: as many as its registers hold.
BLOCKS_OF_PROCESSOR = 2


def chosen(fused: Any, features: Tensor, weight: Tensor) -> bool:
    """Whether the kernels are taken; ``fused`` may force it, and an error says why it cannot."""
    if fused is not None and not isinstance(fused, bool):
        raise TypeError(f"fused: got {type(fused).__name__}, want None, True or False")
    if fused is False or (fused is None and not FASTER_FROM):
        return False
    why_not = obstacle(features, weight)
    if fused is None:
        sizes = (*features.flatten(0, -2).shape[:1], *weight.shape)
        return why_not is None and _is_faster(_capability(features.device), features.dtype, sizes)
    if why_not is not None:
        raise ValueError(f"fused: got True, but {why_not}")
    return features.numel() > 0 or features.shape[-1] == 0


def _is_faster(
    capability: tuple[int, int], dtype: torch.dtype, sizes: tuple[int, int, int]
) -> bool:
    least = FASTER_FROM.get((capability, dtype))
    return least is not None and all(a >= b for a, b in zip(sizes, least, strict=True))


@constant_when_compiled
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def obstacle(features: Tensor, weight: Tensor) -> str | None:
    """Why there is no kernel for them."""
    if features.device.type != "cuda":
        return f"features are on {features.device}, want a GPU"
    if features.dtype not in DTYPES or weight.dtype != features.dtype:
        dtypes = f"{features.dtype} and weight of {weight.dtype}"
        return f"features are of {dtypes}, want both of float32 or both of bfloat16"
    major, minor = _capability(features.device)
    if major not in (8, 9):
        return f"the GPU is of compute capability {major}.{minor}, want 8.0 to 9.0"
    return None


def at_targets(
    targets: Tensor, classes: int, factors: Sequence[tuple[Tensor | None, Tensor | None]],
    bias: Tensor | None, outside: float,
) -> Tensor:  # fmt: skip
    """Of pairs ``[N, D]`` and ``[K, D]``: each row's product with its target's row, their sum."""
    inside = (targets >= 0) & (targets < classes)
    at = torch.where(inside, targets, 0)
    terms = [(a.to(arithmetic(a)) * b[at]).sum(1) for a, b in factors
             if a is not None and b is not None]  # fmt: skip
    if bias is not None:
        terms.append(bias[at])
    return torch.where(inside, sum(terms), outside)


class _Layer:
    """A linear layer as the kernels take it."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.width = features.shape[1]
        self.features, self.weight = _laid(features), _laid(weight)
        self.minus_bias = _negative(bias)
        self.blocks = BLOCKS_OF_PROCESSOR * _processors(features.device)

    def weights(
        self, value: Tensor | None, lse: Tensor, *, of_classes: bool, sums: Tensor | None = None,
        out: Tensor | None = None, add: bool = False, grad: Tensor | None = None,
        hits: tuple[Tensor, Tensor] | None = None, dot: Tensor | None = None,
        along: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None,
    ) -> None:  # fmt: skip
        """``out`` (+)= weights value and ``sums`` = of the weights, as the C++ header says.

        The weights are ``grad p`` plus hits' (targets, their gradients); with cotangents ``along``
        of features, weight and bias, ``grad p (u - dot)``.
        """
        v_features, v_weight, v_bias = along or (None, None, None)
        targets, grad_target = hits or (None, None)
        raw.linear_logsumexp_weights_(
            out, sums, self.features, self.weight, self.minus_bias, _laid(v_features),
            _laid(v_weight), _negative(v_bias), torch.where(lse == -float("inf"), 0, lse),
            _numbers(grad), _numbers(dot), targets, _numbers(grad_target), _laid(value),
            of_classes, along is not None, add, self.blocks,
        )  # fmt: skip

    def room(self, like: Tensor, dtype: torch.dtype, wanted: bool) -> Tensor | None:
        shape = like.shape[0], self.features.shape[1]
        return like.new_empty(shape, dtype=dtype) if wanted else None

    def trimmed(self, out: Tensor | None, like: Tensor) -> Tensor:
        """A result without the columns that its rows were filled up with."""
        if out is None:
            return like.new_empty(0)
        return out[:, : self.width].to(like.dtype).contiguous()


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _laid(t: Any) -> Any:
    """Rows of whole 16 bytes, aligned to them: zeros at their ends change no product."""
    if t is None:
        return None
    whole = 16 // t.element_size()
    missing = -t.shape[1] % whole if t.shape[1] else whole
    t = functional.pad(t, (0, missing)) if missing else t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _numbers(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def _negative(t: Tensor | None) -> Tensor | None:
    return None if t is None else -t.to(torch.float32).contiguous()


def forward(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor | None, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As linear_chunks.forward_op."""
    layer = _Layer(features, weight, bias)
    lse, mean = raw.linear_logsumexp_online(
        layer.features, layer.weight, layer.minus_bias, with_mean, layer.blocks
    )
    mean = mean[:, : layer.width].contiguous() if with_mean else lse.new_empty(0)
    if targets is None:
        return lse, lse.new_empty(0), mean
    # Not from the pass itself: a row of the weight is read again, and no logit is compared.
    logits = at_targets(targets, weight.shape[0], [(features, weight)], bias, float("nan"))
    return lse, logits.to(lse.dtype), mean


def class_gradients(
    grad: Tensor, hits: tuple[Tensor, Tensor] | None, features: Tensor, weight: Tensor,
    bias: Tensor | None, lse: Tensor, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of weight and bias; what is not needed is empty."""
    layer = _Layer(features, weight, bias)
    out = layer.room(weight, weight.dtype, need_weight)
    sums = lse.new_empty(weight.shape[:1]) if need_bias else None
    layer.weights(
        features if need_weight else None, lse, of_classes=True, out=out, sums=sums, grad=grad,
        hits=hits,
    )  # fmt: skip
    return layer.trimmed(out, weight), weight.new_empty(0) if sums is None else sums.to(weight)


def double_backward(
    along: tuple[Tensor | None, Tensor | None, Tensor | None], grad: Tensor,
    hits: tuple[Tensor, Tensor] | None, features: Tensor, weight: Tensor, bias: Tensor | None,
    lse: Tensor, mean: Tensor, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As linear_chunks.double_backward_op says, without the derivative in grad_target."""
    layer, (v_features, v_weight, v_bias) = _Layer(features, weight, bias), along
    need_features, need_weight, need_bias = needs
    if v_features is not None and v_weight is None and v_bias is None:
        dot = (v_features * mean).sum(1)
    else:
        dot = torch.empty_like(lse)
        layer.weights(None, lse, of_classes=False, sums=dot, along=along)
    second: dict[str, Any] = dict(grad=grad, dot=dot, along=along)  # R, and below G
    first: dict[str, Any] = dict(grad=grad, hits=hits, add=True)
    d_features = layer.room(features, lse.dtype, need_features)
    if need_features:
        layer.weights(weight, lse, of_classes=False, out=d_features, **second)
        if v_weight is not None:
            layer.weights(v_weight, lse, of_classes=False, out=d_features, **first)
    d_weight = layer.room(weight, weight.dtype, need_weight)
    d_bias = lse.new_empty(weight.shape[:1]) if need_bias else None
    if need_weight or need_bias:
        value = features if need_weight else None
        layer.weights(value, lse, of_classes=True, out=d_weight, sums=d_bias, **second)
    if need_weight and v_features is not None:
        layer.weights(v_features, lse, of_classes=True, out=d_weight, **first)
    bias_result = weight.new_empty(0) if d_bias is None else d_bias.to(weight.dtype)
    return dot, layer.trimmed(d_features, features), layer.trimmed(d_weight, weight), bias_result
