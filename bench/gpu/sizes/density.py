"""Log-sum-exp, norms, batch normalisation, attention."""

import torch

from robustcore.ops.density import linear_fused
from robustcore.ops.density.linear_chunks import backward_op, forward_op
from sizes.size import BF16, F32, raw, size_of


def densities(at):
    for rows, classes in ((4096, 1000), (300_000, 1000), (64, 50_000)):
        for name, dtype in (("float32", F32), ("bfloat16", BF16)):
            z = at.randn(*at(rows, classes), dtype=dtype)
            g, v, lse = at.randn(len(z)), torch.randn_like(z), raw.logsumexp(z)
            label, size = f"{rows} x {classes}, {name}", size_of(z)
            yield "logsumexp", label, size, lambda z=z: raw.logsumexp(z), "copy"
            fn = lambda g=g, z=z, lse=lse: raw.logsumexp_backward(g, z, lse)  # noqa: E731
            yield "logsumexp, backward", label, 2 * size, fn, "copy"
            fn = lambda v=v, g=g, z=z, lse=lse: raw.logsumexp_double_backward(v, g, z, lse)  # noqa: E731
            yield "logsumexp, double backward", label, 3 * size, fn, "copy"
    for rows, width in ((128, 3072), (100_000, 3072), (64, 150_528)):
        g = at.randn(*at(rows, width))
        norm, label, size = raw.grad_norm(g, 2.0), f"{rows} x {width}, float32", size_of(g)
        yield "grad_norm", label, size, lambda g=g: raw.grad_norm(g, 2.0), "copy"
        fn = lambda g=g, n=norm: raw.grad_norm_backward(n, g, n, 2.0)  # noqa: E731
        yield "grad_norm, backward", label, 2 * size, fn, "copy"


def fused_layers(at):
    for rows, width, classes in ((4096, 512, 50_000), (4096, 4096, 32_000), (64, 4096, 32_000)):
        for name, dtype in (("float32", F32), ("bfloat16", BF16)):
            n, d, k = at(rows, width, classes)
            x, w = at.randn(n, d, dtype=dtype), at.randn(k, d, dtype=dtype) / d**0.5
            fused = linear_fused.obstacle(x, w) is None
            label, product = f"{rows} x {width} to {classes}, {name}", 2 * n * d * k
            ceiling = f"matrix product, {name}"
            kernel = "linear_logsumexp, fused"
            fn = lambda x=x, w=w, f=fused: forward_op(x, w, None, None, False, f)  # noqa: E731
            yield kernel, label, product, fn, ceiling
            fn = lambda x=x, w=w, f=fused: forward_op(x, w, None, None, True, f)  # noqa: E731
            yield f"{kernel}, with mean", label, 2 * product, fn, ceiling
            lse, _, mean = forward_op(x, w, None, None, True, fused)
            fn = lambda x=x, w=w, z=lse, m=mean, f=fused: backward_op(  # noqa: E731
                z, None, x, w, None, None, z, m, False, True, False, f
            )
            yield f"{kernel}, weight's gradient", label, 2 * product, fn, ceiling


def batch_norms(at):
    for shape in ((32, 64, 32, 32), (64, 512, 7, 7), (256, 64, 112, 112)):
        for last in (False, True):
            x, grad, v = (at.randn(*at(*shape), last=last) for _ in range(3))
            numbers = torch.ones(3, x.shape[1], device=at.device).unbind()
            label, size = f"{list(shape)}, {'channels last' if last else 'contiguous'}", size_of(x)
            fn = lambda g=grad, x=x, n=numbers: raw.batch_norm_backward(g, x, *n, None)  # noqa: E731
            yield "batch_norm, backward", label, 3 * size, fn, "copy"
            sums = fn()[1:]
            fn = lambda v=v, g=grad, x=x, n=numbers, s=sums: (  # noqa: E731
                raw.batch_norm_double_backward(v, g, x, *n, *s)
            )
            yield "batch_norm, double backward", label, 5 * size, fn, "copy"


GROUPS = (densities, fused_layers, batch_norms)
