"""Log-sum-exp, norms, batch normalisation, attention."""

from cases.case import FLOATS, Case, normal, with_gradients
from robustcore import ops
from robustcore.ops.density import linear_fused


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


GROUPS = (densities, fused_layers)
