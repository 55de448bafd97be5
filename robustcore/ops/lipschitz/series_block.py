"""A whole series in one kernel of a GPU, the map of an image in its shared memory for all degrees.

The kernel multiplies on the tensor cores: in bfloat16, or for float32 in pairs of TF32 numbers,
whose results differ from float64's by no more than float32 convolutions' do. They are the same in
every run on one device, whatever the batch; not to the bit those of a CPU or of another GPU, nor
those of the convolutions that run elsewhere. Certificates do not build on it: a bound of SOC holds
in exact arithmetic, and float32 is what a layer rounds to either way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore import _C
from robustcore.ops.autograd import constant_when_compiled, fake_nothing, raw
from robustcore.ops.lipschitz.series import Series

_block = raw.conv_exp_block.default


class Case(NamedTuple):
    """What decides whether the kernel or torch's convolutions run."""

    capability: tuple[int, int]
    dtype: torch.dtype
    channels: int
    height: int
    width: int


# Where a measurement found the kernel faster than cuDNN. A table, because the ranks of a job must
# agree and timing at run time would have each decide for itself. Empty: not yet measured.
FASTER: frozenset[Case] = frozenset()


def chosen(x: Tensor, filter: Tensor, series: Series) -> bool:
    """Whether the kernel runs on such images; ValueError where it is wanted and cannot."""
    if series.fused:
        if reason := cannot(x, filter, series):
            raise ValueError(f"fused: got True, but {reason}")
        return True
    if series.fused is not None or not FASTER or x.device.type != "cuda":
        return False
    case = Case(torch.cuda.get_device_capability(x.device), x.dtype, *x.shape[1:])
    return case in FASTER and cannot(x, filter, series) is None


def cannot(x: Tensor, filter: Tensor, series: Series) -> str | None:
    """Why the kernel does not run on such images, if so."""
    if x.device.type != "cuda":
        return f"x is on {x.device}, want a GPU"
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"x is {x.dtype}, want float32 or bfloat16"
    if tuple(filter.shape[2:]) != (3, 3):
        return f"the filter is {list(filter.shape[2:])}, want 3 x 3"
    _, c, h, w = x.shape
    if c not in (32, 64, 128):
        return f"there are {c} channels, want 32, 64 or 128"
    if not 1 <= series.degree <= _C.MAX_SERIES_BLOCK_DEGREE:
        return f"the degree is {series.degree}, want 1 to {_C.MAX_SERIES_BLOCK_DEGREE}"
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the GPU's compute capability is below 8.0"
    return _obstacle(c, h, w, series.degree, x.element_size(), x.device.index)


@constant_when_compiled
def _obstacle(
    channels: int, height: int, width: int, degree: int, size: int, device: int
) -> str | None:
    if not _C.build_info()["cuda"]:
        return "this build has no CUDA kernels"
    if _C.series_block_fits(channels, height, width, degree, size, device):
        return None
    maps = f"{channels} x {height} x {width} at degree {degree}"
    return f"maps of {maps} exceed the GPU's shared memory"


def prepare(filter: Tensor) -> Tensor:
    """The filter as the kernel reads it."""
    return aligned(filter)


def evaluate(
    x: Tensor, filter: Tensor, series: Series, y: Tensor | None = None, kept: Tensor | None = None
) -> Tensor:
    """p(L) x, in y if given; kept receives u[1], ..., u[degree - 1], one behind the other."""
    x, c, d = aligned(x), series.coefficients, series.degree
    y = torch.empty_like(x) if y is None else y
    alpha = [series.step] * (d - 1) + [series.first]
    alpha[0] *= c[d]  # the map begins as x, not as u[degree]
    beta = list(c[d - 1 :: -1])
    if d > 1:
        beta[1] += series.carry * c[d]
    _block(x, filter, alpha, beta, _carried(series, d), [], y, kept, True)
    return y


def adjoint(
    grad: Tensor, filter: Tensor, series: Series, side: Tensor, need_x: bool
) -> Tensor | None:
    """The gradient of x; side receives m[1], ..., m[degree - 1] of the adjoint recurrence."""
    d = series.degree
    steps = d if need_x else d - 1  # the last map is wanted for the gradient of x alone
    if steps == 0:
        return None
    beta = [0.0, series.carry, *[0.0] * d][:steps]
    alpha = [-series.first, *[-series.step] * d][:steps]
    gamma = _carried(series, steps)
    if not need_x:
        before = (d - 2) * grad.shape[0]  # the images of all maps but the last
        _block(grad, filter, alpha, beta, gamma, [], side[before:], side[:before], False)
        return None
    total = torch.empty_like(grad)
    delta = list(series.coefficients)
    _block(grad, filter, alpha, beta, gamma, delta, total, side if d > 1 else None, False)
    return total


def _carried(series: Series, steps: int) -> list[float]:
    """Of the map two steps before: x stands in for it at step 1, nothing at step 0."""
    return [0.0, 0.0, *[series.carry] * steps][:steps]


def aligned(t: Tensor) -> Tensor:
    """Channels last, from an address that 16 divides."""
    t = t.contiguous(memory_format=torch.channels_last)
    return t if t.storage_offset() * t.element_size() % 16 == 0 else t.clone()


torch.library.register_fake("robustcore::conv_exp_block", fake_nothing)
