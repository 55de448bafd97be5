"""Which rule an operation has, by the name it has in ATen."""

from __future__ import annotations

from robustcore.masking.rules.call import Rule
from robustcore.masking.rules.mixing import attention, einsum, linear, matmul, softmax
from robustcore.masking.rules.pixels import batch_norm, fresh, get_item, pointwise, size, vector
from robustcore.masking.rules.shapes import (
    concat,
    expand,
    index,
    pad,
    permute,
    rearrange,
    reshape,
    stack,
)
from robustcore.masking.rules.statistics import (
    along,
    extreme,
    group_norm,
    layer_norm,
    position,
    reduction,
    spread,
)
from robustcore.masking.rules.windows import (
    adaptive_pool,
    avg_pool,
    channel_pool,
    conv,
    conv_transpose,
    max_pool,
    pixel_shuffle,
    resize,
)

# Names without the underscore of writing in place.
RULES: dict[Rule, str] = {
    conv: "conv2d conv1d convolution",
    conv_transpose: "conv_transpose2d",
    pointwise: (
        "relu relu6 silu gelu sigmoid log_sigmoid hardswish hardsigmoid hardtanh tanh elu selu "
        "celu leaky_relu prelu mish softplus softsign tanhshrink hardshrink softshrink rrelu "
        "threshold add sub rsub mul div true_divide neg abs exp log sqrt rsqrt pow clamp clamp_min "
        "clamp_max clip square reciprocal sin cos erf sign floor round maximum minimum where "
        "masked_fill dropout feature_dropout alpha_dropout feature_alpha_dropout identity to "
        "_to_copy type_as contiguous clone detach alias lift_fresh_copy float channel_shuffle "
        "native_channel_shuffle addcmul addcdiv lerp nan_to_num expm1 log1p logit gt ge lt le eq "
        "ne logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or isnan isfinite "
        "atan2"
    ),
    batch_norm: "batch_norm",
    softmax: "softmax log_softmax _softmax",
    linear: "linear",
    matmul: "matmul mm bmm addmm baddbmm",
    einsum: "einsum",
    attention: "scaled_dot_product_attention",
    layer_norm: "layer_norm rms_norm",
    group_norm: "group_norm instance_norm",
    max_pool: "max_pool2d max_pool2d_with_indices",
    avg_pool: "avg_pool2d",
    channel_pool: "avg_pool1d avg_pool3d",
    adaptive_pool: "adaptive_avg_pool2d adaptive_max_pool2d adaptive_avg_pool1d",
    reduction: "mean sum linalg_vector_norm norm",
    extreme: "amax amin max min",
    spread: "var std var_mean std_mean logsumexp prod",
    position: "argmax argmin",
    along: "cumsum cumprod glu topk sort argsort logcumsumexp",
    concat: "cat concat",
    stack: "stack",
    resize: (
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    ),
    pixel_shuffle: "pixel_shuffle",
    reshape: "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as _unsafe_view",
    permute: "permute transpose swapaxes t mT",
    rearrange: (
        "chunk split split_with_sizes tensor_split unbind slice select narrow roll flip "
        "repeat repeat_interleave tile movedim unfold im2col pixel_unshuffle rot90"
    ),
    expand: "expand expand_as",
    index: "index index_select",
    pad: "pad constant_pad_nd reflection_pad2d replication_pad2d",
    get_item: "getitem",
    fresh: (
        "zeros_like ones_like full_like empty_like rand_like new_zeros new_ones new_full new_empty "
        "zeros ones full arange eye linspace meshgrid scalar_tensor"
    ),
    size: "sym_size size sym_numel dim",
    vector: "",
}
_BY_NAME = {name: rule for rule, names in RULES.items() for name in names.split()}


def find(op: str) -> Rule | None:
    """The rule of an ATen operation."""
    return _BY_NAME.get(op) or _BY_NAME.get(op.rstrip("_"))


def markdown() -> str:
    """The table of the rules, as it stands in the family's README."""
    lines = ["| rule | operations | mask of the output | what is done with what is hidden |",
             "|---|---|---|---|"]  # fmt: skip
    for rule, names in RULES.items():
        text = " ".join((rule.__doc__ or "").split())
        mask, _, hidden = (part.strip() for part in text.partition("|"))
        ops = ", ".join(f"`{name}`" for name in names.split()) or "any other, of vectors alone"
        lines.append(f"| `{rule.__name__}` | {ops} | {mask} | {hidden} |")
    return "\n".join(lines)
