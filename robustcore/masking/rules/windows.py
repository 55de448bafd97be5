"""Rules of convolutions, pools and resizing."""

from __future__ import annotations

from typing import Any

from torch import fx

from robustcore.common import graph as traced
from robustcore.masking import calls
from robustcore.masking.masks import Mask
from robustcore.masking.rules.call import RESULT, Call, Row, Then, Value, pair
from robustcore.masking.rules.pixels import dense, vector
from robustcore.masking.rules.shapes import rearrange
from robustcore.masking.windows import Window
from robustcore.ops.masking.masked_conv2d import conv_pads, partial_correction


def _unpadded(call: Call, window: Window) -> tuple[Mask, Window, dict[str, Any]]:
    """The image that a window reads, without zeros that were put around it before."""
    pads = call.x.pads
    if pads is None:
        return call.want_image(), window, {}
    inner = call.source.args[0]
    mask = call.value(inner).mask
    assert mask is not None
    return mask, window.padded(pads), {"inputs": [inner], "via": call.source}


def conv(call: Call) -> Row:
    """Largest in the window | input filled as far as visible outputs read; 1x1: nothing"""
    weight = traced.sizes(call.args["weight"])
    if call.x.kind == "vector":
        return dense(call)
    if len(call.maps) > 1 or call.source is not call.args["input"]:
        raise call.refuse("its weights depend on the image; want constants")
    if len(weight) != 4:
        return _conv1d(call, weight)
    kernel, dilation = (weight[2], weight[3]), pair(call.args["dilation"])
    pads = conv_pads(call.args["padding"], kernel, dilation)
    mask, window, more = _unpadded(call, Window(kernel, pair(call.args["stride"]), pads, dilation))
    if mask.shape[1] != 1:  # pixels were moved into channels: what is hidden is 0
        mask = call.masks.pool(call.masks.any(mask, (1,)), window)
        return call.row(Value("map", mask), "clean", **({"inputs": call.maps} | more))
    shape = (window.kernel, window.stride, window.pads, window.dilation)
    partial = None
    if kernel != (1, 1):
        arguments = (RESULT, mask, call.args["bias"], *shape)
        partial = Then("divided by each window's visible share", partial_correction, arguments)
    more.setdefault("inputs", call.maps)
    value = call.value_of(call.masks.pool(mask, window))
    return call.row(value, "window", window=window, then=partial, **more)


def _conv1d(call: Call, weight: tuple[int, ...]) -> Row:
    mask = call.mask
    call.want_apart(mask, 1)
    if len(weight) == 3 and weight[2] == 1 and not mask.varies(1):
        return call.row(Value("map", mask), "pointwise", inputs=call.maps)
    raise call.refuse("want a convolution of images [N, C, H, W]")


