"""Which rule an operation has: modules by type, functions by object, methods by name."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from robustcore.masking.rules.call import Rule
from robustcore.masking.rules.pixels import batch_norm, inner, pointwise, softmax, vector
from robustcore.masking.rules.shapes import (
    attribute,
    concat,
    flatten,
    get_item,
    permute,
    reshape,
    size,
    split,
)
from robustcore.masking.rules.statistics import group_norm, layer_norm
from robustcore.masking.rules.windows import (
    adaptive_pool,
    avg_pool,
    conv,
    conv_transpose,
    max_pool,
    pixel_shuffle,
    reduction,
    resize,
)

ACTIVATIONS = (
    "relu", "relu6", "silu", "gelu", "sigmoid", "logsigmoid", "hardswish", "hardsigmoid",
    "hardtanh", "tanh", "elu", "selu", "celu", "leaky_relu", "prelu", "mish", "softplus",
    "softsign", "tanhshrink", "hardshrink", "softshrink", "rrelu", "threshold",
)  # fmt: skip
ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.LogSigmoid, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.Softplus,
    nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.RReLU, nn.Threshold,
)  # fmt: skip
ARITHMETIC = (
    "add", "sub", "mul", "div", "neg", "abs", "exp", "sqrt", "pow", "clamp", "clip", "square",
    "maximum", "minimum", "where",
)  # fmt: skip

MODULES: dict[type, Rule] = {
    nn.Conv2d: conv,
    nn.ConvTranspose2d: conv_transpose,
    nn.BatchNorm2d: batch_norm,
    nn.SyncBatchNorm: batch_norm,
    nn.BatchNorm1d: vector,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm2d: group_norm,
    nn.LayerNorm: layer_norm,
    nn.LocalResponseNorm: pointwise,
    nn.Linear: inner,
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: avg_pool,
    nn.AdaptiveAvgPool2d: adaptive_pool,
    nn.AdaptiveMaxPool2d: adaptive_pool,
    nn.Upsample: resize,
    nn.UpsamplingNearest2d: resize,
    nn.UpsamplingBilinear2d: resize,
    nn.PixelShuffle: pixel_shuffle,
    nn.ChannelShuffle: pointwise,
    nn.Flatten: flatten,
    nn.Identity: pointwise,
    nn.Softmax: softmax,
    nn.LogSoftmax: softmax,
    nn.Dropout: pointwise,
    nn.Dropout2d: pointwise,
    nn.AlphaDropout: pointwise,
    **dict.fromkeys(ACTIVATION_MODULES, pointwise),
}

# Modules of other libraries that are one function of a sample, by class name.
LEAVES: dict[str, Rule] = {"StochasticDepth": pointwise, "DropPath": pointwise}

FUNCTIONS: dict[Any, Rule] = {
    **{getattr(functional, name): pointwise for name in ACTIVATIONS},
    **{getattr(torch, name): pointwise for name in ("relu", "sigmoid", "tanh", *ARITHMETIC)},
    **{
        getattr(operator, name): pointwise
        for name in ("add", "sub", "mul", "truediv", "neg", "pow", "iadd", "isub", "imul")
    },
    functional.dropout: pointwise,
    functional.dropout2d: pointwise,
    functional.softmax: softmax,
    functional.log_softmax: softmax,
    torch.softmax: softmax,
    functional.linear: inner,
    functional.layer_norm: layer_norm,
    functional.max_pool2d: max_pool,
    torch.max_pool2d: max_pool,
    functional.avg_pool2d: avg_pool,
    functional.adaptive_avg_pool2d: adaptive_pool,
    functional.adaptive_max_pool2d: adaptive_pool,
    functional.interpolate: resize,
    functional.pixel_shuffle: pixel_shuffle,
    functional.channel_shuffle: pointwise,
    torch.mean: reduction,
    torch.amax: reduction,
    torch.cat: concat,
    torch.concat: concat,
    torch.chunk: split,
    torch.split: split,
    torch.flatten: flatten,
    torch.reshape: reshape,
    torch.permute: permute,
    torch.squeeze: vector,
    torch.unsqueeze: vector,
    operator.getitem: get_item,
    getattr: attribute,
    torch.matmul: vector,
    torch.addmm: vector,
}

METHODS: dict[str, Rule] = {
    **dict.fromkeys((*ARITHMETIC, "relu", "sigmoid", "tanh", "contiguous"), pointwise),
    **{f"{name}_": pointwise for name in (*ARITHMETIC[:4], "relu", "sigmoid", "tanh", "clamp")},
    "to": pointwise,
    "float": pointwise,
    "softmax": softmax,
    "mean": reduction,
    "amax": reduction,
    "chunk": split,
    "split": split,
    "flatten": flatten,
    "view": reshape,
    "reshape": reshape,
    "permute": permute,
    "squeeze": vector,
    "unsqueeze": vector,
    "size": size,
    "dim": size,
}


def find(node: fx.Node, module: nn.Module | None) -> tuple[str, Rule | None]:
    """The operation's name and its rule."""
    if node.op == "call_module":
        kind = type(module)
        return kind.__name__, MODULES.get(kind) or LEAVES.get(kind.__name__)
    if node.op == "call_function":
        # What torch dispatches on a flag has no name of its own.
        named = (
            n
            for n in ("max_pool2d", "adaptive_max_pool2d")
            if getattr(functional, n) is node.target
        )
        name = next(named, getattr(node.target, "__name__", str(node.target)))
        return name, FUNCTIONS.get(node.target)
    return str(node.target), METHODS.get(str(node.target))
