"""ops.random_projection against matrices made in blocks, a stored matrix, and traker's projector.

A block is 20 000 rows, so that the matrix in the making is 40 MB at k = 512.
"""

import pytest
import torch

from robustcore import ops

CASES = {  # samples, parameters, k
    "32 x 1e6 to 512": (32, 1_000_000, 512),
    "32 x 1e5 to 2048": (32, 100_000, 2048),
    "1 x 1e6 to 512": (1, 1_000_000, 512),
    "16 x 5000 to 64": (16, 5000, 64),
}
BLOCK = 20_000


def in_blocks(x, k, block_of):
    y = x.new_zeros(len(x), k)
    for first in range(0, x.shape[1], BLOCK):
        part = x[:, first : first + BLOCK]
        y += part @ block_of(part.shape[1], k, x.device)
    return y


def randn(rows, k, device):
    return torch.randn(rows, k, device=device)


def randint(rows, k, device):
    signs = torch.randint(0, 2, (rows, k), dtype=torch.int8, device=device)
    return signs.float().mul_(2).sub_(1)  # int8: twice as fast as int64, which is the default


def traker(x, k):
    projectors = pytest.importorskip("trak.projectors", reason="traker is not installed")
    made = projectors.BasicProjector(
        x.shape[1], k, 0, projectors.ProjectionType.rademacher, x.device
    )
    return lambda: made.project(x, 0)


def implementation(impl, x, k):
    if impl == "a stored matrix":
        matrix = randn(x.shape[1], k, x.device)
        return lambda: x @ matrix
    if impl == "traker":
        return traker(x, k)
    if impl.startswith("robustcore"):
        kind = "normal" if impl.endswith("normal") else "rademacher"
        return lambda: ops.random_projection(x, k, seed=1, kind=kind)
    return lambda: in_blocks(x, k, randn if impl == "randn in blocks" else randint)


IMPLS = [
    "robustcore", "robustcore, normal", "a stored matrix", "randn in blocks", "randint in blocks",
    "traker",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES)
def test_projection(case, impl, measure, device):
    samples, rows, k = CASES[case]
    x = torch.randn(samples, rows, device=device)
    fn = implementation(impl, x, k)
    norms = fn().square().sum(1) / k / x.square().sum(1)
    assert ((norms - 1).abs() < 6 * (2 / k) ** 0.5).all()
    ours = implementation("robustcore", x, k)
    against = None if impl == "robustcore" else ("robustcore", ours)
    slow = samples * rows * k > 10**9
    measure(
        f"random projection: {case}", impl, fn, against=against, warmups=1 if slow else 3,
        rounds=3 if slow else None,
    )  # fmt: skip


@pytest.mark.parametrize("impl", ["robustcore", "a stored matrix"])
def test_transposed(impl, measure, device):
    samples, rows, k = CASES["32 x 1e6 to 512"]
    y = torch.randn(samples, k, device=device)

    def ours():
        return ops.random_projection_transposed(y, rows, seed=1)

    if impl == "robustcore":
        return measure(f"its transpose: {samples} x {k} to 1e6", impl, ours, rounds=3)
    matrix = torch.randn(rows, k, device=device)
    return measure(
        f"its transpose: {samples} x {k} to 1e6", impl, lambda: y @ matrix.T,
        against=("robustcore", ours), rounds=3,
    )  # fmt: skip
