"""Maps of pairs of channels, and orthogonal convolutions."""

import torch

from cases.case import FLOATS, LAST, Case, normal, uniform, with_gradients
from robustcore import ops
from robustcore.ops.lipschitz import series_block

raw = torch.ops.robustcore


def pairs():
    maps = {
        "maxmin": lambda x: ops.maxmin(x),
        "householder": lambda x: ops.householder(x, angles(x, 8)),
        "householder2": lambda x: ops.householder(x, angles(x, 3, 8)),
        "projection_pool": lambda x: ops.projection_pool(x, angles(x, 8)),
    }

    def angles(x, *shape):
        return 3 * uniform(*shape, dtype=x.dtype, seed=4).to(x.device)

    for op, fn in maps.items():
        for name, dtype in FLOATS.items():
            for last in (False, True):

                def run(device, fn=fn, dtype=dtype, last=last):
                    x = normal(3, 16, 5, 7, dtype=dtype)
                    x = x.contiguous(memory_format=LAST) if last else x
                    return with_gradients(fn, device, x)

                yield Case(op, f"{name}, {'channels last' if last else 'contiguous'}", run)


def series():
    for name, dtype in FLOATS.items():
        yield Case(
            "skew_kernel", name,
            lambda device, dtype=dtype: [
                ops.skew_kernel(normal(6, 6, 3, 3, dtype=dtype).to(device)).kernel
            ],
        )  # fmt: skip

        def run(device, dtype=dtype):
            kernel = ops.skew_kernel(normal(24, 24, 3, 3, dtype=dtype) / 30).kernel
            return with_gradients(
                lambda x, k: ops.conv_exp(x, k, radius=1.5, degree=4), device,
                normal(2, 24, 6, 5, dtype=dtype), kernel,
            )  # fmt: skip

        yield Case("conv_exp", name, run, False)


def fused_series():
    for name in ("float32", "bfloat16"):
        # 32 x 32 x 32 in tiles; several images a block; sides that 8 does not divide.
        for shape in ((2, 32, 32, 32), (5, 128, 8, 8), (3, 64, 13, 7)):

            def run(device, dtype=FLOATS[name], shape=shape):
                c = shape[1]
                kernel = ops.skew_kernel(normal(c, c, 3, 3, dtype=dtype) / (6 * c**0.5)).kernel
                x, series = normal(*shape, dtype=dtype), ops.exp_series(1.5, degree=4)
                fused = series_block.cannot(x.to(device), kernel, series) is None
                return with_gradients(
                    lambda x, k: ops.conv_exp(x, k, radius=1.5, degree=4, fused=fused), device,
                    x, kernel,
                )  # fmt: skip

            yield Case("conv_exp", f"{name}, fused, {list(shape)}", run, False)


def filters():
    """What a SOC layer trains with: a step of power iteration, the filter, its gradient."""
    for channels, side in ((40, 3), (240, 3), (9, 7)):
        for name in ("float32", "bfloat16", "float16"):
            for last in (False, True):

                def run(device, c=channels, k=side, dtype=FLOATS[name], last=last):
                    weight = (normal(c, c, k, k) / c**0.5).to(device)
                    sizes = ((1, c, 1, k), (c, 1, k, 1), (1, c, k, k), (c, 1, 1, 1))
                    kept = [normal(*size, seed=i).to(device) for i, size in enumerate(sizes)]
                    *fresh, norms = raw.skew_power(weight, *kept)
                    scale = torch.full((), 0.7, device=device)
                    filter = raw.skew_filter(weight, scale, norms, weight.to(dtype), last)
                    given = (filter + 1, filter, 0.3, 2.0, weight, scale, norms, *fresh)
                    return [*fresh, *kept, norms, filter, raw.skew_filter_backward(*given)]

                label = f"{channels} channels, side {side}, {name}"
                yield Case("skew_filter", f"{label}{', channels last' * last}", run)


GROUPS = (pairs, series, fused_series, filters)
