"""RISE: its masks and its sum are the published ones."""

import math

import pytest
import torch

from masking import nets
from masking.explained import SEGMENTS, Patch, image
from robustcore.masking import MaskedModel, explain_rise, replaced
from robustcore.masking.explain.rise import enlarge


def recorded(model):
    """A function of (x, mask) that multiplies, as published, and the masks that it was given."""
    masks, predict = [], replaced(model, 0.0)

    def record(x, mask):
        masks.append(mask)
        return predict(x, mask)

    return record, masks


def test_the_sum():
    model, masks = recorded(Patch())
    options = {"grid": 4, "p": 0.3, "target": 1, "batch_size": 8}
    result = explain_rise(model, image(), 50, normalize="published", **options)
    mask = torch.cat(masks[1:])  # the first is the whole image
    assert mask.shape == (50, 1, 16, 16)
    assert 0 <= mask.min() < mask.max() <= 1
    assert ((mask > 0) & (mask < 1)).any()
    scores = Patch()(image()[None] * mask).double().softmax(1)[:, 1]
    want = (scores[:, None, None] * mask[:, 0].double()).sum(0) / (50 * 0.3)
    torch.testing.assert_close(result.attribution, want, rtol=1e-6, atol=1e-9)
    mean = explain_rise(replaced(Patch(), 0.0), image(), 50, **options).attribution
    want = want * (50 * 0.3) / mask[:, 0].double().sum(0)
    torch.testing.assert_close(mean, want, rtol=1e-6, atol=1e-9)


def test_a_score_far_from_zero():
    """Its offset is no information, and 100 masks are no less than without."""

    def far(x, mask):
        return 1000 + (x * mask).double().mean((1, 2, 3))

    def near(x, mask):
        return (x * mask).double().mean((1, 2, 3))

    want, result = (explain_rise(f, image(), 100, grid=4).attribution for f in (near, far))
    torch.testing.assert_close(result - 1000, want, rtol=0, atol=1e-9)


def test_what_no_mask_shows():
    """It is neither more nor less important than the rest: as the mean."""
    model, masks = recorded(Patch())
    result = explain_rise(model, image(), 2, grid=2, p=0.2, target=1, seed=0)
    mask = torch.cat(masks[1:])
    never = (mask == 0).all(0)[0]
    assert 0 < never.sum() < 256
    mean = Patch()(image()[None] * mask).double().softmax(1)[:, 1].mean()
    assert result.attribution[never].tolist() == pytest.approx([float(mean)] * int(never.sum()))
    assert result.attribution.isfinite().all()


def test_it_finds_the_patch():
    result = explain_rise(replaced(Patch(), 0.0), image(), 2000, grid=4, target=1)
    inside = result.attribution[SEGMENTS == 5]
    assert inside.mean() > result.attribution[SEGMENTS != 5].mean()
    assert int(SEGMENTS.flatten()[result.attribution.argmax()]) == 5


def test_the_masks_are_enlarged_bilinearly_and_shifted():
    """Against the whole enlarged grid of one cell more, and a window cut out of it."""
    generator = torch.Generator().manual_seed(0)
    height, width, grid = 20, 27, 5
    cells = (torch.rand(6, 1, grid, grid, generator=generator) < 0.5).double()
    shift = torch.rand(6, 2, generator=generator).double()
    masks = enlarge(cells, shift, height, width)
    high, wide = math.ceil(height / grid), math.ceil(width / grid)
    whole = torch.nn.functional.interpolate(
        cells, ((grid + 1) * high, (grid + 1) * wide), mode="bilinear"
    )
    for mask, big, (down, right) in zip(masks, whole, shift, strict=True):
        i, j = int(down * high), int(right * wide)
        torch.testing.assert_close(mask, big[:, i : i + height, j : j + width])


def test_the_masks_are_those_of_scikit_image():
    """The published code's resize; at the border it reflects where torch repeats."""
    resize = pytest.importorskip("skimage.transform").resize
    cells = (torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    want = resize(cells[0, 0].numpy(), (8 * 8, 8 * 8), order=1, mode="reflect", anti_aliasing=False)
    mask = enlarge(cells, torch.zeros(1, 2).double(), 56, 56)[0, 0]
    torch.testing.assert_close(mask[8:, 8:], torch.from_numpy(want)[8:56, 8:56])


def test_the_share_that_is_shown():
    model, masks = recorded(Patch())
    explain_rise(model, image(), 4000, p=0.2, batch_size=1000)
    assert float(torch.cat(masks[1:]).mean()) == pytest.approx(0.2, abs=0.01)


def test_the_seed_and_the_batch_size():
    def attribution(**options):
        return explain_rise(replaced(Patch(), 0.0), image(), 40, target=1, **options).attribution

    torch.testing.assert_close(attribution(batch_size=7), attribution(batch_size=40))
    assert not torch.equal(attribution(), attribution(seed=1))


def test_bad_input():
    for p in (0, 1, 1.5):
        with pytest.raises(ValueError, match="p: got"):
            explain_rise(Patch(), image(), 10, p=p)
    with pytest.raises(ValueError, match=r"grid: got 17, want an integer in \[1, 17\)"):
        explain_rise(Patch(), image(), 10, grid=17)


def test_soft_masks_of_a_masked_network():
    """Bilinear masks between 0 and 1: no score leaves the range that binary masks span, or near."""
    torch.manual_seed(0)
    model = MaskedModel(nets.build("basic blocks"))
    x = nets.image(1, 16)[0]
    result = explain_rise(model, x, 200, grid=4, target=lambda logits: logits[:, 1])
    binary = (torch.rand(200, 1, 16, 16) < torch.rand(200, 1, 1, 1)).double()
    scores = model(x[None], binary)[:, 1].detach()
    room = 2 * float(scores.max() - scores.min())
    assert scores.min() - room < result.attribution.min()
    assert result.attribution.max() < scores.max() + room
