"""What people hit with masked networks: each fault that was found in use, by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from masking import nets
from robustcore.masking import (
    MaskedModel,
    UnsupportedOperation,
    explain_lime,
    explain_occlusion,
    explain_rise,
    explain_shap,
)
from testing import assert_same


class Layer(nn.Module):
    def __init__(self, f, *modules):
        super().__init__()
        self.f, self.parts = f, nn.ModuleList(modules)

    def forward(self, x):
        return self.f(x, *self.parts)


def check(model):
    """Ones to the bit, NaN under the mask, and the image as it was; gives the masked output."""
    model = nets.randomized(model)
    x, mask = nets.image(2, 12), nets.blocks(2, 12, 3)
    masked, before = MaskedModel(model), x.clone()
    with torch.no_grad():
        assert_same(masked(x, torch.ones_like(mask)), model(x))
        got = masked(x, mask)
        assert got.isfinite().all()
        assert_same(masked(torch.where(mask > 0, x, torch.nan), mask), got)
    assert_same(x, before)
    return got


def same_padding(x, conv):
    """As TensorFlow pads: one more after than before."""
    more = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in x.shape[:1:-1]]
    return conv(functional.pad(x, [p for m in more for p in (m // 2, m - m // 2)]))


PADDED = {
    "ZeroPad2d before a stride": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2)),
    "as TensorFlow does": Layer(same_padding, nn.Conv2d(3, 4, 3, 2)),
    "F.pad": Layer(lambda x, c: c(functional.pad(x, (1, 1, 1, 1))), nn.Conv2d(3, 4, 3)),
    "reflected": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "same": nn.Conv2d(3, 4, (3, 5), padding="same", dilation=2),
}


@pytest.mark.parametrize("name", PADDED)
def test_padding_said_elsewhere(name):
    check(PADDED[name])


def test_zero_padding_is_the_padding_of_a_convolution():
    padded = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3, 2))
    inside = nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1))
    assert_same(check(padded), check(inside))


@pytest.mark.parametrize("layer", [
    nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Identity(),
    nn.Flatten(2, 2), nn.ReLU(),
], ids=lambda m: type(m).__name__)  # fmt: skip
def test_layers_that_return_their_input_leave_the_image_alone(layer):
    check(nn.Sequential(layer, nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))


def test_functional_dropout_follows_train_and_eval():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Layer(None)).double()
    model[1].f = lambda x: functional.dropout(x, 0.5, model.training)
    x, mask = nets.image(2, 12), nets.blocks(2, 12, 3)
    masked = MaskedModel(model.train(), x)
    assert not torch.equal(masked(x, mask), masked(x, mask))
    model.eval()
    assert_same(masked(x, mask), masked(x, mask))


@pytest.mark.parametrize("norm", [
    nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4).train(),
], ids=["no running statistics", "in training mode"])  # fmt: skip
def test_statistics_of_the_batch_are_refused(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).double()
    x, mask = nets.image(2, 12), nets.blocks(2, 12, 3)
    with pytest.raises(UnsupportedOperation, match=r"'1' \(batch_norm .* takes its statistics"):
        MaskedModel(model)(x, mask)


def test_soft_masks_do_not_blow_up():
    """A constant mask and image: any mean of visible values is the image's value."""
    model = nn.Sequential(nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=False)).double().eval()
    nn.init.constant_(model[0].weight, 1 / 49)
    x = torch.full((1, 3, 24, 24), 5.0, dtype=torch.float64)
    for value in (1e-6, 1e-3, 0.5, 0.999):
        mask = torch.full((1, 1, 24, 24), value, dtype=torch.float64)
        got = MaskedModel(model)(x, mask)
        assert float(got.detach().max()) <= 5 + 1e-9
        mask[..., 12:] = 0
        assert float(MaskedModel(model)(x, mask).detach().max()) <= 5 + 1e-9


def test_hooks_are_called_in_a_folded_model():
    model = nets.randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x, mask = nets.image(2, 12), nets.blocks(2, 12, 3)
    before = MaskedModel(model, fold=True)(x, mask)
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    got, want = (MaskedModel(model, fold=f)(x, mask) for f in (True, False))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got, 2 * before)


