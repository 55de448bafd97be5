"""Random projections."""

from cases.case import FLOATS, Case, normal, with_gradients
from robustcore import ops


def projections():
    for kind in ("rademacher", "normal"):
        for name, dtype in FLOATS.items():
            for shape, k in (((3, 40), 7), ((33, 5000), 600)):
                yield Case(
                    "random_projection", f"{kind}, {name}, {list(shape)} to {k}, with gradient",
                    lambda device, kind=kind, dtype=dtype, shape=shape, k=k: with_gradients(
                        lambda x: ops.random_projection(
                            x, k, seed=3, row_offset=2**32 - 20, kind=kind
                        ),
                        device, normal(*shape, dtype=dtype),
                    ),
                )  # fmt: skip


GROUPS = (projections,)
