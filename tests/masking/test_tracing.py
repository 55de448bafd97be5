"""What a trace freezes, what it would lose, and what is done with a wrapped model."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from masking import nets
from robustcore.common import graph
from robustcore.masking import MaskedModel, UnsupportedOperation
from testing import assert_same


def small():
    return nets.randomized(nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5),
    ))  # fmt: skip


def images():
    return nets.image(2, 12), nets.blocks(2, 12, 3)


class Part(nn.Module):
    def __init__(self, f, *modules):
        super().__init__()
        self.f, self.parts = f, nn.ModuleList(modules)

    def forward(self, x):
        return self.f(x, *self.parts)


def test_a_swapped_module_and_a_new_hook_are_seen():
    model, (x, mask) = small(), images()
    masked = MaskedModel(model)
    before = masked(x, mask).detach()
    model[2] = nn.Sigmoid()
    want = MaskedModel(model)(x, mask).detach()
    assert_same(masked(x, mask).detach(), want)
    assert (want - before).abs().max() > 1e-3
    handle = model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert (masked(x, mask).detach() - want).abs().max() > 1e-3
    handle.remove()
    assert_same(masked(x, mask).detach(), want)


def test_dropout_follows_the_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Part(lambda x: functional.dropout(x, 0.5)))
    model[1].f = lambda x: functional.dropout(x, 0.5, model.training)
    masked, (x, mask) = MaskedModel(model.double().train()), images()
    assert not torch.equal(masked(x, mask), masked(x, mask))
    model.eval()
    assert torch.equal(masked(x, mask), masked(x, mask))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


def test_what_a_trace_would_lose_is_refused():
    x, mask = images()
    with pytest.raises(UnsupportedOperation, match=r"autograd.Function .*Twice would lose"):
        MaskedModel(nn.Sequential(Part(Twice.apply)), x)
    model = small()
    model[0].register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(UnsupportedOperation, match="forward hook on '0' returns nothing"):
        MaskedModel(model, x)
    model = small()
    model[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedOperation, match="'0' has a backward hook"):
        MaskedModel(model)(x, mask)


def without_gradient(x, conv):
    with torch.no_grad():
        y = conv(x)
    return (x * y.mean(1, True)).mean((2, 3))


def test_a_region_without_gradients_is_walked():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    model, (x, mask) = Part(without_gradient, conv).double(), images()
    x.requires_grad_()
    with torch.enable_grad():
        masked = MaskedModel(model)(x, torch.ones_like(mask))
    (got,) = torch.autograd.grad(masked.sum(), x)
    (want,) = torch.autograd.grad(model(x).sum(), x)
    assert_same(got, want)
    assert masked.requires_grad


def test_autocast_inside_a_model():
    def f(x, conv):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = conv(x)
        return y.float().mean((2, 3))

    model = Part(f, nn.Conv2d(3, 4, 3, padding=1))
    x, mask = (t.float() for t in images())
    with torch.no_grad():
        assert_same(MaskedModel(model)(x, torch.ones_like(mask)), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_saved_copied_and_wrapped(tmp_path):
    model, (x, mask) = small(), images()
    masked = MaskedModel(model)
    want = masked(x, mask).detach()
    torch.save(masked, tmp_path / "masked.pt")
    for other in (torch.load(tmp_path / "masked.pt", weights_only=False), copy.deepcopy(masked)):
        assert_same(other(x, mask).detach(), want)
    assert MaskedModel(nn.DataParallel(model)).model is model
    assert MaskedModel(torch.compile(model)).model is model


@pytest.mark.parametrize("kind", ["ones and zeros", "bool", "soft"])
def test_vmap_over_masks(kind):
    model, (x, mask) = small(), images()
    mask = {"bool": mask.bool(), "soft": 0.2 + 0.6 * mask}.get(kind, mask)
    masked = MaskedModel(model)
    with torch.no_grad():
        got = torch.vmap(lambda m: masked(x, m[None]))(mask)
        want = torch.stack([masked(x, m[None]) for m in mask])
        both = torch.vmap(lambda x, m: masked(x[None], m[None])[0])(x, mask)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(both, masked(x, mask).detach())


def test_gradients_by_torch_func():
    model, (x, mask) = small(), images()
    masked = MaskedModel(model)
    leaf = x.clone().requires_grad_()
    masked(leaf, mask).square().sum().backward()
    got = torch.func.vmap(torch.func.grad(lambda x, m: masked(x[None], m[None]).square().sum()))(
        x, mask
    )
    torch.testing.assert_close(got, leaf.grad)
    parameters = {k: 2 * v.detach() for k, v in masked.named_parameters()}
    twice = torch.func.functional_call(masked, parameters, (x, mask))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    torch.testing.assert_close(twice, MaskedModel(twin)(x, mask))


def test_hooks_of_a_masked_model():
    model, (x, mask) = small(), images()
    masked, calls = MaskedModel(model), []
    masked.register_forward_hook(lambda module, inputs, output: calls.append(output))
    masked(x, mask)
    assert len(calls) == 1


class Kuangliu(nn.Module):
    """The forward of the CIFAR ResNets that many train."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.layer = nn.Sequential(nets.Basic(6, 6), nets.Basic(6, 8, 2))
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer(out)
        out = functional.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class UNet(nn.Module):
    """Skips that are resized to what they meet."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle, self.up = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = functional.relu(self.down1(x))
        b = functional.relu(self.down2(functional.max_pool2d(a, 2)))
        c = functional.relu(self.middle(functional.max_pool2d(b, 2)))
        c = functional.interpolate(c, size=b.shape[2:], mode="bilinear", align_corners=False)
        d = functional.relu(self.up(torch.cat([c, b], 1)))
        d = functional.interpolate(d, size=a.shape[2:])
        return self.last(torch.cat([d, a], 1))


KINDS = {
    "kuangliu's": Kuangliu,
    "a U-Net": UNet,
    "a learned norm of weights": lambda: parametrizations.orthogonal(nn.Conv2d(3, 3, 1)),
    "an old weight norm": lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3, padding=1)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, padding=1)),
    "function": lambda: Part(lambda x, c: functional.conv2d(x, c.weight), nn.Conv2d(3, 4, 3)),
    "subclass": type("Other", (nn.Conv2d,), {}),
    "a normalization first": lambda: Part(lambda x: (x - x.new_tensor([0.5])) / 0.2),
    "a size computed": lambda: Part(
        lambda x, c: functional.interpolate(c(x), size=x.shape[2:]), nn.Conv2d(3, 4, 3, 2)
    ),
    "a pool of its size": lambda: Part(lambda x: functional.avg_pool2d(x, x.size()[2:])),
}


@pytest.mark.parametrize("name", KINDS)
def test_layers_of_other_kinds(name):
    make = KINDS[name]
    takes_sizes = isinstance(make, type) and issubclass(make, nn.Conv2d)
    model = nets.randomized(make(3, 4, 3)) if takes_sizes else make().double().eval()
    masked, (x, mask) = MaskedModel(model), images()
    with torch.no_grad():
        assert_same(masked(x, torch.ones_like(mask)), model(x))
        got = masked(x, mask)
        assert_same(masked(torch.where(mask > 0, x, torch.nan), mask), got)
        assert got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["basic blocks", "squeeze-excite", "dense blocks"])
def test_half_precision(name, dtype):
    model = nets.build(name, dtype=dtype)
    masked, x, mask = MaskedModel(model), nets.image(2, dtype=dtype), nets.blocks(2)
    with torch.no_grad():
        assert_same(masked(x, torch.ones_like(mask)), model(x))
        got = masked(x, mask)
        assert got.dtype == dtype
        assert got.isfinite().all()
        assert_same(masked(torch.where(mask > 0, x, torch.nan), mask), got)
        want = MaskedModel(copy.deepcopy(model).double())(x.double(), mask)
        eager = (model(x).double() - copy.deepcopy(model).double()(x.double())).abs().max()
        assert (got.double() - want).abs().max() <= 4 * eager + 0.02 * want.abs().max()


def test_several_outputs_keep_their_form():
    model = Part(lambda x: {"out": x * 2, "aux": [x.mean((2, 3))]})
    masked, (x, mask) = MaskedModel(model), images()
    got = masked(x, mask, batch_size=1)
    assert_same(got["out"], torch.where(mask > 0, 2 * x, 0))
    assert got["aux"][0].shape == (2, 3)


def test_a_path_is_the_modules():
    traced = graph.trace(small(), images()[0])
    names = {graph.name_of(n): graph.path(n) for n in traced.graph.nodes if n.op == "call_function"}
    assert names["conv2d"] == "0"
    assert names["linear"] == "5"
    assert all(
        graph.sizes(n)[0] == graph.BATCH
        for n in traced.graph.nodes if n.op == "call_function" and graph.is_tensor(n)
    )  # fmt: skip


@pytest.mark.parametrize("soft", ["uniform", "bilinear"])
def test_soft_masks_stay_bounded(soft):
    model, x = nets.build("basic blocks"), nets.image(2)
    mask = torch.full((2, 1, 64, 64), 0.01, dtype=torch.float64)
    if soft == "bilinear":  # as RISE's
        coarse = nets.blocks(2, 8, 1, 0.5)
        mask = functional.interpolate(coarse, size=64, mode="bilinear").clamp(0, 1)
    with torch.no_grad():
        got, want = MaskedModel(model)(x, mask), model(x)
    assert got.isfinite().all()
    assert got.abs().max() < 5 * want.abs().max()
