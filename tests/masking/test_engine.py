"""What every explanation shares: what is explained, what has nothing to explain, segments."""

import pytest
import torch
from torch import nn

from masking.explained import SEGMENTS, Map, OneLogit, Patch, image, of_sets
from robustcore.masking import (
    MaskedModel,
    explain_lime,
    explain_occlusion,
    explain_rise,
    explain_shap,
    insertion_deletion,
    replaced,
)
from robustcore.masking.segments import Segments, blocks


def lime(model, **options):
    return explain_lime(model, image(), SEGMENTS, 100, **options)


def shap(model, **options):
    return explain_shap(model, image(), SEGMENTS, 100, **options)


def rise(model, **options):
    return explain_rise(model, image(), 100, grid=4, **options)


def occlusion(model, **options):
    return explain_occlusion(model, image(), 4, 4, **options)


def game(model, **options):
    order = (SEGMENTS == 5).float()
    return insertion_deletion(model, image(), order, step=16, **options)


EXPLAIN = [lime, shap, rise, occlusion]
ALL = pytest.mark.parametrize("run", [*EXPLAIN, game])


def points_at_the_patch(result):
    if hasattr(result, "attribution"):
        return int(SEGMENTS.flatten()[result.attribution.argmax()]) == 5
    return result.insertion[1] > result.insertion[0] and result.deletion[1] < result.deletion[0]


@ALL
def test_a_class(run):
    assert points_at_the_patch(run(Patch(), target=1))


@ALL
def test_one_logit(run):
    """The output itself: the softmax of one logit is 1 whatever is hidden."""
    result = run(OneLogit())
    assert points_at_the_patch(result)
    if run in EXPLAIN:
        assert result.score == pytest.approx(float(OneLogit()(image()[None])))
        assert result.target == 0


@ALL
def test_one_number_an_image(run):
    """A regression that gives [N]."""

    def predict(x, mask):
        return OneLogit()(x * mask)[:, 0]

    assert points_at_the_patch(run(predict))


@ALL
def test_a_map(run):
    """The mean of a class over the map, of a network that returns a dict."""
    with pytest.raises(TypeError, match=r"model: gave a dict, want .*let target be a function"):
        run(Map())
    result = run(Map(), target=lambda output: output["out"][:, 1].mean((1, 2)))
    assert points_at_the_patch(result)
    if run in EXPLAIN:
        assert result.target is None


@ALL
def test_a_function_of_logits(run):
    assert points_at_the_patch(run(Patch(), target=lambda logits: logits[:, 1] - logits[:, 0]))


@ALL
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (lambda y: y, ValueError, r"target: gave torch.float32 of shape \[1, 2\], want"),
        (lambda y: y.mean(), ValueError, r"target: gave torch.float32 of shape \[\], want"),
        (lambda y: y.argmax(1), TypeError, r"target: gave torch.int64 of shape \[1\], want"),
        (lambda y: None, TypeError, "target: gave a NoneType, want"),
        (2, ValueError, r"target: got 2, want an integer in \[0, 2\)"),
        ("cat", TypeError, "target: got 'cat'"),
        (True, TypeError, "target: got True"),
    ],
)
def test_what_is_no_target(run, target, error, message):
    with pytest.raises(error, match=message):
        run(Patch(), target=target)


class Blind(nn.Module):
    """Does not look at the image; its last bits change with the size of a batch, as a GEMM's do."""

    def forward(self, x):
        one = (x[:, 0] * 0 + 1).mean((1, 2)) * (1 + 1e-7 * (len(x) % 3))
        return torch.stack([0.1 * one, 0.7 * one], 1)


@ALL
def test_an_output_that_never_changes(run):
    with pytest.raises(ValueError, match=r"model: gave the same for all .* nothing to explain"):
        run(replaced(Blind().eval(), 0.0), target=1)
    with pytest.raises(ValueError, match=r"target: gave the same for all .* nothing to explain"):
        run(Patch(), target=lambda logits: logits[:, 0] * 0 + 3)


@ALL
def test_a_probability_that_never_changes(run):
    """Its logits do."""

    def saturated(x, mask):
        logit = 100 + (x * mask).mean((1, 2, 3))
        return torch.stack([-logit, logit], 1)

    with pytest.raises(ValueError, match="target: the probability of class 1 is 1 under all"):
        run(saturated)
    assert points_at_the_patch(run(saturated, target=lambda logits: logits[:, 1]))


@ALL
def test_what_is_no_number(run):
    def predict(x, mask):
        logits = Patch()(x * mask)
        return torch.where(mask.flatten(1).float().mean(1, keepdim=True) < 0.95, torch.nan, logits)

    with pytest.raises(ValueError, match=r"model: gave nan for .* masks, want finite"):
        run(predict)


@ALL
def test_a_logit_of_minus_infinity(run):
    """Of a class that a model rules out."""

    def predict(x, mask):
        logits = Patch()(x * mask)
        return torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)

    assert points_at_the_patch(run(predict, target=1))


@ALL
def test_training_mode(run):
    model = nn.Sequential(Patch(), nn.Dropout(0.5)).train()
    for given in (model, MaskedModel(model), replaced(model, 0.0)):
        with pytest.raises(ValueError, match="model: is in training mode"):
            run(given)