def conv_transpose(call: Call) -> Row:
    """1 where any input is visible | as `conv`; kernel = stride: nothing"""
    if call.x.kind == "vector":
        return dense(call)
    mask = call.want_image()
    kernel = traced.sizes(call.args["weight"])[2:]
    window = Window(pair(kernel), pair(call.args["stride"]), dilation=pair(call.args["dilation"]))
    more = (pair(call.args["padding"]), pair(call.args["output_padding"]))
    shape = (mask.times, 1, *traced.sizes(call.node)[2:])
    mask = call.masks.make("transposed", (window, *more), (mask,), shape)
    reach = max(span // s for span, s in zip(window.span, window.stride, strict=True))
    return call.row(Value("map", mask), "window", reach=reach)


def _pool_window(call: Call) -> Window:
    kernel, padding = pair(call.args["kernel_size"]), pair(call.args["padding"])
    stride = call.args["stride"]
    pads = ((padding[0],) * 2, (padding[1],) * 2)
    dilation = pair(call.args.get("dilation", 1))
    ceil_mode = bool(call.args["ceil_mode"])
    return Window(kernel, pair(stride) if stride else kernel, pads, dilation, ceil_mode)


def max_pool(call: Call) -> Row:
    """Largest in the window, ceil_mode alike | zeros before the pool; of the whole image, as
    `extreme`"""
    return _pool(call, "pool")


def _largest(call: Call) -> Row:
    """A maximum over the image: of what is visible, which zeros are not."""
    then = Then("of what is visible", calls.visible_extreme,
                (call.source, call.mask, [2, 3], True, False), instead=True)  # fmt: skip
    return call.row(call.value_of(call.masks.any(call.mask, (2, 3))), "mix", then=then)


def avg_pool(call: Call) -> Row:
    """1 where the window sees any | zeros before the pool"""
    return _pool(call, "seen")


def _pool(call: Call, kind: str) -> Row:
    if call.x.kind == "vector":
        return vector(call)
    if call.op.endswith("_with_indices"):
        raise call.refuse("return_indices has no meaning under a mask")
    mask, window, more = _unpadded(call, _pool_window(call))
    sees_all = all(k >= s for k, s in zip(window.kernel, call.sizes[2:], strict=True))
    if kind == "pool" and sees_all and traced.sizes(call.node)[2:] == (1, 1) and not more:
        return _largest(call)
    return call.row(Value("map", call.masks.pool(mask, window, kind)), "clean", **more)


def channel_pool(call: Call) -> Row:
    """Unchanged: of channels (LocalResponseNorm). Of tokens, as `avg_pool` | as `avg_pool`"""
    if call.x.kind == "vector":
        return vector(call)
    call.want_apart(call.mask, *range(1, len(call.sizes)))
    if len(call.sizes) == 3 and call.op == "avg_pool1d" and not call.mask.varies(1):
        return _token_pool(call)
    kernel = call.args["kernel_size"]
    first = len(call.sizes) - len(kernel)
    wide = [first + d for d, size in enumerate(kernel) if size > 1]
    same = traced.sizes(call.node)[first + 1 :] == call.sizes[first + 1 :]
    if not same or any(call.mask.varies(d) for d in wide):
        raise call.refuse("want a pool of channels, or of images [N, C, H, W]")
    return call.row(Value("map", call.mask), "pointwise")


def _token_pool(call: Call) -> Row:
    """Tokens as a row of an image."""
    (kernel,), (stride,), (padding,) = (
        tuple(call.args[name]) or tuple(call.args["kernel_size"])
        for name in ("kernel_size", "stride", "padding")
    )
    window = Window((1, kernel), (1, stride), ((0, 0), (padding,) * 2), (1, 1),
                    bool(call.args["ceil_mode"]))  # fmt: skip
    n, c, tokens = call.sizes
    row = call.reshaped(call.mask, call.sizes, (n, c, 1, tokens))
    if row is None or not row.is_image:
        raise call.refuse("want tokens [N, C, T]")
    pooled = call.masks.pool(row, window, "seen")
    wide = (n, c, 1, pooled.shape[3])
    return call.row(call.value_of(call.reshaped(pooled, wide, (n, c, wide[3]))), "clean")


def adaptive_pool(call: Call) -> Row:
    """1 where the window sees any; to 1x1 as `mean`, `extreme` | zeros before an average; a maximum
    is over what is visible"""
    if call.x.kind == "vector":
        return vector(call)
    highest = "max" in call.op
    size = traced.sizes(call.node)[2:] if traced.is_tensor(call.node) else ()
    if not highest and all(s == 1 for s in size) and len(size) == len(call.sizes) - 2:
        dims = list(range(2, len(call.sizes)))
        call.want_apart(call.mask, *dims)
        mask = call.masks.any(call.mask, dims)
        then = Then("divided by the visible share", calls.visible_mean,
                    (RESULT, call.mask, dims, True))  # fmt: skip
        return call.row(call.value_of(mask), "clean", then=then)
    mask = call.want_image()
    if highest:
        size = traced.part_sizes(call.node)[0][2:]
    if size == mask.shape[2:] and not highest:
        return call.row(call.x, "pointwise")
    new = call.masks.make("adaptive", tuple(size), (mask,), (mask.times, 1, *size))
    value = call.value_of(new)
    if not highest:
        return call.row(value, "clean")
    then = Then("the maximum of what is visible", calls.adaptive_max,
                (call.source, mask, tuple(size)), instead=True)  # fmt: skip
    return call.row(Value(value.kind, new, parts=(value, value)), "mix", then=then)


def resize(call: Call) -> Row:
    """Nearest; else 1 where any is seen | bilinear filled by 1 pixel, bicubic by 3"""
    if call.x.kind == "vector":
        return vector(call)
    mask = call.want_image()
    name = call.op
    reach = 0 if "nearest" in name else 3 if "bicubic" in name else 1
    if call.args.get("antialias") or "_aa" in name:
        raise call.refuse("antialias mixes pixels that are far apart; want antialias=False")
    arguments = tuple(tuple(v) if isinstance(v, list) else v for v in list(call.args.values())[1:])
    size = traced.sizes(call.node)[2:]
    if any(isinstance(v, fx.Node) for a in arguments for v in (a if isinstance(a, tuple) else [a])):
        arguments = (size, *arguments[1:])
    new = call.masks.make("resize", (call.node.target, arguments), (mask,), (mask.times, 1, *size))
    return call.row(Value("map", new), "window", reach=reach)


def pixel_shuffle(call: Call) -> Row:
    """Nearest | nothing"""
    if call.x.kind == "vector":
        return vector(call)
    mask = call.want_image()
    if mask.shape[1] != 1:
        return rearrange(call)
    shape = (mask.times, 1, *traced.sizes(call.node)[2:])
    new = call.masks.make("repeat", int(call.args["upscale_factor"]), (mask,), shape)
    return call.row(Value("map", new), "window", reach=0)
