"""Insertion and deletion, layer-masked and as published."""

import numpy as np
import pytest
import torch

from masking.explained import SEGMENTS, Patch, image
from robustcore.masking import insertion_deletion, replaced
from robustcore.masking.game import blur

PATCH_FIRST = (SEGMENTS == 5).float()


def test_insertion_and_deletion():
    good = insertion_deletion(Patch(), image(), PATCH_FIRST, target=1, step=16)
    bad = insertion_deletion(Patch(), image(), -PATCH_FIRST, target=1, step=16)
    assert good.fractions[0] == 0
    assert good.fractions[-1] == 1
    assert len(good.insertion) == len(good.deletion) == len(good.fractions) == 17
    assert good.insertion_auc > bad.insertion_auc + 0.3
    assert good.deletion_auc < bad.deletion_auc - 0.3
    whole = float(Patch()(image()[None]).softmax(1)[0, 1])
    assert good.insertion[-1] == pytest.approx(whole)
    assert good.deletion[0] == pytest.approx(whole)
    assert good.insertion[0] == pytest.approx(0.5)  # nothing is visible: both logits are 0
    n = good.insertion
    assert good.insertion_auc == pytest.approx((sum(n) - n[0] / 2 - n[-1] / 2) / (len(n) - 1))


def test_the_published_game():
    model = Patch()
    attribution = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    game = insertion_deletion(
        model, image(), attribution, target=1, step=100, fill="published", progress=True
    )
    order = attribution.flatten().argsort(descending=True)
    inserted, deleted = blur(image()[None]), image()[None].clone()
    insertion, deletion = [], []
    for i in range(4):
        insertion.append(float(model(inserted).softmax(1)[0, 1]))
        deletion.append(float(model(deleted).softmax(1)[0, 1]))
        now = order[100 * i : 100 * (i + 1)]
        inserted.view(-1)[now], deleted.view(-1)[now] = image().view(-1)[now], 0.0
    assert game.insertion == pytest.approx(insertion, rel=1e-5)
    assert game.deletion == pytest.approx(deletion, rel=1e-5)
    assert game.deletion[-1] == pytest.approx(0.5)
    assert game.fractions == pytest.approx([0, 100 / 256, 200 / 256, 1])


def test_the_blur_is_the_published_one():
    """A delta in 11 x 11, smoothed by SciPy, is the filter."""
    smooth = pytest.importorskip("scipy.ndimage").gaussian_filter
    x = torch.zeros(1, 2, 31, 31, dtype=torch.float64)
    x[0, 1, 15, 15] = 1
    y = blur(x)
    assert (y[0, 0] == 0).all()
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    want = torch.from_numpy(smooth(delta, 5))
    torch.testing.assert_close(y[0, 1, 10:21, 10:21], want, rtol=1e-12, atol=1e-15)
    assert float(y.sum()) == pytest.approx(1)
    assert int((y[0, 1] > 0).sum()) == 121


def test_an_attribution_without_an_order():
    for value in (0.0, -3.5):
        with pytest.raises(ValueError, match=f"attribution: got {value:g} for every pixel"):
            insertion_deletion(Patch(), image(), torch.full((16, 16), value))
    broken = PATCH_FIRST.clone()
    broken[3, 3] = torch.nan
    with pytest.raises(ValueError, match="attribution: got nan"):
        insertion_deletion(Patch(), image(), broken)


def test_infinities_have_an_order():
    far = torch.where(PATCH_FIRST > 0, torch.inf, -torch.inf)
    game = insertion_deletion(Patch(), image(), far, target=1, step=16)
    want = insertion_deletion(Patch(), image(), PATCH_FIRST, target=1, step=16)
    assert game.insertion == want.insertion


def test_the_model_of_a_published_game_is_plain():
    """It is called as it is, and need not be one that masks could pass through."""

    class Odd(Patch):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else None  # control flow on values

    game = insertion_deletion(
        Odd(), image(), PATCH_FIRST, target=1, step=64, fill="published", batch_size=2
    )
    assert len(game.insertion) == 5
    with pytest.raises(TypeError, match="model: got function"):
        insertion_deletion(replaced(Patch(), 0.0), image(), PATCH_FIRST, fill="published")


def test_bad_input():
    with pytest.raises(ValueError, match=r"attribution: got \[4\]"):
        insertion_deletion(Patch(), image(), torch.zeros(4))
    with pytest.raises(ValueError, match="fill: got 'grey'"):
        insertion_deletion(Patch(), image(), PATCH_FIRST, fill="grey")
    with pytest.raises(ValueError, match="step: got 0"):
        insertion_deletion(Patch(), image(), PATCH_FIRST, step=0)
