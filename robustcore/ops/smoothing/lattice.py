"""Noise on a lattice: integers of an exact distribution, so that certificates are exact too."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustcore.common.checks import require_choice
from robustcore.ops.autograd import constant_when_compiled, fake_nothing, raw, register_loop
from robustcore.ops.checks import (
    check_images,
    check_integer,
    check_number,
    per_channel,
)
from robustcore.ops.smoothing.samples import fake_samples
from robustcore.ops.stream import stream_arguments

KINDS = ("gaussian", "uniform", "laplace")
_NOISE = {kind: getattr(raw, f"lattice_{kind}_noise").default for kind in KINDS}
_NOISE_OUT = {kind: getattr(raw, f"lattice_{kind}_noise_out").default for kind in KINDS}

_BITS = 95  # of a threshold: 31 of an element's first word, 64 of two more
_WORK = 256  # bits that thresholds are computed with
_MAX_THRESHOLDS = 1 << 20


def lattice_noise(
    x: Tensor,
    num_samples: int,
    sigma: float,
    *,
    seed: int,
    grid: int | tuple[int, int] = 255,
    kind: str = "gaussian",
    image_offset: int | Tensor = 0,
    sample_offset: int | Tensor = 0,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Noisy, normalised copies of images on a lattice: ``((X m + N) / (q m) - mean) / std``.

    ``X = round(q x)`` is the image in steps of 1/q, and N an integer: ``round(q m sigma Z)``, with
    the exact distribution of that (up to ``lattice_table(...).total_variation``), where Z is
    standard normal, uniform on [-1, 1] or Laplace of scale 1. The sample ``X m + N`` is an integer
    that float32 holds exactly, and the output a function of it alone. N depends on (seed, image
    index, sample index, element index) alone: the same bits on CPU and GPU, whatever the batch, the
    layout, the dtype and the number of threads or devices. The streams are documented in
    ``csrc/smoothing/lattice.h``.

    Args:
        x: images ``[B, *D]``, floating, any strides, pixels in [0, 1], multiples of 1/q (they are
            rounded to them).
        num_samples: S, copies of each image.
        sigma: standard deviation (gaussian), half width (uniform) or scale (laplace) of the noise,
            in the units of x.
        grid: q, steps of the image in [0, 1], 255 for 8-bit images; or (q, m), where a step of the
            noise is 1/m of one of the image. A standard deviation of thousands of steps, as on
            16-bit grids, takes several times as long: float32 no longer tells the integers apart.
        kind: ``"gaussian"``, ``"uniform"`` or ``"laplace"``.

    The other arguments and the returns are those of :func:`gaussian_noise`. The result is piecewise
    constant in x: its gradient is zero wherever it exists, and none is recorded.

    Raises TypeError or ValueError naming the argument.

    Source: Voracek and Hein, "Sound randomized smoothing in floating-point arithmetics", ICLR 2023.
    """
    dtype, channels_last = check_images(x, dtype, memory_format, out)
    num_samples = check_integer("num_samples", num_samples, below=1 << 40)
    q, m = lattice_grid(grid)
    table = _table_on(kind, sigma, q, m, x.device)
    stream, offsets = stream_arguments(seed, image_offset, sample_offset, x)
    mean, std = per_channel("mean", mean, x), per_channel("std", std, x)
    arguments = (
        x.detach(), num_samples, table.thresholds, table.spread, float(q), float(m),
        None if mean is None else mean.detach(), None if std is None else std.detach(),
        *stream, *offsets,
    )  # fmt: skip
    if out is None:
        return _NOISE[kind](*arguments, dtype, channels_last)
    _NOISE_OUT[kind](*arguments, channels_last, out)
    return out


def lattice_grid(grid: Any) -> tuple[int, int]:
    """(q, m): steps of an image in [0, 1], and steps of the noise in one of them."""
    two = grid if isinstance(grid, (tuple, list)) else (grid, 1)
    if len(two) != 2:
        raise ValueError(f"grid: got {grid!r}, want an int or two")
    q, m = (check_integer("grid", n, 1, 1 << 24) for n in two)
    if q * m >= 2**24:
        raise ValueError(f"grid: got {grid!r}, want a product below 2**24")
    return q, m


class LatticeTable(NamedTuple):
    """The distribution of ``|round(q m sigma Z)|``."""

    thresholds: Tensor  # [count, 3] int32: P(|N| <= k) in units of 2^-95, the high word first
    spread: float  # q m sigma
    total_variation: float  # at most, of one element's noise, from the exact distribution


@constant_when_compiled
def _table_on(kind: str, sigma: float, q: int, m: int, device: torch.device) -> LatticeTable:
    table = lattice_table(kind, sigma, (q, m))
    if device.type == "cpu":
        return table
    return table._replace(thresholds=_copied(table.thresholds, device))


@lru_cache(maxsize=64)
def _copied(thresholds: Tensor, device: torch.device) -> Tensor:
    return thresholds.to(device)