SHAPES = {
    "F.avg_pool2d(x, x.size()[2:])": lambda x: functional.avg_pool2d(x, x.size()[2:]),
    "view(-1, k)": lambda x: functional.max_pool2d(x, 4).view(-1, 3 * 9),
    "view(x.size(0), -1)": lambda x: functional.max_pool2d(x, 4).view(x.size(0), -1),
    "interpolate(size=computed)": lambda x: functional.interpolate(
        x[:, :, ::2, ::2], size=(x.shape[2] // 3 * 2, x.shape[-1]), mode="bilinear"
    ),
    "transform_input": lambda x: torch.cat(
        [x[:, i : i + 1] * s + b for i, (s, b) in enumerate([(2, 0.1), (3, 0.2), (4, 0.3)])], 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_computed_in_forward(name):
    check(nn.Sequential(Layer(SHAPES[name])))


def test_view_of_features_in_the_batch():
    check(nn.Sequential(nn.Conv2d(3, 5, 12), Layer(lambda x, f: f(x.view(-1, 5)), nn.Linear(5, 2))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_data_parallel_and_compiled_models_are_unwrapped():
    model = nets.randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert MaskedModel(nn.DataParallel(model)).model is model
    masked = MaskedModel(nn.DataParallel(torch.compile(model)))
    assert masked.model is model
    x, mask = nets.image(2, 12), nets.blocks(2, 12, 3)
    assert_same(masked(x, mask), MaskedModel(model)(x, mask))


RUNS = {
    "lime": lambda *a: explain_lime(*a, 4, 100),
    "shap": lambda *a: explain_shap(*a, 4, 100),
    "rise": lambda *a: explain_rise(*a, 100),
    "occlusion": lambda *a: explain_occlusion(*a, 4, 4),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("outputs", [(1,), ()])
def test_one_logit_is_explained_by_itself(name, outputs):
    head = nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(0 if not outputs else 1)
    )
    model = nets.randomized(head)
    assert model(nets.image(2, 12)).shape == (2, *outputs)
    found = RUNS[name](model, nets.image(1, 12)[0])
    assert found.attribution.std() > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_a_constant_explanation_is_an_error_that_says_why(name):
    model = nets.randomized(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    )
    nn.init.zeros_(model[3].weight)
    with pytest.raises(ValueError, match=r"model: gave the same for all \d+ masks"):
        RUNS[name](model, nets.image(1, 12)[0])


@pytest.mark.parametrize("pool", [
    nn.AdaptiveMaxPool2d(1), nn.MaxPool2d(12), Layer(lambda x: x.amax((2, 3))),
    Layer(lambda x: x.max(3)[0].max(2)[0]), Layer(lambda x: functional.max_pool2d(x, x.shape[2:])),
], ids=["adaptive", "a window of all", "amax", "max of max", "functional"])  # fmt: skip
def test_global_maxima_are_of_visible_pixels(pool):
    x, mask = -1 - torch.rand(3, 3, 12, 12, dtype=torch.float64), nets.blocks(3, 12, 3)
    got = MaskedModel(nn.Sequential(pool))(x, mask).flatten(1)
    assert_same(got, torch.where(mask > 0, x, -torch.inf).amax((2, 3)))


class Twin(nn.Module):
    """Blocks that add what is no tensor alone, as BasicBlock does; odd windows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, (1, 5), padding=(0, 2)), nn.Conv2d(3, 3, 3, dilation=3)

    def forward(self, x):
        y = x + self.a(x)
        return y[:, :, 3:-3, 3:-3] + self.b(y)


def test_what_the_published_code_cannot_do():
    """Dilated, non-square and "same" windows, sums of blocks, and a move to another dtype."""
    check(Twin())
    model, mask = nets.randomized(Twin()), nets.blocks(2, 12, 3)
    masked, x = MaskedModel(model), nets.image(2, 12)
    want = masked(x, mask)
    got = masked.to(torch.float32)(x.float(), mask)  # fills, masks and all
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
