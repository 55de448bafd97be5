"""The symbolic masks and the plan: pure, so tested without a network's run."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from masking import nets
from robustcore import ops
from robustcore.common.graph import trace
from robustcore.masking import MaskedModel, UnsupportedOperation, make_plan
from robustcore.masking.masks import Masks
from robustcore.masking.plan import fill_iters
from robustcore.masking.windows import Window


def same(k, s=1, d=1):
    p = d * (k - 1) // 2
    return Window((k, k), (s, s), ((p, p), (p, p)), (d, d))


WINDOWS = [
    same(3), same(5), same(3, 2), same(1, 2), same(3, 1, 2), same(7, 2), Window((2, 2), (2, 2)),
    Window((3, 3)), Window((3, 1), pads=((1, 1), (0, 0))), Window((3, 3), (2, 2), ceil_mode=True),
    Window((2, 2), pads=((0, 1), (0, 1))), Window((4, 4), pads=((1, 2), (1, 2))),
]  # fmt: skip


def compute(mask, given, cache):
    """A symbolic mask on a given one."""
    if mask not in cache:
        parents = [compute(p, given, cache) for p in mask.parents]
        if mask.kind == "input":
            cache[mask] = given
        elif mask.kind in ("pool", "seen"):
            w = mask.params
            cache[mask] = ops.mask_pool(
                *parents, w.kernel, w.stride, w.pads, w.dilation, w.ceil_mode
            )
        elif mask.kind == "both":
            cache[mask] = parents[0] * parents[1]
        elif mask.kind == "either":
            cache[mask] = torch.stack(parents).amax(0)
        else:
            cache[mask] = (sum(parents) > len(parents) / 2).to(given.dtype)
    return cache[mask]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_proved_is_true(data):
    """Random masks made of one another; each inclusion that is claimed holds on random images."""
    image = torch.zeros(1, 1, data.draw(st.integers(9, 24)), data.draw(st.integers(9, 24)))
    masks = Masks(*image.shape[2:])
    made = [masks.given]
    shapes = {masks.given: image.shape}
    cache = {}
    compute(masks.given, image, cache)
    for _ in range(8):
        source = data.draw(st.sampled_from(made))
        peers = [m for m in made if shapes[m] == shapes[source]]
        kind = data.draw(st.sampled_from(["pool", "pool", "both", "either", "majority"]))
        chosen = data.draw(st.lists(st.sampled_from(peers), min_size=2, max_size=4))
        if kind == "pool":
            window = data.draw(st.sampled_from(WINDOWS))
            if min(shapes[source][2:]) < max(window.span) + 1:
                continue
            new = masks.pool(source, window)
        elif kind == "both":
            new = masks.both(*chosen[:2])
        else:
            new = getattr(masks, kind)(chosen)
        shapes[new] = compute(new, image, cache).shape
        assert new.shape == shapes[new]
        made.append(new)
    made = list(dict.fromkeys(made))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for share in (0.02, 0.2, 0.7):
        cache = {}
        given_mask = (torch.rand(image.shape, generator=generator) < share).float()
        values = {m: compute(m, given_mask, cache) for m in made}
        for a, b in itertools.product(made, made):
            if shapes[a] == shapes[b] and masks.inside(a, b):
                assert (values[a] <= values[b]).all(), (a.describe(), b.describe())


def test_what_has_to_be_proved():
    masks = Masks(32, 32)
    m = masks.given
    three = masks.pool(m, same(3))
    assert masks.pool(three, same(3)) is masks.pool(m, same(5))
    assert masks.pool(m, same(1)) is m
    assert masks.inside(m, three)
    assert not masks.inside(three, m)
    strided, view = masks.pool(m, same(3, 2)), masks.pool(m, same(1, 2))
    assert masks.both(strided, view) is view
    assert masks.both(masks.pool(strided, same(3)), view) is view
    assert masks.either([m, three]) is three
    five = masks.pool(m, same(5))
    assert masks.majority([m, three, five]) is three
    assert masks.majority([m, three]) is m
    assert masks.majority([five, m, three, five]) is three
    assert masks.majority([five, m]) is m
    assert masks.inside(masks.pool(m, same(3, 1, 2)), five)
    assert not masks.inside(five, masks.pool(m, same(3, 1, 2)))


@pytest.mark.parametrize(("needed", "window", "iters"), [
    (None, same(3), 2), (None, same(7, 2), 6), (None, same(3, 1, 2), 4),
    (same(1), same(3), 1), (same(1, 2), same(3, 2), 1), (same(1), same(7), 3),
    (None, Window((1, 5), pads=((0, 0), (2, 2))), 4), (None, same(1, 2), 0),
])  # fmt: skip
def test_iterations_of_a_fill(needed, window, iters):
    masks = Masks(32, 32)
    m = masks.given
    output = masks.pool(m, window)
    assert fill_iters(masks, m, masks.pool(m, needed) if needed else output, window) == iters


def test_nothing_to_fill_where_all_that_is_read_is_visible():
    masks = Masks(32, 32)
    wide = masks.pool(masks.given, same(3))
    assert fill_iters(masks, wide, masks.given, same(3)) == 0


def plan_of(model, **options):
    return MaskedModel(model, nets.image(1), **options).plan()


def fills(plan):
    return [n for step in plan.steps.values() for n in step.fills.values()]


def cleans(plan):
    return sum(len(step.clean) for step in plan.steps.values())


def test_a_bottleneck_network():
    plan = plan_of(nets.build("bottlenecks"))
    assert fills(plan) == [6, 1, 1, 1]
    assert cleans(plan) == 2  # before the max pool and the mean
    # As in the closed form: two poolings, the rest are strided views.
    assert [str(m.params) for m in plan.masks[1:4]] == ["7, stride 2", "3, stride 2", "1, stride 2"]


def test_a_basic_block_network():
    """The second convolution of a block with an identity reads only what the first one shows."""
    plan = plan_of(nets.build("basic blocks"))
    assert fills(plan) == [6, 2, 2, 1, 2]


def test_a_chain_without_intersections():
    plan = plan_of(nets.build("plain, flattened"))
    assert fills(plan) == [4, 4, 4]


def test_the_table():
    text = str(plan_of(nets.build("bottlenecks")))
    assert text == repr(plan_of(nets.build("bottlenecks")))
    assert text.startswith("fill: neighbor; 5 masks, 4 fills, 2 multiplications\n")
    for part in ("m0: the mask that is given", "fill 6 in m0", "fill 1 in m2", "times m1",
                 "divided by the visible share", "conv2d", "max_pool2d"):  # fmt: skip
        assert part in text


def test_other_fills_multiply():
    for fill in ("zero", "partial"):
        plan = plan_of(nets.build("bottlenecks"), fill=fill)
        assert fills(plan) == []
        assert cleans(plan) == 6


def test_the_plan_takes_a_graph_alone():
    plan = make_plan(trace(nets.build("fires"), nets.image(1)).graph)
    assert fills(plan) == [2, 2, 2]


class Odd(nn.Module):
    def __init__(self, f, **modules):
        super().__init__()
        self.f = f
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.f(self, x)


REFUSED = [
    (nn.Sequential(nn.Conv2d(3, 3, 3), nn.MaxPool2d(2, return_indices=True)), "return_indices"),
    (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "'0' .*from the batch"),
    (nn.Sequential(nn.LogSoftmax(dim=-1)), r"'0' \(log_softmax in LogSoftmax\): dim 3"),
    (Odd(lambda _, x: torch.fft.fft2(x).real), r"\(fft_fft2 in Odd\): no rule"),
    (Odd(lambda _, x: x.cumsum(2)), "cumsum.*mix what is hidden"),
    (Odd(lambda _, x: x.flip(0)), "flip.*mixes the samples"),
    (Odd(lambda _, x: x.mean()), "mean.*mixes the samples"),
    (Odd(lambda _, x: x.argmax(2) * 1.0), "argmax.*positions have no meaning"),
    (Odd(lambda _, x: x.amax((2, 3), True) * x.max(3, True)[1]), "positions have no meaning"),
    (
        Odd(lambda _, x: x if x.sum() > 0 else -x),
        r"torch.export cannot trace Odd, at line \d+ of .*test_plan.py: .*x.sum\(\) > 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_refusals_name_module_and_operation(model, message):
    model = model.double().eval()
    with pytest.raises(UnsupportedOperation, match=message):
        MaskedModel(model, nets.image(1, 10))
    masked = MaskedModel(model)
    with pytest.raises(UnsupportedOperation, match=message):
        masked(nets.image(1, 10), nets.blocks(1, 10))


MAPS = [
    nn.ZeroPad2d(1), nn.ReflectionPad2d(2), nn.ReplicationPad2d((1, 0, 2, 1)),
    nn.Unfold(3, padding=1),
    nn.Conv2d(6, 4, 3, padding=2, padding_mode="circular"), nn.Softmax(dim=-1), nn.Linear(10, 4),
    nn.AdaptiveMaxPool2d(3), nn.PixelUnshuffle(2), nn.UpsamplingNearest2d(scale_factor=3),
    nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 4, 3, 2)), nn.Dropout2d(),
    nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)), nn.AlphaDropout(),
    Odd(lambda _, x: x[:, :, 1::2, :-3]), Odd(lambda _, x: x.roll((2, 3), (2, 3))),
    Odd(lambda _, x: x.transpose(2, 3)), Odd(lambda _, x: torch.cat([x, x], 2)),
    Odd(lambda _, x: torch.cat([x, -x.flip(3)], 3)),
    Odd(lambda _, x: x.mean(1, True) * x.amax(1, True)),
    Odd(lambda _, x: x.mean(2, True).sigmoid() * x), Odd(lambda _, x: x * x.softmax(3)),
    Odd(lambda _, x: x / x.norm(dim=(2, 3), keepdim=True)),
    Odd(lambda _, x: (x.flatten(2) @ x.flatten(2).mT)[..., None] * x.amin((2, 3), True)),
    Odd(lambda _, x: torch.einsum("nchw,nkhw->nck", x, x.sigmoid())[..., None]),
    nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm([6, 10, 10]),
    nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(size=(17, 13), mode="bicubic", align_corners=True), nn.PixelShuffle(1),
    nn.ConvTranspose2d(6, 4, 2, 2), nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.AdaptiveAvgPool2d(4),
    nn.ChannelShuffle(3), nn.PReLU(6), nn.LocalResponseNorm(3), nn.Softmax(dim=1),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(),
    Odd(lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), fc=nn.Linear(6, 3)),
    Odd(lambda m, x: torch.chunk(x, 2, 1)[1]),
    Odd(
        lambda m, x: torch.cat([m.up(m.down(x)), x], 1),
        down=nn.MaxPool2d(2), up=nn.Upsample(scale_factor=2),
    ),
]  # fmt: skip


@pytest.mark.parametrize("module", MAPS, ids=lambda m: type(m).__name__)
def test_rules_for_maps(module):
    """Of every rule: ones change nothing, what is hidden is not read, what is hidden after is 0."""
    torch.manual_seed(0)
    model = nets.randomized(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), module))
    masked, x, mask = MaskedModel(model), nets.image(3, 10), nets.blocks(3, 10, 3, 0.4)
    mask[2] = 0
    with torch.no_grad():
        assert torch.equal(masked(x, torch.ones_like(mask)), model(x))
        got = masked(x, mask)
        assert got.shape == model(x).shape
        assert got.isfinite().all()
        assert torch.equal(masked(torch.where(mask > 0, x, float("nan")), mask), got)
        assert (got[2] == 0).all()
        assert (got[:2] != 0).any()


def test_group_norm_takes_its_statistics_from_what_is_visible():
    module = nn.GroupNorm(2, 6).double()
    model = nn.Sequential(module).eval()
    x, mask = torch.randn(1, 6, 8, 8, dtype=torch.float64), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    got = MaskedModel(model)(x, mask)
    torch.testing.assert_close(got[..., :4], module(x[..., :4]))
    assert (got[..., 4:] == 0).all()
