"""ops.exp_series: polynomials of the exponential on a segment of the imaginary axis."""

import pytest
import torch

from robustcore import ops

METHODS = ["chebyshev", "taylor"]


@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.5, 3.0, 20.0, 70.0])
@pytest.mark.parametrize("method", METHODS)
def test_error_and_size_on_the_segment(radius, method):
    """p(i t) against exp(i t), evaluated in double precision."""
    if method == "taylor" and radius > 10:
        pytest.skip("Taylor cancels there")
    t = 1j * torch.linspace(-radius, radius, 801, dtype=torch.float64)
    for series in (
        ops.exp_series(radius, 1e-7, method=method),
        ops.exp_series(radius, degree=3, method=method),
    ):
        after = before = torch.zeros_like(t)
        for k in range(series.degree, -1, -1):
            step = series.step if k else series.first
            u = series.coefficients[k] + step * t * after + series.carry * before
            after, before = u, after
        assert (after - torch.exp(t)).abs().max() <= series.error + 1e-13
        assert after.abs().max() <= series.lipschitz + 1e-13


def test_chebyshev_needs_fewer_degrees():
    degrees = [ops.exp_series(1.31, 2e-6, method=m).degree for m in METHODS]
    assert degrees[0] == 7
    assert degrees[1] >= 9


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_takes_the_smallest_degree(method):
    for tol in (1e-2, 1e-5, 1e-9):
        series = ops.exp_series(1.7, tol, method=method)
        assert series.error <= tol
        assert ops.exp_series(1.7, degree=series.degree - 1, method=method).error > tol


@pytest.mark.parametrize("method", METHODS)
def test_contractive(method):
    """Scaled so that nothing grows; what that costs is in the error."""
    plain = ops.exp_series(1.3, degree=3, method=method)
    series = ops.exp_series(1.3, degree=3, method=method, contractive=True)
    assert plain.lipschitz > series.lipschitz == 1
    assert series.error > plain.error


BAD = [
    (dict(radius=-1.0), ValueError, "radius: got -1.0"),
    (dict(radius=float("nan")), ValueError, "radius: got nan"),
    (dict(tol=1e-3, degree=2), ValueError, "tol, degree: got"),
    (dict(tol=0.0), ValueError, "tol: got 0.0"),
    (dict(degree=-1), ValueError, "degree: got -1"),
    (dict(degree=2, method="pade"), ValueError, "method: got 'pade'"),
    (dict(radius=699.0, tol=1e-6), ValueError, "tol: no degree up to 500"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        ops.exp_series(**{"radius": 1.0, **change})