def lattice_table(kind: str, sigma: float, grid: int | tuple[int, int]) -> LatticeTable:
    """The table that :func:`lattice_noise` draws from, made once and kept.

    Raises TypeError or ValueError naming the argument. Each probability is rounded to 2^-95 from an
    arithmetic of 256 bits; the rest of the distribution, beyond 11 standard deviations (63 scales
    of a Laplace), is less than 5e-28 and counted in ``total_variation``.
    """
    require_choice("kind", kind, KINDS)
    sigma = check_number("sigma", sigma)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: got {sigma}, want a finite number above 0")
    return _table(kind, sigma, *lattice_grid(grid))


@lru_cache(maxsize=64)
def _table(kind: str, sigma: float, q: int, m: int) -> LatticeTable:
    from mpmath import mp, mpf

    spread = sigma * q * m
    count = {
        "gaussian": math.ceil(11 * spread),
        "uniform": max(math.ceil(spread - 0.5), 1),
        "laplace": math.ceil(63 * spread),
    }[kind]
    if count > _MAX_THRESHOLDS:
        raise ValueError(
            f"sigma: got {sigma}, which on the grid {(q, m)} is noise of up to {count} steps, want "
            f"at most 2**20: take a coarser grid"
        )
    with mp.workprec(_WORK + 64):
        width = mpf(sigma) * q * m  # exact, as sigma itself is a binary fraction
        values = {"gaussian": _normal, "uniform": _uniform, "laplace": _laplace}[kind](width, count)
        rest = _WORK - _BITS
        half = 1 << (rest - 1)
        words = b"".join(((v + half) >> rest).to_bytes(12, "big") for v in values)
    thresholds = torch.from_numpy(np.frombuffer(words, ">i4").astype(np.int32).reshape(-1, 3))
    beyond = 0.0 if kind == "uniform" else 5e-28
    return LatticeTable(thresholds, spread, (count + 1) * 2.0 ** (1 - _BITS) + beyond)


# P(|N| <= k) of a width in steps, k from 0, in units of 2^-_WORK: integers, so that a million of
# them take a second. mpmath is torch's own dependency, by way of sympy.


def _normal(width: Any, count: int) -> Iterator[int]:
    """Sums of integrals of the density over cells, from its Taylor series in the middle of each.

    phi(x + h) is phi(x) r, r the next time r exp(-h^2). The series' terms fall by (11 h)^2 / 8 and
    more, so it wants a small h: few cells are taken from the error function.
    """
    from mpmath import mp, mpf

    if count < 512:
        for k in range(count):
            yield _fixed(mp.erf((k + mpf(0.5)) / (width * mp.sqrt(2))))
        return
    h = 1 / width
    phi, ratio, fall = (
        _fixed(v) for v in (h / mp.sqrt(2 * mp.pi), mp.exp(-h * h / 2), mp.exp(-h * h))
    )
    square = _fixed(h * h)
    series = [_fixed(c) for c in _cell_series(h)]
    total = 0
    for k in range(count):
        y = square * k * k  # x^2
        cell = 0
        for c in series:
            cell = (cell * y >> _WORK) + c
        cell = cell * phi >> _WORK
        total += cell if k == 0 else 2 * cell
        yield total
        phi, ratio = phi * ratio >> _WORK, ratio * fall >> _WORK


def _cell_series(h: Any) -> list[Any]:
    """Of the mean of phi over [x - h/2, x + h/2] by phi(x): coefficients of x^16, x^14, ..., 1."""
    from mpmath import mp

    order = 8
    return [
        sum(
            (h / 2) ** (2 * (i + m))
            * (-1) ** m
            / (mp.factorial(m) * mp.factorial(2 * i) * (2 * (i + m) + 1) * 2**m)
            for m in range(order + 1 - i)
        )
        for i in reversed(range(order + 1))
    ]


def _uniform(width: Any, count: int) -> Iterator[int]:
    one = 1 << _WORK
    step = _fixed(1 / (2 * width))
    return (min((2 * k + 1) * step, one) for k in range(count))


def _laplace(width: Any, count: int) -> Iterator[int]:
    from mpmath import mp

    one, beyond = 1 << _WORK, _fixed(mp.exp(-1 / (2 * width)))
    fall = _fixed(mp.exp(-1 / width))
    for _ in range(count):
        yield one - beyond
        beyond = beyond * fall >> _WORK


def _fixed(value: Any) -> int:
    from mpmath import mp

    return int(mp.nint(mp.ldexp(value, _WORK)))


def _fake_noise(x, num_samples, *arguments):
    return fake_samples(x, num_samples, *arguments[-2:])


for _op in _NOISE.values():
    torch.library.register_fake(_op.name(), _fake_noise)
    register_loop(_op)
for _op in _NOISE_OUT.values():
    torch.library.register_fake(_op.name(), fake_nothing)
