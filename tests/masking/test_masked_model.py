"""MaskedModel against the published rules written out, and the facts that hold exactly."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from masking import nets
from masking.reference import Published
from robustcore.masking import MaskedModel, UnsupportedOperation
from testing import assert_same

ALL = sorted(nets.NETS)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("name", ALL)
def test_equals_the_published_rules(name, share):
    model, x = nets.build(name), nets.image(3)
    reference = Published(model)
    for seed in range(3):
        mask = nets.blocks(3, block=9, share=share, seed=seed)
        mask[0, :, 5:8, 30] = 1  # something small as well
        with torch.no_grad():
            got, want = MaskedModel(model)(x, mask), reference(x, mask)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_a_mask_of_ones_changes_no_bit(name, dtype):
    model, x = nets.build(name, dtype=dtype), nets.image(2, dtype=dtype)
    masked = MaskedModel(model)
    for fill in ("neighbor", "zero", "partial"):
        other = MaskedModel(model, fill=fill)
        for mask in (torch.ones(1, 1, 64, 64), torch.ones(2, 1, 64, 64, dtype=torch.bool)):
            assert_same(other(x, mask), model(x))
    assert_same(masked(x), model(x))
    last = x.contiguous(memory_format=torch.channels_last)
    assert_same(masked(last, torch.ones(1, 1, 64, 64)), model(last))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("fill", ["neighbor", "zero", "partial"])
@pytest.mark.parametrize("name", ALL)
def test_what_is_hidden_has_no_influence(name, fill, fold):
    masked, x = MaskedModel(nets.build(name), fill=fill, fold=fold), nets.image(2)
    mask = nets.blocks(2, seed=1)
    with torch.no_grad():
        expected = masked(x, mask)
        for other in (x * mask, x + 100 * (1 - mask), torch.where(mask > 0, x, float("nan"))):
            assert_same(masked(other, mask), expected)
    x.requires_grad_()
    masked(x, mask).square().sum().backward()
    assert (x.grad[(mask == 0).expand_as(x)] == 0).all()
    assert (x.grad[(mask == 1).expand_as(x)] != 0).double().mean() > 0.3
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_a_sample_that_shows_nothing_gets_the_last_bias(name):
    model, x = nets.build(name), nets.image(2)
    mask = torch.cat([torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)])
    got = MaskedModel(model)(x, mask)
    bias = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].bias
    assert_same(got[0], bias.detach().clone().requires_grad_(False) + 0 * got[0].detach())
    torch.testing.assert_close(got[1], model(x)[1])


@pytest.mark.parametrize("name", ALL)
def test_folding_changes_rounding_only(name):
    model, x = nets.build(name, dtype=torch.float32), nets.image(2, dtype=torch.float32)
    mask = nets.blocks(2, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    plain, folded = MaskedModel(model), MaskedModel(model, fold=True)
    with torch.no_grad():
        for m in (None, mask, torch.ones_like(mask)):
            want = plain(x, m)
            torch.testing.assert_close(
                folded(x, m), want, rtol=1e-5, atol=1e-5 * float(want.abs().max())
            )
    tracked, want = folded(x, mask).detach(), plain(x, mask).detach()  # autograd's convolutions
    torch.testing.assert_close(tracked, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_fewer_fills_would_differ():
    """The bottleneck's 3x3 needs its one iteration, the stem's 7x7 its six."""
    model, x, mask = nets.build("bottlenecks"), nets.image(2), nets.blocks(2, block=9)
    masked = MaskedModel(model)
    with torch.no_grad():
        want = masked(x, mask)
        (trace,) = masked._traces.values()
        network = trace.network("binary")
        fills = [
            n for n in network.graph.nodes if getattr(n.target, "__name__", "").endswith("fill")
        ]
        assert [n.args[2] for n in fills] == [6, 1, 1, 1]
        for node in fills:
            kept = node.args
            node.args = (*kept[:2], kept[2] - 1)
            network.recompile()
            assert (masked(x, mask) - want).abs().max() > 1e-3
            node.args = (*kept[:2], kept[2] + 2)
            network.recompile()
            torch.testing.assert_close(masked(x, mask), want)
            node.args = kept
        network.recompile()
        assert_same(masked(x, mask), want)


def test_one_image_and_many_masks():
    masked, x, mask = MaskedModel(nets.build("bottlenecks")), nets.image(1), nets.blocks(5)
    want = torch.cat([masked(x, m[None]) for m in mask]).detach()
    torch.testing.assert_close(masked(x, mask).detach(), want)
    torch.testing.assert_close(masked(x, mask.bool(), batch_size=2).detach(), want)
    torch.testing.assert_close(
        masked(nets.image(3), mask[:1]).detach(),
        masked(nets.image(3), mask[:1].expand(3, -1, -1, -1)).detach(),
    )


def test_segments():
    masked, x = MaskedModel(nets.build("basic blocks")), nets.image(1)
    segments = (torch.arange(64)[:, None] // 16 * 4 + torch.arange(64) // 16).int()
    z = torch.rand(7, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = z[:, segments.long()].unsqueeze(1)
    with torch.no_grad():
        want = masked(x, mask)
        torch.testing.assert_close(masked(x, segments=segments, z=z), want)
        torch.testing.assert_close(
            masked(x, segments=segments, z=z, batch_size=3, progress=True), want
        )


class Pointwise(nn.Module):
    """1x1 convolutions beside each other, and only then something that needs the mask."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        y = self.a(x)
        y += self.b(x)
        return self.fc(self.c(torch.relu(y)).mean([2, 3]))


