"""Which rule an operation has, by the name it has in ATen or among our own."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

from robustcore.common import graph as traced
from robustcore.lipschitz.rules.call import Rule, refusal
from robustcore.lipschitz.rules.linear import (
    batch_norm,
    conv,
    conv_transpose,
    linear,
    matmul,
    normalise,
    product_of_results,
)
from robustcore.lipschitz.rules.pointwise import (
    SLOPES,
    activation,
    add,
    cast,
    divide,
    dropout,
    extreme_of_two,
    mix,
    multiply,
    power,
    prelu,
    select_by_mask,
    sign,
    softplus,
)
from robustcore.lipschitz.rules.shapes import (
    concat,
    constant_like,
    expand,
    extreme,
    get_item,
    index,
    isometry,
    log_softmax,
    log_sum_exp,
    mean,
    rearrange,
    repeat,
    softmax,
    sort,
    split,
    take,
    total,
    vector_norm,
)
from robustcore.lipschitz.rules.windows import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    fold,
    max_pool,
    pad,
    resize,
    unfold,
)

# Names without the underscore of writing in place.
RULES: dict[Rule, str] = {
    linear: "linear",
    matmul: "matmul mm mv bmm addmm",
    conv: "conv1d conv2d conv3d",
    conv_transpose: "conv_transpose1d conv_transpose2d conv_transpose3d",
    batch_norm: "batch_norm",
    activation: " ".join(SLOPES),
    softplus: "softplus",
    prelu: "prelu",
    dropout: "dropout feature_dropout alpha_dropout feature_alpha_dropout",
    softmax: "softmax _softmax",
    log_softmax: "log_softmax _log_softmax",
    log_sum_exp: "logsumexp",
    isometry: "maxmin householder projection_pool",
    sort: "sort topk kthvalue median",
    extreme: "amax amin max min",
    extreme_of_two: "maximum minimum fmax fmin",
    add: "add sub rsub",
    multiply: "mul",
    divide: "div true_divide",
    mix: "lerp",
    power: "pow sqrt square",
    sign: "sign",
    concat: "cat concat stack hstack vstack",
    split: "split split_with_sizes chunk tensor_split unbind",
    get_item: "getitem",
    take: "slice select narrow",
    rearrange: (
        "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as _unsafe_view permute "
        "transpose swapaxes t mT movedim flip roll rot90 pixel_shuffle pixel_unshuffle "
        "channel_shuffle native_channel_shuffle tril triu diagonal"
    ),
    expand: "expand expand_as",
    repeat: "repeat tile repeat_interleave",
    index: "index index_select",
    select_by_mask: "where masked_fill",
    max_pool: " ".join(f"max_pool{n}d max_pool{n}d_with_indices" for n in (1, 2, 3)),
    avg_pool: "avg_pool1d avg_pool2d avg_pool3d",
    adaptive_avg_pool: "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    adaptive_max_pool: "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    pad: (
        "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d _pad_circular"
    ),
    resize: (
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
        "upsample_trilinear3d _upsample_bilinear2d_aa"
    ),
    unfold: "unfold im2col",
    fold: "col2im",
    mean: "mean",
    total: "sum",
    vector_norm: "linalg_vector_norm norm",
    cast: "to _to_copy type_as float double",
    constant_like: "zeros_like ones_like full_like new_zeros new_ones new_full",
    normalise: "layer_norm native_layer_norm group_norm instance_norm rms_norm",
    product_of_results: "scaled_dot_product_attention bilinear glu",
}
_BY_NAME = {name: rule for rule, names in RULES.items() for name in names.split()}


def find(node: fx.Node) -> Rule:
    """The rule of a call; TypeError naming it where there is none."""
    name = traced.name_of(node)
    if isinstance(node.target, OpOverload):  # another library's `relu` may be anything
        library = node.target.namespace
        known = library in ("aten", "robustcore")
    else:
        known = name == "getitem"
    rule = (_BY_NAME.get(name) or _BY_NAME.get(name.rstrip("_"))) if known else None
    if rule is None:
        raise refusal(node, "there is no rule for it")
    return rule


def markdown() -> str:
    """The table of the rules, as it stands in the family's BOUNDS.md."""
    lines = ["| operations | bounded by | refused |", "|---|---|---|"]
    for rule, names in RULES.items():
        text = " ".join((rule.__doc__ or "").split())
        bound, _, refused = (part.strip() for part in text.partition("|"))
        lines.append(f"| {', '.join(f'`{n}`' for n in names.split())} | {bound} | {refused} |")
    return "\n".join(lines)
