"""Batch normalisation, its backward and its double backward: ours within fast_double_backward, and
torch's own."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import batch_norm

from robustcore import density

SMALL = [(32, 64, 16, 16), (32, 128, 8, 8), (32, 256, 4, 4)]
SHAPES = [(32, 32, 32, 32), (32, 64, 16, 16), (32, 256, 4, 4), (8, 3, 224, 224)]


def three_derivatives(impl, x, weight, bias, grad, v):
    """y, d x along grad, and of that along v the gradients of x and weight."""
    with density.fast_double_backward() if impl == "robustcore" else nullcontext():
        y = batch_norm(x, None, None, weight, bias, training=True)
    (d_x,) = torch.autograd.grad(y, x, grad, create_graph=True)
    return y, d_x, *torch.autograd.grad(d_x, (x, weight), v)


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm(shape, last, impl, measure, device):
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    x, grad, v = (torch.randn(shape, device=device).to(memory_format=layout) for _ in range(3))
    weight, bias = (torch.rand(shape[1], device=device).requires_grad_() for _ in range(2))
    tensors = x.requires_grad_(), weight, bias, grad.requires_grad_(), v
    if impl != "robustcore":
        pairs = (three_derivatives(i, *tensors) for i in (impl, "robustcore"))
        for got, want in zip(*pairs, strict=True):
            torch.testing.assert_close(
                got, want, rtol=1e-3, atol=1e-4 * float(want.detach().abs().max())
            )
    name = f"batch_norm to the second derivative: {shape}, {'channels last' if last else 'NCHW'}"
    measure(name, impl, lambda: three_derivatives(impl, *tensors))


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_backward_of_small_maps(shape, impl, measure):
    """The backward pass alone, by the two ops."""
    torch.manual_seed(0)
    x, grad = torch.randn(shape), torch.randn(shape)
    weight, bias = torch.rand(shape[1]), torch.rand(shape[1])
    _, mean, inverse = torch.ops.robustcore.batch_norm(x, weight, bias, None, None, 0.1, 1e-5)

    def ours():
        return torch.ops.robustcore.batch_norm_backward(grad, x, weight, mean, inverse, None)

    def torchs():
        return torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, 1e-5, [True] * 3
        )

    run, other = (ours, torchs) if impl == "robustcore" else (torchs, ours)
    for got, want in zip(run(), other(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    against = ("eager", torchs) if impl == "robustcore" else None
    measure(f"batch_norm backward: {shape}", impl, run, launches=20, rounds=101, against=against)