def test_one_image_meets_its_masks_late():
    model = Pointwise().double().eval()
    masked, x, mask = MaskedModel(model), nets.image(1), nets.blocks(4)
    want = torch.cat([masked(x, m[None]) for m in mask]).detach()
    for fold in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(MaskedModel(model, fold=fold)(x, mask), want)
    torch.testing.assert_close(Published(model)(x.expand(4, -1, -1, -1), mask).detach(), want)


def test_gradients_of_parameters_and_a_penalty_on_the_input_gradient():
    model = nets.build("dense blocks")
    masked, x, mask = MaskedModel(model), nets.image(2).requires_grad_(), nets.blocks(2)
    (g,) = torch.autograd.grad(masked(x, mask).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 8
    assert all(g.isfinite().all() for g in grads)


def test_fractional_masks_weigh():
    masked, x = MaskedModel(nets.build("bottlenecks")), nets.image(1)
    ones, half = torch.ones(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.5)
    assert (masked(x, half) - masked(x, ones)).abs().max() > 1e-3
    assert masked(x, half).isfinite().all()


@pytest.mark.kernel
def test_instruction_sets_agree(simd):
    model = nets.build("bottlenecks", dtype=torch.float32)
    masked, x = MaskedModel(model), nets.image(2, dtype=torch.float32)
    mask = nets.blocks(2, dtype=torch.float32)
    with torch.no_grad():
        want = masked(x, mask)
        simd()
        assert_same(masked(x, mask), want)


def test_it_shares_the_model():
    model = nets.build("basic blocks")
    masked = MaskedModel(model)
    assert set(masked.state_dict()) == {f"model.{k}" for k in model.state_dict()}
    assert sum(p.numel() for p in masked.parameters()) == sum(p.numel() for p in model.parameters())
    masked.float()
    x, mask = nets.image(2, dtype=torch.float32), nets.blocks(2)
    want = masked(x, mask)
    assert want.dtype == torch.float32
    twin = copy.deepcopy(masked)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert (masked(x, mask) == 0).all()
    torch.testing.assert_close(twin(x, mask), want)


def test_autocast():
    model = nets.build("bottlenecks", dtype=torch.float32)
    masked, x = MaskedModel(model), nets.image(2, dtype=torch.float32)
    mask = nets.blocks(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = masked(x, mask)
        assert_same(masked(torch.where(mask > 0, x, float("nan")), mask), got)
        assert_same(masked(x, torch.ones(1, 1, 64, 64)), model(x))
    want = masked(x, mask).detach()
    assert (got - want).abs().max() < 0.1 * want.abs().max()


def test_batch_norm_in_training_mode_is_refused():
    model = nets.build("bottlenecks").train()
    masked = MaskedModel(model)
    with pytest.raises(UnsupportedOperation, match=r"'1' \(batch_norm in BatchNorm2d\).* eval\(\)"):
        masked(nets.image(2), nets.blocks(2))
    masked(nets.image(2))
    with pytest.raises(ValueError, match="fold: '1' is in training mode"):
        MaskedModel(model, fold=True)
    model.eval()  # a change of mode is a trace of its own
    masked(nets.image(2), nets.blocks(2))


BAD = [
    (dict(x=[1]), "x: got list"),
    (dict(x=torch.zeros(2, 3, 64, 64, dtype=torch.int64)), "x: got torch.int64"),
    (dict(x=torch.zeros(3, 64, 64)), r"x: got shape \[3, 64, 64\]"),
    (dict(mask=torch.ones(2, 1, 32, 64)), r"mask: got shape \[2, 1, 32, 64\], want \[N, 1, 64"),
    (dict(mask=torch.ones(2, 3, 64, 64)), "mask: got shape"),
    (dict(mask=torch.ones(3, 1, 64, 64)), "mask: got 3 masks for 2 images"),
    (dict(mask=torch.full((2, 1, 64, 64), 1.5)), r"mask: got values from 1.5 to 1.5, want"),
    (dict(mask=torch.full((2, 1, 64, 64), float("nan"))), "mask: got values"),
    (dict(mask=torch.ones(2, 1, 64, 64, dtype=torch.int64)), "mask: got torch.int64"),
    (dict(mask=torch.ones(2, 1, 64, 64).requires_grad_()), "mask: requires a gradient"),
    (dict(mask="all"), "mask: got str"),
    (dict(z=torch.ones(2, 4, dtype=torch.bool)), "mask: give it, or segments and z"),
    (dict(batch_size=0), "batch_size: got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    masked = MaskedModel(nets.build("fires"))
    arguments = {"x": nets.image(2), "mask": torch.ones(2, 1, 64, 64), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        masked(**arguments)


BAD_SEGMENTS = [
    (dict(segments=None), "segments and z: want both"),
    (dict(segments=torch.zeros(64, 32, dtype=torch.int64)), r"segments: got shape \[64, 32\]"),
    (dict(segments=torch.zeros(64, 64)), "segments: got torch.float32"),
    (dict(segments=torch.full((64, 64), 4)), r"segments: got values from 4 to 4, want .*\[0, 4\)"),
    (dict(z=torch.ones(2, 4)), "z: got torch.float32"),
    (dict(z=torch.ones(3, 4, dtype=torch.bool)), "z: got 3 samples for 2 images"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SEGMENTS)
def test_bad_segments(change, message):
    masked = MaskedModel(nets.build("fires"))
    good = dict(
        segments=torch.zeros(64, 64, dtype=torch.int64), z=torch.ones(2, 4, dtype=torch.bool)
    )
    with pytest.raises((TypeError, ValueError), match=message):
        masked(nets.image(2), **{**good, **change})


def test_bad_arguments():
    with pytest.raises(TypeError, match="model: got function"):
        MaskedModel(functional.relu)
    with pytest.raises(ValueError, match="fill: got 'mean'"):
        MaskedModel(nets.build("fires"), fill="mean")
