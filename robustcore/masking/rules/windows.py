"""Rules of convolutions, pools, means and resizing."""

from __future__ import annotations

from torch import fx, nn

from robustcore.masking.masks import Window
from robustcore.masking.rules.call import Call, Row, Value, pair
from robustcore.masking.rules.pixels import dense, vector
from robustcore.ops.masking.masked_conv2d import conv_pads


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