@ALL
def test_what_is_no_model(run):
    with pytest.raises(TypeError, match=r"model: got int, want a torch.nn.Module or a function"):
        run(3)
    with pytest.raises(TypeError, match="model: got the class Patch, want"):
        run(Patch)


@ALL
def test_the_image_is_not_copied(run):
    """A function sees the one image beside a batch of masks, and the image stays as it was."""
    x, sizes = image(), []

    def predict(given, mask):
        assert given.data_ptr() == x.data_ptr()
        assert len(given) == 1
        sizes.append(len(mask))
        return Patch()(given * mask)

    before = x.clone()
    if run is game:
        insertion_deletion(predict, x, torch.rand(16, 16), step=8, batch_size=20)
    else:
        {
            lime: lambda: explain_lime(predict, x, SEGMENTS, 90, batch_size=20),
            shap: lambda: explain_shap(predict, x, SEGMENTS, 90, batch_size=20),
            rise: lambda: explain_rise(predict, x, 90, batch_size=20),
            occlusion: lambda: explain_occlusion(predict, x, 3, 2, batch_size=20),
        }[run]()
    assert max(sizes) == 20
    assert torch.equal(x, before)


@ALL
def test_half_precision(run):
    model, x = Patch().bfloat16(), image().bfloat16()
    result = {
        lime: lambda: explain_lime(MaskedModel(model), x, SEGMENTS, 100, target=1),
        shap: lambda: explain_shap(MaskedModel(model), x, SEGMENTS, 100, target=1),
        rise: lambda: explain_rise(replaced(model, 0.0), x, 300, grid=4, target=1),
        occlusion: lambda: explain_occlusion(MaskedModel(model), x, 4, 4, target=1),
        game: lambda: insertion_deletion(model, x, (SEGMENTS == 5).float(), target=1, step=16),
    }[run]()
    assert points_at_the_patch(result)


# ---- segments ------------------------------------------------------------------------------------


def test_blocks():
    assert torch.equal(blocks(16, 16, 4), SEGMENTS)
    assert blocks(3, 5, 2).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


@pytest.mark.parametrize("run", [explain_lime, explain_shap])
def test_the_side_of_blocks(run):
    whole, by_side = (run(Patch(), image(), s, 100, target=1) for s in (SEGMENTS, 4))
    assert torch.equal(by_side.weights, whole.weights)
    assert torch.equal(by_side.segments, SEGMENTS)


@pytest.mark.parametrize("run", [explain_lime, explain_shap])
def test_numbers_that_no_pixel_has(run):
    """Superpixels are often numbered from 1, or with gaps: such a number draws no samples."""
    want = run(Patch(), image(), SEGMENTS, 100, target=1)
    gaps = 2 * SEGMENTS + 1
    result = run(Patch(), image(), gaps, 100, target=1)
    assert torch.equal(result.attribution, want.attribution)
    assert torch.equal(result.weights[1::2], want.weights)
    assert (result.weights[::2] == 0).all()
    assert torch.equal(result.shown[:, 1::2], want.shown)
    assert not result.shown[:, ::2].any()


@pytest.mark.parametrize("side", [20, 16])
def test_one_segment(side):
    model = of_sets(lambda z: z[:, 0], torch.zeros(16, 16).long())
    assert explain_shap(model, image(), side).weights.tolist() == [1]
    assert explain_lime(model, image(), side, ridge=0).weights.tolist() == pytest.approx([1])


def test_superpixels_of_scikit_image():
    slic = pytest.importorskip("skimage.segmentation").slic
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    superpixels = slic(x.permute(1, 2, 0).numpy(), n_segments=12)
    assert superpixels.min() == 1
    result = explain_lime(lambda x, mask: (x * mask).mean((1, 2, 3)), x, superpixels, 200)
    assert len(result.weights) == superpixels.max() + 1
    assert result.weights[0] == 0
    assert (result.weights[1:] > 0).all()


def test_bad_segments():
    with pytest.raises(ValueError, match=r"segments: got shape \[4, 4\]"):
        lime_of(SEGMENTS[:4, :4])
    with pytest.raises(TypeError, match=r"segments: got torch.float32"):
        lime_of(SEGMENTS.float())
    with pytest.raises(ValueError, match="segments: got -1"):
        lime_of(SEGMENTS - 1)
    with pytest.raises(ValueError, match="segments: got 0 to 1500, want 0 to at most 256"):
        lime_of(SEGMENTS * 100)
    with pytest.raises(ValueError, match="segments: got 0, want an integer of at least 1"):
        lime_of(0)
    with pytest.raises(TypeError, match="segments: got str, want a map"):
        lime_of("quickshift")


def lime_of(segments):
    return explain_lime(Patch(), image(), segments, 20)


def test_scores_of_sets_are_in_their_order():
    from robustcore.masking.engine import Engine

    value = torch.arange(16.0, dtype=torch.float64)
    engine = Engine.of(of_sets(lambda z: z @ value), image(), None, 3, False)
    z = torch.rand(20, 16, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(Segments(SEGMENTS, engine.x).scores(engine, z, ""), z.double() @ value)
