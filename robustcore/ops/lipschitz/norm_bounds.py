"""Upper bounds of the norm of a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic
from robustcore.ops.checks import check_filter, check_integer

# Of the double precision eigenvalues, relative, with room to spare: bounds are multiplied by it.
_ROUNDING = 1 + 1e-10
# Bytes of symbols held at a time.
_SYMBOL_BYTES = 1 << 26


def conv_norm_bound(kernel: Tensor, grid: int = 32) -> Tensor:
    """Upper bound of the norm of a convolution, zero or circular padding, images of any size.

    Both are compressions, or samples, of the convolution on the infinite grid, whose norm is the
    largest norm of the symbol (a matrix a frequency). That of ``grid`` x ``grid`` frequencies times
    ``1 / cos(pi (k - 1) / (2 grid))`` per dimension bounds it. The largest eigenvalue is computed
    where power iteration expects it; elsewhere a Cholesky factorisation proves that it is not
    exceeded. In float64; the result carries a margin of 1e-6 for both.

    Args:
        kernel: ``[..., O, I, kh, kw]``, floating; leading dimensions are a batch of kernels.
        grid: frequencies a dimension, above ``k - 1``; 32 costs 1 % with k = 3, 16 costs 4 %.

    Returns:
        float64 ``[...]``, on the kernel's device. Not differentiable (see
        :func:`conv_spectral_bound`). A stride or a dilation does not raise the norm's bound.
        Raises TypeError or ValueError naming the argument.
    Source: Ehlich and Zeller, 1964; Sedghi, Gupta, Long, 2019, for the symbol.
    """
    check_filter("kernel", kernel)
    if kernel.is_meta or 0 in kernel.shape[-4:]:
        got = f"shape {list(kernel.shape)} on {kernel.device}"
        raise ValueError(f"kernel: got {got}, want filters that are not empty, with values")
    grid = check_integer("grid", grid, max(kernel.shape[-2:]), 1 << 12)
    return symbol_norm(kernel.reshape(-1, *kernel.shape[-4:]), grid).reshape(kernel.shape[:-4])


@torch.no_grad()
def symbol_norm(filters: Tensor, grid: int) -> Tensor:
    """:func:`conv_norm_bound` of filters ``[B, O, I, *k]`` of any number of dimensions."""
    with torch.autocast(filters.device.type, enabled=False):
        wide = filters.detach().to(torch.float64)
        sides = wide.shape[3:]
        factor = math.prod(1 / math.cos(math.pi * (k - 1) / (2 * grid)) for k in sides)
        values = [_largest_symbol(one, grid) * factor * _ROUNDING for one in wide]
        return torch.stack(values) if values else wide.new_empty(0)


def _largest_symbol(filter: Tensor, grid: int) -> Tensor:
    """Largest spectral norm of the symbol on the grid, exceeded by at most 1e-6, relative."""
    rows, columns, *sides = filter.shape
    if rows < columns:
        filter = filter.transpose(0, 1)
        rows, columns = columns, rows
    flat = filter.reshape(rows * columns, -1)
    scale = flat.abs().sum(1).max()
    if not 0 < float(scale) < math.inf:
        return scale  # zero, or nothing that can be bounded
    adjoint = filter.transpose(0, 1).flip(tuple(range(2, filter.dim())))
    is_skew = rows == columns and torch.equal(filter, -adjoint)
    phases = _phases(sides, grid, filter.device)
    per_chunk = max(1, _SYMBOL_BYTES // (16 * rows * columns))
    # Skew kernels have symbols i H with Hermitian H, and H and -H both count: the other half of the
    # frequencies has the conjugates. Of others the Gram matrix is Hermitian, and one sign counts.
    best = torch.zeros((), dtype=torch.float64, device=filter.device)
    for chunk in phases.split(per_chunk, dim=1):
        symbols = (flat.to(torch.complex128) @ chunk).t().reshape(-1, rows, columns)
        if is_skew:
            hermitian = -1j * symbols
            hermitian = torch.cat([hermitian, -hermitian])
        else:
            hermitian = symbols.mH @ symbols
        best = _raised(best, hermitian)
    return best if is_skew else best.sqrt()


def _raised(best: Tensor, hermitian: Tensor) -> Tensor:
    """The larger of ``best`` and the largest eigenvalue of the batch, up to a relative 1e-6."""
    count, n = hermitian.shape[:2]
    vectors = torch.ones(count, n, 1, dtype=hermitian.dtype, device=hermitian.device)
    vectors += torch.linspace(0, 1, n, device=hermitian.device).to(vectors.dtype)[:, None]
    for _ in range(6):
        vectors = hermitian @ (hermitian @ vectors)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(1e-300)
    guess = torch.linalg.vector_norm(hermitian @ vectors, dim=(1, 2))
    identity = torch.eye(n, dtype=hermitian.dtype, device=hermitian.device)
    left = guess.argsort(descending=True)
    # Exactly where the largest is expected, then a proof for the rest; where the proof fails, on.
    while len(left):
        chosen, left = left[:2], left[2:]
        best = torch.maximum(best, torch.linalg.eigvalsh(hermitian[chosen])[:, -1].max())
        _, info = torch.linalg.cholesky_ex(best * (1 + 1e-7) * identity - hermitian[left])
        left = left[info != 0]
    return best * (1 + 1e-7)


def _phases(sides: Sequence[int], grid: int, device: torch.device) -> Tensor:
    """``[taps, F]`` complex: exp(-i (p y + q x ...)) of the taps, over half of the frequencies."""
    # Along a side of one tap the symbol is constant.
    grids = [1 if k == 1 else grid for k in sides]
    waves = torch.cartesian_prod(*(torch.arange(n) for n in grids)).reshape(-1, len(grids))
    # A real filter has conjugate symbols at a frequency and at its negative: one of each such pair.
    sizes = torch.tensor(grids)
    places = torch.tensor([math.prod(grids[i + 1 :]) for i in range(len(grids))])
    half = (waves * places).sum(1) <= (-waves % sizes * places).sum(1)
    waves = 2 * math.pi * waves[half].double() / sizes
    taps = [torch.arange(k, dtype=torch.float64) - (k - 1) / 2 for k in sides]
    angle = torch.cartesian_prod(*taps).reshape(-1, len(sides)) @ waves.T
    return torch.polar(torch.ones_like(angle), -angle).to(device)


def conv_spectral_bound(kernel: Tensor, stride: int = 1) -> Tensor:
    """Differentiable upper bound of the norm of any convolution, from its four reshapes.

    ``sqrt(kh kw)`` times the smallest spectral norm of the reshapes (out h) x (in w), (out w) x
    (in h), out x (in h w), in x (out h w). With a stride s the third counts
    ``ceil(kh / s) ceil(kw / s)`` in place of ``kh kw``: that many patches share a pixel.

    Args:
        kernel: ``[O, I, kh, kw]``, floating.
        stride: of both dimensions.

    Returns:
        A number of kernel's dtype (float32 for lower ones), rounded up; differentiable to any order
        where the largest singular value is simple, with the outer product of its vectors as
        gradient. Raises TypeError or ValueError naming the argument.
    Source: Singla and Feizi, "Fantastic four", 2021; CONV-SV, 2021.
    """
    check_filter("kernel", kernel)
    if kernel.dim() != 4 or 0 in kernel.shape:
        raise ValueError(f"kernel: got shape {list(kernel.shape)}, want [O, I, kh, kw]")
    stride = check_integer("stride", stride, 1)
    o, i, h, w = kernel.shape
    wide = kernel.to(arithmetic(kernel))
    reshapes = (
        (wide.permute(0, 2, 1, 3).reshape(o * h, i * w), h * w),
        (wide.permute(0, 3, 1, 2).reshape(o * w, i * h), h * w),
        (wide.reshape(o, -1), -(-h // stride) * -(-w // stride)),
        (wide.transpose(0, 1).reshape(i, -1), h * w),
    )
    norms = [_above(matrix_norm("kernel", m), m) * math.sqrt(count) for m, count in reshapes]
    return torch.stack(norms).min()


def _above(norm: Tensor, matrix: Tensor) -> Tensor:
    """A computed norm with room for the rounding of its decomposition and of a product."""
    return norm * (1 + 8 * math.sqrt(max(matrix.shape)) * torch.finfo(norm.dtype).eps)


def matrix_norm(name: str, matrix: Tensor) -> Tensor:
    """The spectral norm; ValueError where the CPU's decomposition meets a NaN."""
    try:
        return torch.linalg.matrix_norm(matrix, ord=2)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: is not finite, want finite values") from None
