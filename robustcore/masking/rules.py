"""How a mask passes through each operation: one rule an operation.

The table of the rules, and of what is refused, stands in README.md beside this file; a test
compares it with the rules here.

Parallel branches are inputs of which none is computed from another (SqueezeNet's Fire, Inception);
a concatenation with an own ancestor is DenseNet's and U-Net's. ceil_mode applies to the mask as to
the image. BatchNorm in training mode is refused when the model is called: its statistics would mix
what is hidden with what is not.

Source of the rules for conv, BatchNorm, activations, pools, means, residual add and concatenation:
Balasubramanian and Feizi, "Towards improved input masking for convolutional neural networks", 2023.
The others are ours, made so that nothing hidden is read and a mask of ones changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from robustcore.masking.masks import Mask, Masks, Pair, Window
from robustcore.ops.masking.masked_conv2d import conv_pads


class UnsupportedOperation(ValueError):
    """A model holds an operation that masks have no rule for; the message names node and op."""


@dataclass(frozen=True)
class Value:
    """What is known of a node's result.

    ``kind``: ``map`` (an image of features), ``vector`` (one a sample, no pixels), ``constant``
    (parameters) or ``other`` (sizes, tuples of sizes). ``mask``: of a map, where it is visible; of
    a vector, its samples that show something. ``last``: a map's channels come last (NHWC).
    ``zero``: a vector known to be 0 for samples that show nothing. ``parts``: a tuple of maps.
    """

    kind: str
    mask: Mask | None = None
    last: bool = False
    zero: bool = False
    parts: bool = False


CONSTANT, OTHER = Value("constant"), Value("other")


@dataclass
class Row:
    """One node of the graph and what masks mean for it.

    ``kind`` says what its inputs have to be, given what is needed of its output:
    ``pointwise`` (the same pixels), ``window`` (filled as far as ``window`` reads), ``clean`` (0
    where hidden), ``concat`` (0 where a part is hidden and the whole is not), ``dense`` (a layer
    that mixes features of a vector), ``none`` (nothing).
    ``then`` is what follows: ``mean``, ``partial``, or ``norm`` in place of the node.
    """

    node: fx.Node
    op: str
    value: Value
    kind: str = "none"
    inputs: list[fx.Node] = field(default_factory=list)
    window: Window | None = None
    reach: int | None = None
    then: str | None = None
    groups: int = 1


Rule = Callable[["Call"], Row]


class Call:
    """One call in the graph, with its module, arguments and the values of its inputs."""

    def __init__(
        self, node: fx.Node, op: str, module: nn.Module | None, values: dict[fx.Node, Value],
        masks: Masks,
    ) -> None:  # fmt: skip
        self.node, self.op, self.module, self.masks = node, op, module, masks
        self._values = values

    def value(self, node: Any) -> Value:
        return self._values[node] if isinstance(node, fx.Node) else CONSTANT

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        if len(self.node.args) > index:
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def option(self, name: str, index: int, default: Any = None) -> Any:
        """A module's attribute, or the function's argument."""
        if self.module is not None:
            return getattr(self.module, name, default)
        return self.argument(index, name, default)

    @property
    def tensors(self) -> list[fx.Node]:
        """The inputs that are maps or vectors."""
        return [n for n in self.node.all_input_nodes if self.value(n).kind in ("map", "vector")]

    @property
    def maps(self) -> list[fx.Node]:
        return [n for n in self.tensors if self.value(n).kind == "map"]

    @property
    def x(self) -> Value:
        return self.value(self.node.args[0] if self.node.args else self.node.kwargs.get("input"))

    @property
    def mask(self) -> Mask:
        assert self.x.mask is not None
        return self.x.mask

    def refuse(self, why: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"node {describe(self.node)!r} ({self.op}): {why}")

    def want_map(self, last: bool = False) -> None:
        """The first input has to be a map with the channels where the rule expects them."""
        if self.x.kind != "map" or self.x.parts:
            raise self.refuse(f"got a {self.x.kind}, want an image of features")
        if self.x.last != last:
            raise self.refuse("the channels are in another dimension than the rule expects")

    def row(self, value: Value, kind: str = "none", **more: Any) -> Row:
        return Row(self.node, self.op, value, kind, more.pop("inputs", self.tensors), **more)


def describe(node: fx.Node) -> str:
    """The name a user knows: the module's path, or the node's own."""
    return str(node.target).removeprefix("model.") if node.op == "call_module" else node.name


def pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


# Operations that leave zeros where they find them, by the names their nodes have.
KEEPS_ZERO = {
    "Dropout", "Dropout2d", "Identity", "Flatten", "ReLU", "ReLU6", "SiLU", "GELU", "Hardswish",
    "Tanh", "LeakyReLU", "ELU", "flatten", "dropout", "relu", "squeeze", "view", "reshape",
    "contiguous", "AdaptiveAvgPool2d", "adaptive_avg_pool2d",
}  # fmt: skip


# ---- Pixel by pixel ------------------------------------------------------------------------------


def pointwise(call: Call) -> Row:
    """The same function of every pixel; two maps intersect; vectors stay vectors."""
    maps = call.maps
    if any(call.value(n).parts for n in call.tensors):
        raise call.refuse("got a tuple of images")
    if maps:
        if len({call.value(n).last for n in maps}) > 1:
            raise call.refuse("the images have their channels in different dimensions")
        mask = call.value(maps[0]).mask
        for other in maps[1:]:
            mask = call.masks.both(mask, call.value(other).mask)  # type: ignore[arg-type]
        return call.row(Value("map", mask, call.value(maps[0]).last), "pointwise", inputs=maps)
    return vector(call)


def vector(call: Call) -> Row:
    """Any function of vectors and constants alone."""
    vectors = call.tensors
    if call.maps:
        raise call.refuse("no rule for an image of features")
    if not vectors:
        return call.row(CONSTANT)
    mask = call.value(vectors[0]).mask
    for other in vectors[1:]:
        mask = call.masks.both(mask, call.value(other).mask)  # type: ignore[arg-type]
    zero = call.op in KEEPS_ZERO and all(call.value(n).zero for n in vectors)
    return call.row(Value("vector", mask, zero=zero))


def batch_norm(call: Call) -> Row:
    return pointwise(call)


def softmax(call: Call) -> Row:
    dim = call.option("dim", 1)
    if call.x.kind == "map" and dim != 1:
        raise call.refuse(f"dim {dim} mixes pixels")
    return pointwise(call)


def inner(call: Call) -> Row:
    """Linear and LayerNorm: of the last dimension."""
    if call.x.kind == "map":
        call.want_map(last=True)
        return call.row(Value("map", call.mask, last=True), "pointwise")
    return dense(call) if "linear" in call.op.lower() else vector(call)


def dense(call: Call) -> Row:
    if len(call.tensors) != 1:
        raise call.refuse("wants one input that depends on the image")
    return call.row(Value("vector", call.x.mask), "dense")


# ---- Windows -------------------------------------------------------------------------------------


def conv(call: Call) -> Row:
    module = call.module
    assert isinstance(module, nn.Conv2d)
    if call.x.kind == "vector":
        return dense(call)
    call.want_map()
    if module.padding_mode != "zeros":
        raise call.refuse(f"padding_mode {module.padding_mode!r}, want 'zeros'")
    kernel, dilation = pair(module.kernel_size), pair(module.dilation)
    pads = conv_pads(module.padding, kernel, dilation)
    window = Window(kernel, pair(module.stride), pads, dilation)
    mask = call.masks.pool(call.mask, window)
    partial = "partial" if kernel != (1, 1) else None
    return call.row(Value("map", mask), "window", window=window, then=partial)


def conv_transpose(call: Call) -> Row:
    module = call.module
    assert isinstance(module, nn.ConvTranspose2d)
    call.want_map()
    window = Window(pair(module.kernel_size), pair(module.stride), dilation=pair(module.dilation))
    more = (pair(module.padding), pair(module.output_padding))
    mask = call.masks.derived("transposed", call.mask, (window, *more))
    reach = max(span // s for span, s in zip(window.span, window.stride, strict=True))
    return call.row(Value("map", mask), "window", reach=reach)


def _pool_window(call: Call) -> Window:
    kernel = pair(call.option("kernel_size", 1, None))
    stride = call.option("stride", 2, None)
    padding = pair(call.option("padding", 3, 0))
    average = "avg" in call.op.lower()
    dilation = (1, 1) if average else pair(call.option("dilation", 4, 1))
    ceil_mode = bool(call.option("ceil_mode", 4 if average else 5, False))
    if not average and (getattr(call.module, "return_indices", False)
                        or call.node.kwargs.get("return_indices")):  # fmt: skip
        raise call.refuse("return_indices has no meaning under a mask")
    pads = ((padding[0],) * 2, (padding[1],) * 2)
    return Window(kernel, pair(stride) if stride else kernel, pads, dilation, ceil_mode)


def max_pool(call: Call) -> Row:
    call.want_map()
    window = _pool_window(call)
    return call.row(Value("map", call.masks.pool(call.mask, window)), "clean", window=window)


def avg_pool(call: Call) -> Row:
    call.want_map()
    window = _pool_window(call)
    return call.row(Value("map", call.masks.pool(call.mask, window, "seen")), "clean")


def adaptive_pool(call: Call) -> Row:
    if call.x.kind == "vector":
        return vector(call)
    call.want_map()
    size = call.option("output_size", 1)
    size = (size, size) if isinstance(size, int) or size is None else tuple(size)
    if size == (1, 1):
        return global_pool(call)
    return call.row(Value("map", call.masks.derived("adaptive", call.mask, size)), "clean")


def global_pool(call: Call) -> Row:
    then = None if "max" in call.op.lower() else "mean"
    alive = call.masks.derived("alive", call.mask)
    return call.row(Value("vector", alive, zero=True), "clean", then=then)


def reduction(call: Call) -> Row:
    """mean and amax over both spatial dimensions."""
    if call.x.kind != "map":
        return vector(call)
    call.want_map()
    dims = call.argument(1, "dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if dims is None or {d % 4 for d in dims} != {2, 3}:
        raise call.refuse(f"dim {dims}, want both spatial dimensions, (2, 3)")
    return global_pool(call)


def resize(call: Call) -> Row:
    call.want_map()

    size, scale = call.option("size", 1, None), call.option("scale_factor", 2, None)
    mode = call.option("mode", 3, "nearest")
    corners = call.option("align_corners", 4, None)
    parts = [
        v
        for given in (size, scale)
        for v in (given if isinstance(given, (list, tuple)) else [given])
    ]
    if any(isinstance(v, fx.Node) for v in parts):
        raise call.refuse("the size is computed in the graph, want a number")
    reach = {"nearest": 0, "nearest-exact": 0, "bilinear": 1, "bicubic": 3}.get(mode)
    if reach is None:
        raise call.refuse(f"mode {mode!r}, want nearest, nearest-exact, bilinear or bicubic")
    how = (tuple(size) if isinstance(size, (list, tuple)) else size,
           tuple(scale) if isinstance(scale, (list, tuple)) else scale, mode, corners)  # fmt: skip
    value = Value("map", call.masks.derived("resize", call.mask, how))
    return call.row(value, "window", reach=reach)


def pixel_shuffle(call: Call) -> Row:
    call.want_map()
    how = (None, float(call.option("upscale_factor", 1)), "nearest", None)
    return call.row(Value("map", call.masks.derived("resize", call.mask, how)), "window", reach=0)


# ---- Statistics ----------------------------------------------------------------------------------


def group_norm(call: Call) -> Row:
    module = call.module
    if call.x.kind == "vector":
        return vector(call)
    call.want_map()
    if isinstance(module, nn.InstanceNorm2d):
        if module.track_running_stats:
            return pointwise(call)
        groups = module.num_features
    else:
        assert isinstance(module, nn.GroupNorm)
        groups = module.num_groups
    return call.row(Value("map", call.mask), "clean", then="norm", groups=groups)


def layer_norm(call: Call) -> Row:
    shape = call.option("normalized_shape", 1)
    if call.x.kind == "map" and not call.x.last and len(shape) == 3:
        if call.module is None:
            raise call.refuse("statistics over pixels, want the module nn.LayerNorm")
        return call.row(Value("map", call.mask), "clean", then="norm")
    if call.x.kind == "map" and len(shape) != 1:
        raise call.refuse(f"normalized_shape {shape} mixes some pixels and not others")
    return inner(call)


# ---- Shapes --------------------------------------------------------------------------------------


def concat(call: Call) -> Row:
    parts = call.argument(0, "tensors")
    dim = call.argument(1, "dim", 0)
    if not isinstance(parts, (list, tuple)) or not call.maps:
        return vector(call)
    values = [call.value(p) for p in parts]
    if any(v.kind != "map" or v.parts for v in values) or len({v.last for v in values}) > 1:
        raise call.refuse("wants images of features only, their channels in one dimension")
    channel = 3 if values[0].last else 1
    if dim % 4 != channel:
        raise call.refuse(f"dim {dim} is not the channels'")
    masks = [v.mask for v in values if v.mask is not None]
    nested = any(a is not b and _depends(b, a) for a in parts for b in parts)
    mask = call.masks.majority(masks) if nested else call.masks.either(masks)
    return call.row(Value("map", mask, values[0].last), "concat")


def _depends(node: fx.Node, on: fx.Node) -> bool:
    seen, stack = {node}, [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source is on:
                return True
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return False


def split(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    dim = call.argument(2, "dim", 0)
    if dim % 4 != (3 if call.x.last else 1):
        raise call.refuse(f"dim {dim} is not the channels'")
    return call.row(Value("map", call.mask, call.x.last, parts=True), "pointwise")


def get_item(call: Call) -> Row:
    if call.x.kind == "map":
        if not call.x.parts:
            raise call.refuse("indexing an image of features")
        return call.row(Value("map", call.mask, call.x.last), "pointwise")
    return call.row(OTHER) if call.x.kind == "other" else vector(call)


def flatten(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    call.want_map()
    start = call.option("start_dim", 1, 0)
    if start != 1:
        raise call.refuse(f"start_dim {start}, want 1: samples stay apart")
    return _flattened(call)


def _flattened(call: Call) -> Row:
    return call.row(Value("vector", call.masks.derived("alive", call.mask), zero=True), "clean")


def reshape(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    call.want_map()
    shape = call.node.args[1:]
    if len(shape) == 1 and isinstance(shape[0], (list, tuple)):
        shape = tuple(shape[0])
    if len(shape) != 2 or isinstance(shape[0], int):
        raise call.refuse("wants (batch, -1) with the batch size taken from the tensor")
    return _flattened(call)


def permute(call: Call) -> Row:
    if call.x.kind != "map":
        return vector(call)
    dims: Any = call.option("dims", 1) if call.module else call.node.args[1:]
    if len(dims) == 1:
        (dims,) = dims
    order = tuple(d % 4 for d in dims)
    if order == ((0, 3, 1, 2) if call.x.last else (0, 2, 3, 1)):
        return call.row(Value("map", call.mask, not call.x.last), "pointwise")
    raise call.refuse(f"order {order}, want NCHW to NHWC or back")


def size(call: Call) -> Row:
    return call.row(OTHER)


def attribute(call: Call) -> Row:
    if call.node.args[1] not in ("shape", "dtype", "device"):
        raise call.refuse(f"attribute {call.node.args[1]!r}")
    return call.row(OTHER)
