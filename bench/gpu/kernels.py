"""The device's ceilings, then every kernel at a real size and at a gigabyte or more, by events.

Bytes are the least that an op can move: what it reads and writes, once. A kernel that only writes
is held against `fill_`, any other against a copy.

    python3 bench/gpu/kernels.py FILE --device cuda [--only WORD ...] [--once]
"""

import itertools
import re

import torch
from harness import Table, arguments, median_seconds, sync

from robustcore import ops

LAST = torch.channels_last
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
raw = torch.ops.robustcore
STREAM = (1, 0, 0, None, None)  # seed and offsets, as the raw ops take them


def size_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


class Shapes:
    """Shapes as they are, or one of each kind small enough for a rehearsal."""

    def __init__(self, device, tiny):
        self.device, self.tiny = device, tiny

    def __call__(self, *sides):
        return tuple(min(side, 8) for side in sides) if self.tiny else sides

    def randn(self, *shape, dtype=F32, last=False):
        t = torch.randn(shape, device=self.device, dtype=dtype)
        return t.contiguous(memory_format=LAST) if last else t


def ceilings(at):
    """Name, bytes or operations, function."""
    (elements,) = at(2**29)
    source = torch.ones(elements, device=at.device)
    target = torch.empty_like(source)
    yield "copy", 2 * size_of(source), lambda: target.copy_(source)
    yield "fill", size_of(target), lambda: target.fill_(1.0)
    for name, dtype in (("bfloat16", BF16), ("float32", F32)):
        n = 64 if at.tiny else 8192
        a, b = at.randn(n, n, dtype=dtype), at.randn(n, n, dtype=dtype)
        yield f"matrix product, {name}", 2 * n**3, lambda a=a, b=b: torch.mm(a, b)


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


