"""Log-sum-exp, norms, batch normalisation, attention."""

import torch

from cases.case import FLOATS, LAST, Case, normal, with_gradients
from robustcore import ops
from robustcore.ops.density import linear_fused

raw = torch.ops.robustcore


def densities():
    for name, dtype in FLOATS.items():
        for shape in ((5, 10), (4, 1000), (2, 5000)):
            yield Case(
                "logsumexp", f"{name}, {list(shape)}, two derivatives",
                lambda device, dtype=dtype, shape=shape: with_gradients(
                    ops.logsumexp, device, normal(*shape, dtype=dtype), orders=2
                ),
            )  # fmt: skip
        for p in (1.0, 2.0, 3.0, float("inf")):
            for shape in ((5, 10), (3, 3000)):
                yield Case(
                    "grad_norm", f"{name}, p = {p:g}, {list(shape)}, two derivatives",
                    lambda device, dtype=dtype, p=p, shape=shape: with_gradients(
                        lambda g: ops.grad_norm(g, p), device, normal(*shape, dtype=dtype), orders=2
                    ),
                )  # fmt: skip
        yield Case(
            "linear_logsumexp", f"{name}, two derivatives",
            lambda device, dtype=dtype: with_gradients(
                ops.linear_logsumexp, device, normal(7, 16, dtype=dtype),
                normal(1100, 16, dtype=dtype) / 4, normal(1100, dtype=dtype), orders=2,
            ), False,
        )  # fmt: skip


def fused_layers():
    # Several tiles of both sides, and few rows: left in parts, right split.
    for name in ("float32", "bfloat16"):
        for rows, classes in ((300, 700), (20, 5000)):

            def run(device, dtype=FLOATS[name], rows=rows, classes=classes):
                x, w = normal(rows, 72, dtype=dtype), normal(classes, 72, dtype=dtype) / 8
                fused = linear_fused.obstacle(x.to(device), w.to(device)) is None
                return with_gradients(
                    lambda *t: ops.linear_logsumexp(*t, fused=fused), device, x, w,
                    normal(classes, dtype=dtype), orders=2,
                )  # fmt: skip

            label = f"{name}, fused, {rows} x {classes}, two derivatives"
            yield Case("linear_logsumexp", label, run, False)


def batch_norms():
    # Small planes, several images a run, the end of one with the next, more units than one launch
    # finishes; channels last, in which the last is of many units too.
    for shape in ((20, 33, 4, 4), (5, 3, 7, 7), (9, 4, 20, 15), (5, 3, 40, 50), (70, 2, 182, 182)):
        for last in (False, True):

            def run(device, shape=shape, last=last):
                layout = LAST if last else torch.contiguous_format
                x, grad, v, more = (
                    normal(*shape, seed=s).to(device, memory_format=layout) for s in range(4)
                )
                weight, mean, inverse = (normal(shape[1], seed=s).to(device) for s in (4, 5, 6))
                first = raw.batch_norm_backward(grad, x, weight, mean, inverse, more)
                arguments = grad, x, weight, mean, inverse, *first[1:]
                return [*first, *raw.batch_norm_double_backward(v, *arguments)]

            label = f"float32, {list(shape)}, {'channels last' if last else 'contiguous'}"
            yield Case("batch_norm, backward and double backward", label, run)


GROUPS = (densities, fused_layers, batch_norms)
