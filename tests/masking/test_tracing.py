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


def test_vmap_over_masks():
    model, (x, mask) = small(), images()
    masked = MaskedModel(model)
    with torch.no_grad():
        got = torch.vmap(lambda m: masked(x, m[None]))(mask)
        want = torch.stack([masked(x, m[None]) for m in mask])
    torch.testing.assert_close(got, want)


KINDS = {
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
    model = (make(3, 4, 3) if isinstance(make, type) else make()).double().eval()
    masked, (x, mask) = MaskedModel(model), images()
    with torch.no_grad():
        assert_same(masked(x, torch.ones_like(mask)), model(x))
        got = masked(x, mask)
        assert_same(masked(torch.where(mask > 0, x, torch.nan), mask), got)
        assert got.isfinite().all()


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
