"""The derivatives of noise: the op, its adjoint, which is its own adjoint's, and their fakes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustcore.ops.autograd import arithmetic, fake_nothing, needs_grad, raw, register_loop, sum_to
from robustcore.ops.smoothing.samples import fake_samples
from robustcore.ops.stream import Offsets, Stream

# By distribution: the noise, the same into a given tensor, and the sums of its backward.
NOISE = {
    kind: getattr(raw, f"{kind}_noise").default
    for kind in ("gaussian", "uniform", "laplace", "splitting")
}
NOISE_OUT = {kind: getattr(raw, f"{kind}_noise_out").default for kind in NOISE}
# What the public functions call the level of those that have a derivative.
LEVEL = {"gaussian": "sigma", "uniform": "scale", "laplace": "scale"}
_SUMS = {kind: getattr(raw, f"{kind}_noise_sums").default for kind in LEVEL}


class Call(NamedTuple):
    """The arguments of an affine noise op that are no tensors."""

    kind: str
    num_samples: int
    sigma: float  # where there is no sigma_map
    stream: Stream
    dtype: torch.dtype
    channels_last: bool


def sample(
    x: Tensor,  # [B, *D], as what follows broadcasts to
    sigma_map: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    offsets: Offsets,
    call: Call,
) -> Tensor:
    """The raw op where nothing needs a gradient: it is several times cheaper to call."""
    if needs_grad(x, sigma_map, mean, std):
        return _AffineNoise.apply(x, sigma_map, mean, std, *offsets, call)
    return _raw_noise(x, sigma_map, mean, std, offsets, call)


def _raw_noise(x, sigma_map, mean, std, offsets, call):
    return NOISE[call.kind](
        x, call.num_samples, call.sigma, sigma_map, mean, std, *call.stream, *offsets, call.dtype,
        call.channels_last,
    )  # fmt: skip


class _AffineNoise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, sigma_map, mean, std, image_offset, sample_offset, call):
        return _raw_noise(x, sigma_map, mean, std, (image_offset, sample_offset), call)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        x, sigma_map, mean, std, *offsets = ctx.saved_tensors
        need_x, need_sigma, need_mean, need_std = ctx.needs_input_grad[:4]
        # d out = (dx + z dsigma - dmean - out dstd) / std, and every term needs only the sums over
        # samples of grad and of grad * z.
        sums = _Sums(ctx.call.kind, ctx.call.stream, need_sigma or need_std)
        total, noise_total = _NoiseSums.apply(grad, *offsets, sums)
        if std is not None:
            total, noise_total = total / std, noise_total / std if sums.with_noise else None
        grads: list[Tensor | None] = [None] * 7
        if need_x:
            grads[0] = total.to(x.dtype)
        if need_sigma:
            grads[1] = sum_to(noise_total, sigma_map)
        if need_mean:
            grads[2] = -sum_to(total, mean)
        if need_std:
            shift = x.to(total.dtype) if mean is None else x.to(total.dtype) - mean
            sigma = ctx.call.sigma if sigma_map is None else sigma_map
            grads[3] = -sum_to((shift * total + sigma * noise_total) / std, std)
        return tuple(grads)


class _Sums(NamedTuple):
    """The arguments of the adjoint that are no tensors."""

    kind: str
    stream: Stream
    with_noise: bool


class _NoiseSums(torch.autograd.Function):
    """The adjoint of the noise op: sums over samples of grad and of grad * z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, image_offset, sample_offset, sums):
        return _SUMS[sums.kind](grad, *sums.stream, image_offset, sample_offset, sums.with_noise)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, *offsets, ctx.sums = inputs
        ctx.num_samples, ctx.dtype = grad.shape[1], grad.dtype
        ctx.save_for_backward(*offsets)

    @staticmethod
    def backward(ctx, total, noise_total):
        kind, stream, with_noise = ctx.sums
        if with_noise:
            # The adjoint of the adjoint is the noise op itself.
            call = Call(kind, ctx.num_samples, 0.0, stream, ctx.dtype, False)
            grad = sample(total, noise_total, None, None, ctx.saved_tensors, call)
        else:
            grad = total.to(ctx.dtype).unsqueeze(1)
            grad = grad.expand(-1, ctx.num_samples, *[-1] * (total.dim() - 1))
        return grad, None, None, None


def _fake_noise(x, num_samples, *arguments):
    return fake_samples(x, num_samples, *arguments[-2:])


def _fake_sums(grad, *arguments):
    dtype = arithmetic(grad)
    sizes = [grad.shape[0], *grad.shape[2:]]
    return (
        grad.new_empty(sizes, dtype=dtype),
        grad.new_empty(sizes if arguments[-1] else [0], dtype=dtype),
    )


for _op in NOISE.values():
    torch.library.register_fake(_op.name(), _fake_noise)
    register_loop(_op)  # noise depends on the index inside a call
for _op in NOISE_OUT.values():
    torch.library.register_fake(_op.name(), fake_nothing)
for _op in _SUMS.values():
    torch.library.register_fake(_op.name(), _fake_sums)
    register_loop(_op)
