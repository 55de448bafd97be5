"""Noise on a lattice: integers of an exact distribution, so that certificates are exact too."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

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
            noise is 1/m of one of the image.
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
    arithmetic of 192 bits; the rest of the distribution, beyond 11 standard deviations (63 scales
    of a Laplace), is less than 5e-28 and counted in ``total_variation``.
    """
    require_choice("kind", kind, KINDS)
    sigma = check_number("sigma", sigma)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: got {sigma}, want a finite number above 0")
    return _table(kind, sigma, *lattice_grid(grid))


@lru_cache(maxsize=64)
def _table(kind: str, sigma: float, q: int, m: int) -> LatticeTable:
    from mpmath import mp, mpf  # torch's own dependency, by way of sympy

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
    with mp.workprec(192):
        width = mpf(sigma) * q * m  # exact, as sigma itself is a binary fraction
        probability = {
            "gaussian": lambda v: mp.erf(v / (width * mp.sqrt(2))),
            "uniform": lambda v: min(v / width, mpf(1)),
            "laplace": lambda v: -mp.expm1(-v / width),
        }[kind]
        values = [int(mp.nint(mp.ldexp(probability(k + mpf(0.5)), _BITS))) for k in range(count)]
    words = [[v >> 64, v >> 32 & 0xFFFFFFFF, v & 0xFFFFFFFF] for v in values]
    thresholds = torch.tensor(words, dtype=torch.int64)
    thresholds = torch.where(thresholds >= 2**31, thresholds - 2**32, thresholds).to(torch.int32)
    beyond = 0.0 if kind == "uniform" else 5e-28
    return LatticeTable(thresholds, spread, (count + 1) * 2.0 ** (1 - _BITS) + beyond)


def _fake_noise(x, num_samples, *arguments):
    return fake_samples(x, num_samples, *arguments[-2:])


for _op in _NOISE.values():
    torch.library.register_fake(_op.name(), _fake_noise)
    register_loop(_op)
for _op in _NOISE_OUT.values():
    torch.library.register_fake(_op.name(), fake_nothing)
