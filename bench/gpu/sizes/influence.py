"""Random projections: products with a matrix that is made on the way."""

from robustcore import ops
from sizes.size import BF16, F32


def projections(at):
    for rows in (32, 256):
        for name, dtype in (("float32", F32), ("bfloat16", BF16)):
            few, wide, k = at(rows, 2**20, 4096)
            g = at.randn(few, wide, dtype=dtype)
            for kind in ("rademacher", "normal"):
                fn = lambda g=g, k=k, kind=kind: ops.random_projection(g, k, seed=1, kind=kind)  # noqa: E731
                label = f"{rows} x {2**20} to 4096, {kind}, {name}"
                operations = 2 * few * wide * k
                yield "random_projection", label, operations, fn, "matrix product, float32"


GROUPS = (projections,)