def pairs(at):
    for shape in ((256, 64, 32, 32), (4096, 64, 32, 32)):
        for last in (False, True):
            x = at.randn(*at(*shape), last=last)
            label = f"{list(shape)}, {'channels last' if last else 'contiguous'}"
            bits, size = raw.maxmin(x, last)[1], size_of(x)
            table = torch.rand(4, x.shape[1] // 2, device=at.device)
            wide = torch.rand(15, x.shape[1] // 2, device=at.device)
            yield "maxmin", label, 2 * size, lambda x=x, la=last: raw.maxmin(x, la), "copy"
            fn = lambda x=x, b=bits, la=last: raw.maxmin_swap(x, b, la)  # noqa: E731
            yield "maxmin, backward", label, 2 * size, fn, "copy"
            for name, index, numbers in (("householder", 0, table), ("householder2", 1, wide)):
                fn = lambda x=x, n=numbers, i=index, la=last: raw.pair_map(x, n, i, la)  # noqa: E731
                yield name, label, 2 * size, fn, "copy"


def series(at):
    for shape in ((256, 64, 32, 32), (4096, 64, 32, 32)):
        z, b = at.randn(*at(*shape)), at.randn(*at(*shape))
        out = torch.empty_like(z)
        fn = lambda z=z, b=b, o=out: raw.conv_exp_update(  # noqa: E731
            z, None, b, None, 0.5, 2.0, -1.0, 3.0, 0.25, o, None
        )
        yield "conv_exp_update", str(list(shape)), 3 * size_of(z), fn, "copy"
    weight = at.randn(*at(512, 512, 3, 3))
    if at.tiny:
        weight = weight[..., :3, :3].contiguous()
    fn = lambda: raw.skew(weight)  # noqa: E731
    yield "skew", "[512, 512, 3, 3]", 2 * size_of(weight), fn, "copy"


def fills(at):
    sizes = [  # images, channels, side, masks, iterations
        (64, 64, 56, 64, 1), (64, 512, 14, 64, 1), (1, 3, 224, 32, 6), (64, 3, 224, 64, 6),
        (600, 64, 56, 600, 1),
    ]  # fmt: skip
    for (images, channels, side, number, iters), last, dtype in itertools.product(
        sizes, (False, True), (F32, BF16)
    ):
        x = at.randn(*at(images, channels, side, side), dtype=dtype, last=last)
        count = len(x) if number == images else at(number)[0]
        mask = (torch.rand(count, 1, *x.shape[2:], device=at.device) < 0.53).float()
        label = f"[{images}, {channels}, {side}, {side}], {number} masks, {iters} iterations, "
        label += f"{'channels last' if last else 'contiguous'}, {str(dtype).split('.')[1]}"
        moved = size_of(x) + size_of(x) * count // len(x)
        fn = lambda x=x, m=mask, i=iters: ops.neighbor_fill(x, m, i)  # noqa: E731
        yield "neighbor_fill", label, moved, fn, "copy"
        if iters == 1 and images != 600:
            scale = torch.rand(x.shape[1], device=at.device)
            fn = lambda x=x, m=mask, s=scale: raw.mask_epilogue_(x, m, s, s, True)  # noqa: E731
            yield "mask_epilogue_", label.replace(", 1 iterations", ""), moved, fn, "copy"


def attack_ops(at):
    for shape in ((128, 3, 32, 32), (64, 3, 224, 224), (2000, 3, 224, 224)):
        x0 = torch.rand(at(*shape), device=at.device)
        x, grad, label = (x0 + 0.1).clamp(max=1), torch.randn_like(x0), f"{list(shape)}, float32"
        out, size = torch.empty_like(x0), size_of(x0)
        for norm, eps in (("linf", 0.1), ("l2", 3.0), ("l1", 12.0)):
            ball = dict(norm=norm, eps=eps, step_size=eps / 4, out=out)
            fn = lambda x=x, g=grad, x0=x0, b=ball: ops.attack_step(x, g, x0, **b)  # noqa: E731
            yield "attack_step", f"{label}, {norm}", 4 * size, fn, "copy"
            fn = lambda x=x, x0=x0, n=norm, e=eps, o=out: ops.project(x, x0, n, e, out=o)  # noqa: E731
            yield "project", f"{label}, {norm}", 3 * size, fn, "copy"
    poses = torch.linspace(-30, 30, 8 if at.tiny else 775, device=at.device)
    for side in (32, 224):
        x = torch.rand(at(1, 3, side, side), device=at.device)
        made, label = size_of(x) * len(poses), f"{len(poses)} poses of [3, {side}, {side}]"
        yield "spatial_warp", label, made, lambda x=x: ops.spatial_warp(x, poses), "fill"
    for shape in ((50, 64, 56, 56), (50, 512, 7, 7), (500, 256, 56, 56)):
        f, r = at.randn(*at(*shape)), at.randn(*at(*shape))
        size, label = size_of(f), f"{list(shape)}, float32"
        fn = lambda f=f, r=r: raw.perceptual_distance(f, r, None)  # noqa: E731
        yield "perceptual_distance", label, 2 * size, fn, "copy"
        g = fn()
        fn = lambda g=g, f=f, r=r: raw.perceptual_distance_backward(g, f, r, None, True, False)  # noqa: E731
        yield "perceptual_distance, backward", label, 3 * size, fn, "copy"


FAMILIES = (noises, other_noises, votes, densities, pairs, series, fills, attack_ops)


def measure_ceilings(table, at):
    rates = {}
    for name, amount, fn in ceilings(at):
        took = median_seconds(fn, at.device)
        rates[name] = amount / took
        unit = "GB/s" if name in ("copy", "fill") else "TFLOP/s"
        rate = amount / took / (1e9 if unit == "GB/s" else 1e12)
        table.row("ceiling", name, amount, f"{took * 1e3:.4f}", f"{rate:.1f} {unit}", "")
    return rates


def measure(table, at, only, once):
    rates = {} if once else measure_ceilings(table, at)
    failed = False
    for family in FAMILIES:
        try:
            for kernel, case, amount, fn, ceiling in family(at):
                if only and not re.search("|".join(only), f"{kernel}: {case}"):
                    continue
                if once:
                    fn()
                    continue
                took = median_seconds(fn, at.device, 0.06)
                rate = amount / took
                share = f"{100 * rate / rates[ceiling]:.0f} %"
                table.row(
                    kernel, case, amount, f"{took * 1e3:.4f}", f"{rate / 1e9:.0f} GB/s", share
                )
        except Exception as error:  # the next family may still run
            failed = True
            table.row(family.__name__, f"{type(error).__name__}: {error}"[:200], "", "", "", "")
        if at.device.type == "cuda":
            torch.cuda.empty_cache()
    sync(at.device)
    return failed


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", help="kernels and cases that match one of these")
    parser.add_argument("--once", action="store_true", help="one call each: under a profiler")
    args = parser.parse_args()
    table = Table(args.file, ["kernel", "case", "bytes", "ms", "rate", "share of the ceiling"])
    with torch.inference_mode():
        failed = measure(table, Shapes(args.device, args.tiny), args.only, args.once)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
