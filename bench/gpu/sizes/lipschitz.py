"""Maps of pairs of channels, and orthogonal convolutions."""

import torch

from robustcore.ops import exp_series
from robustcore.ops.lipschitz import series_block
from robustcore.ops.lipschitz.recurrence import evaluate, prepare
from sizes.size import BF16, F32, raw, size_of


def pairs(at):
    for shape in ((256, 64, 32, 32), (4096, 64, 32, 32)):
        for last in (False, True):
            x = at.randn(*at(*shape), last=last)
            label = f"{list(shape)}, {'channels last' if last else 'contiguous'}"
            bits, size = raw.maxmin(x, last)[1], size_of(x)
            table = torch.rand(4, x.shape[1] // 2, device=at.device)
            wide = torch.rand(15, x.shape[1] // 2, device=at.device)
            yield "maxmin", label, 2 * size, lambda x=x, la=last: raw.maxmin(x, la), "copy"
            fn = lambda x=x, b=bits, la=last: raw.maxmin_swap(x, b, la)  # noqa: E731
            yield "maxmin, backward", label, 2 * size, fn, "copy"
            for name, index, numbers in (("householder", 0, table), ("householder2", 1, wide)):
                fn = lambda x=x, n=numbers, i=index, la=last: raw.pair_map(x, n, i, la)  # noqa: E731
                yield name, label, 2 * size, fn, "copy"


def series(at):
    for shape in ((256, 64, 32, 32), (4096, 64, 32, 32)):
        z, b = at.randn(*at(*shape)), at.randn(*at(*shape))
        out = torch.empty_like(z)
        fn = lambda z=z, b=b, o=out: raw.conv_exp_update(  # noqa: E731
            z, None, b, None, 0.5, 2.0, -1.0, 3.0, 0.25, o, None
        )
        yield "conv_exp_update", str(list(shape)), 3 * size_of(z), fn, "copy"
    weight = at.randn(*at(512, 512, 3, 3))
    if at.tiny:
        weight = weight[..., :3, :3].contiguous()
    fn = lambda: raw.skew(weight)  # noqa: E731
    yield "skew", "[512, 512, 3, 3]", 2 * size_of(weight), fn, "copy"


def fused_series(at):
    """A layer's inference, and its recurrences in training, which also write their maps."""
    exp = exp_series(1.3, degree=5)
    for shape in ((256, 32, 32, 32), (256, 64, 16, 16), (256, 128, 8, 8)):
        n, c, h, w = at(*shape)
        for name, dtype in (("float32", F32), ("bfloat16", BF16)):
            x = at.randn(n, c, h, w, dtype=dtype, last=True)
            filter = at.randn(c, c, 3, 3, dtype=dtype, last=True) / (3 * c) ** 0.5
            can = exp._replace(fused=series_block.cannot(x, filter, exp) is None)
            prepared, label = prepare(x, filter, can), f"{list(shape)}, {name}"
            products, ceiling = 2 * 9 * c * x.numel() * can.degree, f"matrix product, {name}"
            for keep in (False, True):
                fn = lambda x=x, p=prepared, s=can, k=keep: evaluate(x, p, s, k)  # noqa: E731
                kernel = f"conv_exp, fused{', with maps' * keep}"
                yield kernel, label, products, fn, ceiling


def filters(at):
    """The iteration passes twice over the weight, the gradient twice over all it reads."""
    for channels in (64, 256, 512):
        (c,), side = at(channels), 3
        weight, size = at.randn(c, c, side, side), 4 * (c * side) ** 2
        sizes = ((1, c, 1, side), (c, 1, side, 1), (1, c, side, side), (c, 1, 1, 1))
        kept = [at.randn(*s) for s in sizes]
        *fresh, norms = raw.skew_power(weight, *kept)
        scale, label = torch.full((), 0.7, device=at.device), f"[{channels}, {channels}, 3, 3]"
        fn = lambda w=weight, k=kept: raw.skew_power(w, *k)  # noqa: E731
        yield "skew_power", label, size, fn, "copy"
        for last in (False, True):
            form = f"{label}, {'channels last' if last else 'contiguous'}"
            given = (weight, scale, norms, weight, last)
            grad, other = raw.skew_filter(*given), raw.skew_filter(*given)
            fn = lambda g=given: raw.skew_filter(*g)  # noqa: E731
            yield "skew_filter", form, 2 * size, fn, "copy"
            given = (grad, other, 0.3, 2.0, weight, scale, norms, *fresh)
            fn = lambda g=given: raw.skew_filter_backward(*g)  # noqa: E731
            yield "skew_filter, backward", form, 4 * size, fn, "copy"


GROUPS = (pairs, series, fused_series, filters)
