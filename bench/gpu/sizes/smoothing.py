"""Noise, ablations, votes."""

import importlib.util
import math

import torch

from robustcore import ops
from sizes.size import BF16, F16, F32, LAST, raw, size_of

STREAM = (1, 0, 0, None, None)  # seed and offsets, as the raw ops take them


def noises(at):
    sizes = [(1000, 3, 32, 32), (100, 3, 224, 224), (100_000, 3, 32, 32), (2000, 3, 224, 224)]
    for samples, *shape in sizes:
        (few,) = at(samples)
        image = at(*shape)
        variants = [("float32", F32, {}, False), ("bfloat16", BF16, {}, False)]
        if samples in (1000, 100_000):
            affine = dict(mean=[0.4] * image[0], std=[0.2] * image[0])
            variants += [
                ("float32, mean and std", F32, affine, False),
                ("float32, channels last", F32, {}, True),
                ("float16", F16, {}, False),
            ]
        x = torch.rand(1, *image, device=at.device)
        for name, dtype, more, last in variants:
            out = torch.empty((few, *image), device=at.device, dtype=dtype)
            out = out.contiguous(memory_format=LAST if last else torch.contiguous_format)[None]
            kwargs = dict(seed=1, dtype=dtype, out=out, **more)
            kwargs["memory_format"] = LAST if last else torch.contiguous_format
            fn = lambda x=x, few=few, k=kwargs: ops.gaussian_noise(x, few, 0.25, **k)  # noqa: E731
            yield "gaussian_noise", f"{samples} x {shape}, {name}", size_of(out), fn, "fill"


def other_noises(at):
    (few,) = at(1000)
    x = torch.rand(1, *at(3, 32, 32), device=at.device)
    for kind in ("uniform", "laplace", "splitting"):
        op = getattr(ops, f"{kind}_noise")
        out = op(x, few, 0.3, seed=0)
        fn = lambda op=op, out=out: op(x, few, 0.3, seed=0, out=out)  # noqa: E731
        yield f"{kind}_noise", "1000 x [3, 32, 32], float32", size_of(out), fn, "fill"
    out = ops.ablate_pixels(x, few, 20, seed=0)
    fn = lambda: ops.ablate_pixels(x, few, 20, seed=0, out=out)  # noqa: E731
    yield "ablate_pixels", "1000 x [3, 32, 32], k = 20", size_of(out), fn, "fill"
    for images, samples in ((1, 1000), (64, 1000)):
        grad = at.randn(images, few, *x.shape[1:])
        fn = lambda g=grad: raw.gaussian_noise_sums(g, *STREAM, True)  # noqa: E731
        yield "noise sums", f"{images} x {samples} x [3, 32, 32]", size_of(grad), fn, "copy"


def votes(at):
    for images, samples, classes in ((1, 1000, 10), (1, 1000, 1000), (300, 1000, 1000)):
        shape = at(images, samples, classes)
        for name, dtype in (("float32", F32), ("bfloat16", BF16)):
            logits = at.randn(*shape, dtype=dtype)
            out = torch.empty(shape[0], shape[2], dtype=torch.int64, device=at.device)
            label = f"{images} x {samples} x {classes}, {name}"
            fn = lambda z=logits, out=out: ops.count_votes(z, out=out)  # noqa: E731
            yield "count_votes", label, size_of(logits), fn, "copy"


def others_normals(at):
    """The same work by torch's generator, and by CuPy's Philox generator where CuPy is."""
    for samples in (1000, 100_000):
        few, *image = at(samples, 3, 32, 32)
        x, shape = torch.rand(1, *image, device=at.device), (few, *image)
        case, size = f"{samples} x [3, 32, 32], float32", 4 * math.prod(shape)

        def eager(x=x, shape=shape):
            return torch.randn(shape, device=x.device).mul_(0.25).add_(x)

        yield "torch.randn, times sigma, plus x", case, size, eager, "fill"
        if at.device.type != "cuda" or importlib.util.find_spec("cupy") is None:
            continue
        import cupy

        generator = cupy.random.Generator(cupy.random.Philox4x3210(1))

        def drawn(draw=generator.standard_normal, shape=shape, f32=cupy.float32):
            return draw(shape, dtype=f32)

        def noisy(drawn=drawn, x=cupy.asarray(x)):  # noqa: B008
            z = drawn()
            z *= 0.25
            z += x
            return z

        yield "CuPy's Philox generator alone", case, size, drawn, "fill"
        yield "CuPy's Philox generator, times sigma, plus x", case, size, noisy, "fill"


GROUPS = (noises, other_noises, votes, others_normals)
