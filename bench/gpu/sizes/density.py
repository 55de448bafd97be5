"""Log-sum-exp, norms, batch normalisation, attention."""

import torch

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


GROUPS = (densities,)
