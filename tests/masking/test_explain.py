"""LIME, insertion and deletion, masked-accuracy curves, and the recipe for Captum."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from masking import nets
from robustcore.masking import (
    MaskedModel,
    evaluate,
    explain_lime,
    insertion_deletion,
    masked_accuracy_curve,
    replaced,
)

SEGMENTS = torch.arange(16)[:, None] // 4 * 4 + torch.arange(16) // 4  # 4 x 4 of them


class Patch(nn.Module):
    """Class 1 if the patch of segment 5 is bright: the mean of a convolution that looks there."""

    def __init__(self):
        super().__init__()
        self.pixel = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.pixel.weight.copy_(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1))
            self.pixel.bias.zero_()
        self.requires_grad_(False)

    def forward(self, x):
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.pixel(x), 1), 1)


@pytest.fixture
def image():
    """Bright in segment 5, darker than nothing elsewhere."""
    x = torch.full((1, 16, 16), -0.1)
    x[0][SEGMENTS == 5] = 1
    return x


def test_lime_finds_the_patch(image):
    result = explain_lime(Patch().eval(), image, SEGMENTS, 300, progress=True)
    assert result.target == int(Patch()(image[None]).argmax())
    assert int(explain_lime(Patch().eval(), image, SEGMENTS, 300, target=1).weights.argmax()) == 5
    assert result.attribution.shape == (16, 16)
    assert 0.3 < explain_lime(Patch().eval(), image, SEGMENTS, 300, target=1).r2 <= 1


def test_lime_repeats_by_its_seed_and_leaves_torch_alone(image):
    model = MaskedModel(Patch().eval())
    state = torch.get_rng_state()
    first = explain_lime(model, image, SEGMENTS.numpy(), 100, target=1, batch_size=7)
    again = explain_lime(model, image[None], SEGMENTS, 100, target=1, batch_size=100)
    other = explain_lime(model, image, SEGMENTS, 100, target=1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.weights, again.weights, rtol=1e-4, atol=1e-6)
    assert not torch.equal(first.weights, other.weights)


def test_the_regression_is_weighted_ridge():
    """Against the closed form on explicit columns, the intercept not penalised."""
    from robustcore.masking.explain import ridge_regression

    generator = torch.Generator().manual_seed(0)
    z = (torch.rand(50, 6, generator=generator) < 0.5).double()
    y = torch.rand(50, generator=generator, dtype=torch.float64)
    weights, intercept, r2 = ridge_regression(z, y, 0.25, 2.0)
    cosine = z.sum(1) / (z.sum(1).sqrt() * 6**0.5).clamp(min=1e-9)
    w = (-((1 - cosine) ** 2) / 0.25**2).exp()
    columns = torch.cat([z, torch.ones(50, 1, dtype=torch.float64)], 1)
    penalty = torch.diag(torch.tensor([2.0] * 6 + [0.0], dtype=torch.float64))
    solution = torch.linalg.solve(columns.T @ (w[:, None] * columns) + penalty, columns.T @ (w * y))
    torch.testing.assert_close(weights, solution[:6])
    assert intercept == pytest.approx(float(solution[6]))
    assert 0 < r2 < 1


def test_captum(image):
    """The recipe: what is perturbed is the mask, ones on the whole; the image comes along."""
    captum = pytest.importorskip("captum.attr", exc_type=ImportError)
    masked = MaskedModel(Patch().eval())

    def forward(mask, x):
        return masked(x, mask)

    torch.manual_seed(0)
    lime = captum.Lime(forward)
    mask = torch.ones(1, 1, 16, 16)
    attribution = lime.attribute(
        mask,
        baselines=0,
        target=1,
        additional_forward_args=(image[None],),
        feature_mask=SEGMENTS[None, None],
        n_samples=200,
        perturbations_per_eval=1,
    )
    assert attribution.shape == mask.shape
    assert int(SEGMENTS.flatten()[attribution.flatten().argmax()]) == 5


def test_insertion_and_deletion(image):
    attribution = (SEGMENTS == 5).float()
    good = insertion_deletion(Patch().eval(), image, attribution, target=1, step=16)
    bad = insertion_deletion(Patch().eval(), image, -attribution, target=1, step=16)
    assert good.fractions[0] == 0
    assert good.fractions[-1] == 1
    assert len(good.insertion) == len(good.deletion) == len(good.fractions) == 17
    assert good.insertion_auc > bad.insertion_auc + 0.3
    assert good.deletion_auc < bad.deletion_auc - 0.3
    whole = float(Patch()(image[None]).softmax(1)[0, 1])
    assert good.insertion[-1] == pytest.approx(whole)
    assert good.deletion[0] == pytest.approx(whole)
    assert good.insertion[0] == pytest.approx(0.5)  # nothing is visible: both logits are 0
    n = good.insertion
    assert good.insertion_auc == pytest.approx((sum(n) - n[0] / 2 - n[-1] / 2) / (len(n) - 1))


def test_the_published_game(image):
    game = insertion_deletion(
        Patch().eval(),
        image,
        torch.rand(16, 16),
        target=1,
        step=100,
        fill="published",
        progress=True,
    )
    blurred = float(Patch()(evaluate.blur(image[None])).softmax(1)[0, 1])
    assert game.insertion[0] == pytest.approx(blurred)
    assert game.deletion[-1] == pytest.approx(0.5)
    assert game.fractions == pytest.approx([0, 100 / 256, 200 / 256, 1])


def test_the_blur_is_a_gaussian():
    x = torch.zeros(1, 2, 31, 31, dtype=torch.float64)
    x[0, 1, 15, 15] = 1
    y = evaluate.blur(x)
    assert (y[0, 0] == 0).all()
    assert float(y.sum()) == pytest.approx(1)
    assert float(y[0, 1, 15, 18] / y[0, 1, 15, 15]) == pytest.approx(np.exp(-9 / 50))
    assert int((y[0, 1] > 0).sum()) == 121


def test_the_curve():
    torch.manual_seed(0)
    model = nets.build("bottlenecks", dtype=torch.float32)
    images = nets.image(12, dtype=torch.float32)
    labels = model(images).argmax(1)
    curves = masked_accuracy_curve(
        model, images, labels, fractions=(0, 0.5, 1), batch_size=5, progress=False,
        fills={"grey": replaced(model, [0.5, 0.5, 0.5])},
    )  # fmt: skip
    assert set(curves.accuracy) == {"layer masking", "grey"}
    for name in curves.accuracy:
        assert curves.accuracy[name][0] == curves.unchanged[name][0] == 1
        assert curves.entropy[name][2] == 0  # all alike
    assert curves.x == (0, 0.5, 1)


def test_what_is_hidden_stays_hidden():
    images = torch.zeros(3, 1, 20, 30)
    order = evaluate._block_order(images, 8, 0)
    masks = [evaluate._hide(order, f, 8, images) for f in (0, 0.25, 0.5, 1)]
    assert masks[0].all()
    assert not masks[-1].any()
    for more, less in itertools.pairwise(masks):
        assert (less <= more).all()
    assert not torch.equal(masks[1][0], masks[1][1])


def test_pictures(image, tmp_path):
    pytest.importorskip("matplotlib")
    explain_lime(Patch().eval(), image, SEGMENTS, 50).plot(tmp_path / "lime.png")
    insertion_deletion(Patch().eval(), image, torch.rand(16, 16)).plot(tmp_path / "game.png")
    images = nets.image(2, 16)[:, :1].float()
    curves = masked_accuracy_curve(
        Patch().eval(), images, torch.zeros(2, dtype=torch.int64), block=4
    )
    curves.plot(tmp_path / "curve.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_input(image):
    model = Patch().eval()
    with pytest.raises(TypeError, match="image: got list"):
        explain_lime(model, [1], SEGMENTS)
    with pytest.raises(ValueError, match=r"image: got shape \[2, 1, 16, 16\]"):
        explain_lime(model, image.expand(2, -1, -1, -1), SEGMENTS)
    with pytest.raises(ValueError, match=r"segments: got shape \[4, 4\]"):
        explain_lime(model, image, SEGMENTS[:4, :4])
    with pytest.raises(TypeError, match=r"segments: got torch.float32"):
        explain_lime(model, image, SEGMENTS.float())
    with pytest.raises(ValueError, match="segments: got -1"):
        explain_lime(model, image, SEGMENTS - 1)
    with pytest.raises(ValueError, match="num_samples: got 1"):
        explain_lime(model, image, SEGMENTS, 1)
    with pytest.raises(ValueError, match="target: got 2"):
        explain_lime(model, image, SEGMENTS, 10, target=2)
    with pytest.raises(ValueError, match=r"attribution: got \[4\]"):
        insertion_deletion(model, image, torch.zeros(4))
    with pytest.raises(ValueError, match="fill: got 'grey'"):
        insertion_deletion(model, image, torch.zeros(16, 16), fill="grey")
    with pytest.raises(ValueError, match=r"labels: got shape \[1\], want \[2\]"):
        masked_accuracy_curve(model, torch.zeros(2, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="fractions: got 2"):
        masked_accuracy_curve(
            model, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), fractions=[2]
        )
