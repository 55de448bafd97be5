"""Whole pieces of work against what they replace, in turn: certify, resnet50, soc, density.

    python3 bench/gpu/end_to_end.py FILE --device cuda --piece certify [--seconds 45]

The implementations are those of the benchmarks of each family.
"""

from functools import partial

import torch
from harness import Table, arguments, in_turn, load
from torch import nn

from robustcore import ops
from robustcore.lipschitz import LipConvNet
from robustcore.masking import MaskedModel
from robustcore.ops.density import linear_fused

LAST = torch.channels_last


def resnet50_of_10(zoo):
    model = zoo.build("torchvision", "resnet50")
    model.fc = nn.Linear(model.fc.in_features, 10)
    return model


def certify(device, tiny):
    bench = load("smoothing/bench_smooth.py")
    zoo = load("masking/zoo.py")
    cases = [  # images' shape, samples, batch, network
        ("CIFAR, small CNN", (3, 32, 32), 100_000, 1000, bench.two_convolutions),
        ("CIFAR, ResNet-18", (3, 32, 32), 10_000, 1000, bench.resnet18),
        ("ImageNet, ResNet-50", (3, 224, 224), 1000, 100, lambda: resnet50_of_10(zoo)),
    ]
    impls = ["robustcore", "robustcore, no CUDA graph", "published", "eager"]
    for name, shape, n, batch, network in cases[::2] if tiny else cases:
        torch.manual_seed(0)
        bench.BATCH, bench.N0 = (5, 5) if tiny else (batch, 100)
        n, shape = (10, (3, 32, 32)) if tiny else (n, shape)
        model = network().to(device).eval()
        images = torch.rand(1, *shape, device=device)
        fns = {impl: bench.implementation(impl, model, images, n) for impl in impls}

        def alone(model=model, images=images, n=n):
            with torch.inference_mode():
                bench.model_alone(model, images, n)

        yield f"certify: {name}, n = {n}", fns | {"model alone": alone}


def resnet50(device, tiny):
    bench = load("masking/bench_masked_model.py")
    batch = 1 if tiny else 64
    bench.SIZE = 64 if tiny else 224
    for name, dtype in (("float32 (TF32)", torch.float32), ("bfloat16", torch.bfloat16)):
        for layout, memory_format in list(bench.LAYOUTS.items())[: 1 if tiny else 2]:
            model, x, mask = bench.case(batch, memory_format, device, dtype)
            masked, folded = MaskedModel(model), MaskedModel(model, fold=True)
            own = mask.to(x.dtype)
            fns = {
                "robustcore": lambda m=masked, x=x, k=mask: m(x, k),
                "robustcore, folded": lambda m=folded, x=x, k=mask: m(x, k),
                "plain": lambda m=model, x=x: m(x),
                "published": lambda m=model, x=x, k=own: bench.published.resnet(m, x, k),
            }
            yield f"masked ResNet-50, batch {batch}, {layout}, {name}", inference(fns)


def inference(functions):
    def wrapped(fn):
        def run():
            with torch.inference_mode():
                return fn()

        return run

    return {name: wrapped(fn) for name, fn in functions.items()}


def soc(device, tiny):
    bench = load("lipschitz/bench_soc.py")
    batch = 2 if tiny else 256
    for name, (channels, side) in bench.SHAPES.items():
        if tiny and channels > 32:
            continue
        ours, theirs = bench.layers(channels, device)
        x = torch.randn(batch, channels, side, side, device=device)
        fused = bench.fused(ours, x)
        fns = {"robustcore": bench.step_of(ours, x, LAST)}
        if fused:
            fns["robustcore, fused"] = bench.step_of(fused, x, LAST)
        fns["published"] = bench.step_of(theirs, x, torch.contiguous_format)
        shape = f"{batch} x {name.split(' x ')[1]}"
        yield f"SOC training step: {shape}", fns
        for layer in filter(None, (ours, theirs, fused)):
            layer.eval()
        last = x.contiguous(memory_format=LAST)
        fns = {"robustcore": lambda m=ours, x=last: m(x), "published": lambda m=theirs, x=x: m(x)}
        if fused:
            fns["robustcore, fused"] = lambda m=fused, x=last: m(x)
        yield f"SOC inference: {shape}", inference(fns)
    torch.manual_seed(0)
    depth, sizes = (1, dict(init_channels=4, stages=1)) if tiny else (20, {})
    net = LipConvNet(depth, 10, **sizes).to(device)
    nets = {"robustcore": net, "published": bench.published_net(net, device)}
    x = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def step(net):
        net.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), labels).backward()

    fns = {name: lambda net=net: step(net) for name, net in nets.items()}
    yield f"LipConvNet-{depth} training step, {batch} images", fns


def density(device, tiny):
    bench = load("density/bench_penalty.py")
    batch = 2 if tiny else 128
    for name, network in (("vgg", bench.vgg), ("resnet18", bench.resnet18)):
        torch.manual_seed(0)
        model = network(*[4] * (tiny and name == "resnet18")).to(device)
        x = torch.rand(batch, 3, 32, 32, device=device)
        y = torch.randint(10, (batch,), device=device)

        def step(impl, model=model, x=x, y=y):
            model.zero_grad()
            return bench.step(impl, model, x, y)

        names = ["robustcore", "published, two gradients", "published, one gradient", "no penalty"]
        fns = {name: lambda name=name, step=step: step(name) for name in names}
        yield f"density training step: {name}, {batch} x 3 x 32 x 32", fns
    for dtype in (torch.float32, torch.bfloat16):
        n, d, k = (8, 4, 16) if tiny else (4096, 512, 50_000)
        inputs = [torch.randn(n, d), torch.randn(k, d) / d**0.5, torch.randn(k)]
        inputs = [t.to(device, dtype).requires_grad_() for t in inputs]

        def grad(lse, inputs=inputs):
            return torch.autograd.grad(lse(*inputs).mean(), inputs)

        eager = lambda x, w, b: nn.functional.linear(x, w, b).logsumexp(1)  # noqa: E731
        fns = {"robustcore": lambda g=grad: g(ops.linear_logsumexp)}
        if linear_fused.obstacle(*inputs[:2]) is None:
            fused = partial(ops.linear_logsumexp, fused=True)
            fns["robustcore, fused"] = lambda g=grad, f=fused: g(f)
        fns["eager"] = lambda g=grad, f=eager: g(f)
        yield f"linear_logsumexp with gradient: N {n}, D {d}, K {k}, {str(dtype)[6:]}", fns


PIECES = {"certify": certify, "resnet50": resnet50, "soc": soc, "density": density}
NUMBERS = {"certify": 3, "resnet50": 4, "soc": 9, "density": 4}  # of comparisons


def peak_bytes(fn, device):
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fn()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main():
    parser = arguments(__doc__)
    parser.add_argument("--piece", choices=PIECES, required=True)
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring, all in all")
    args = parser.parse_args()
    table = Table(args.file, ["work", "implementation", "ms", "times robustcore's", "peak MiB"])
    budget = (2.0 if args.tiny else args.seconds) / NUMBERS[args.piece]
    failed = False
    for work, functions in PIECES[args.piece](args.device, args.tiny):
        times = in_turn(functions, args.device, budget)
        ours = times["robustcore"]
        for name, took in times.items():
            if isinstance(took, str):
                failed = True
                table.row(work, name, took, "", "")
                continue
            ratio = f"{took / ours:.2f}" if isinstance(ours, float) else ""
            peak = peak_bytes(functions[name], args.device) / 2**20
            table.row(work, name, f"{took * 1e3:.3f}", ratio, f"{peak:.0f}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
