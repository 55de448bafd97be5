"""ops.gaussian_noise against what a user would write, and against the published sequence."""

import pytest
import torch

from robustcore import ops

SIGMA = 0.25
CASES = {
    # name: images, samples, shape, dtype, channels_last
    "1000 samples of 3x32x32, float32": (1, 1000, (3, 32, 32), torch.float32, False),
    "100 samples of 3x224x224, float32": (1, 100, (3, 224, 224), torch.float32, False),
    "1000 samples of 3x32x32, bfloat16": (1, 1000, (3, 32, 32), torch.bfloat16, False),
    "1000 samples of 3x32x32, channels last": (1, 1000, (3, 32, 32), torch.float32, True),
    "1000 samples of 1x8x8, float32": (1, 1000, (1, 8, 8), torch.float32, False),
    "1 sample each of 128 3x32x32 (training)": (128, 1, (3, 32, 32), torch.float32, False),
    "1 sample of 1x8x8 (call overhead)": (1, 1, (1, 8, 8), torch.float32, False),
}
IMPLS = ["robustcore", "robustcore, allocating", "published", "eager", "in place", "compiled"]
IMPLS += ["cupy", "fill_ (limit)"]


def implementation(impl, x, samples, out, channels_last):
    """A function without arguments that makes the noisy images once."""
    flat = out.flatten(0, 1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    kwargs = dict(seed=1, memory_format=memory_format, dtype=out.dtype)
    step = iter(range(0, 2**40, samples))

    def robustcore(**more):
        return ops.gaussian_noise(x, samples, SIGMA, sample_offset=next(step), **more, **kwargs)

    def published():
        # Cohen et al., one image at a time: repeat, randn_like, times sigma, plus.
        for image in x:
            batch = image.repeat((samples, 1, 1, 1))
            noise = torch.randn_like(batch) * SIGMA
            batch = batch + noise
        return batch.contiguous(memory_format=memory_format)

    def eager():
        return x.unsqueeze(1) + SIGMA * torch.randn(out.shape, dtype=out.dtype, device=x.device)

    if impl == "cupy":
        return with_cupy(x, out)
    return {
        "robustcore": lambda: robustcore(out=out),
        "robustcore, allocating": robustcore,
        "published": published,
        "eager": eager,
        "in place": lambda: out.normal_().mul_(SIGMA).add_(x.unsqueeze(1)),
        "compiled": torch.compile(eager, dynamic=False),
        "fill_ (limit)": lambda: flat.fill_(SIGMA),
    }[impl]


def with_cupy(x, out):
    """CuPy's own counter-based generator."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not x.is_cuda or out.dtype != torch.float32:
        pytest.skip("CuPy draws float32 on a GPU")
    generator = cupy.random.Generator(cupy.random.Philox4x3210(1))
    images = cupy.asarray(x.unsqueeze(1))
    shape = tuple(out.shape)
    return lambda: generator.standard_normal(shape, dtype=cupy.float32) * SIGMA + images


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES)
def test_gaussian_noise(case, impl, measure, device):
    images, samples, shape, dtype, channels_last = CASES[case]
    x = torch.rand(images, *shape, device=device).to(dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    out = ops.gaussian_noise(x, samples, SIGMA, seed=0, memory_format=memory_format)
    fn = implementation(impl, x, samples, out, channels_last)
    result = fn()
    if "fill_" not in impl:
        # The same distribution about the same images, before anything is timed.
        noise = torch.as_tensor(result, device=device).reshape(-1, *shape).float() - x[-1].float()
        if images == 1 and noise.numel() > 10_000:
            assert abs(noise.mean()) < 0.01
            assert abs(noise.std() - SIGMA) < 0.01
    small = out.numel() < 10_000
    measure(f"gaussian_noise: {case}", impl, fn, launches=200 if small else 1)
