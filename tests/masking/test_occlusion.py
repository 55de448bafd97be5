"""Occlusion: Captum's attributions, and windows that cover the image."""

import pytest
import torch

from masking import nets
from masking.explained import SEGMENTS, Patch, image
from robustcore.masking import MaskedModel, explain_occlusion, replaced
from robustcore.masking.explain.occlusion import windows


def test_it_finds_the_patch():
    result = explain_occlusion(Patch(), image(), 4, 4, target=1, progress=True)
    assert (result.attribution[SEGMENTS == 5] > 0.2).all()
    assert (result.attribution[SEGMENTS != 5] < 0).all()


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (5, 3), ((6, 3), (4, 2)), (7, 7), (16, 16)])
def test_the_attribution_is_that_of_captum(size, stride):
    """Of a network with strides and padding; the mask is what Captum occludes."""
    captum = pytest.importorskip("captum.attr", exc_type=ImportError)
    model = MaskedModel(nets.build("bottlenecks"))
    x = nets.image(1, 16)
    result = explain_occlusion(model, x[0], size, stride, target=1, batch_size=5)
    size, stride = ((v, v) if isinstance(v, int) else v for v in (size, stride))
    attribution = captum.Occlusion(lambda mask, x: model(x, mask).softmax(1)).attribute(
        x.new_ones(1, 1, 16, 16),
        sliding_window_shapes=(1, *size),
        strides=(1, *stride),
        baselines=0,
        target=1,
        additional_forward_args=(x,),
    )
    # Captum adds up in float32.
    torch.testing.assert_close(result.attribution, attribution[0, 0].double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("length", "side", "step"), [(10, 3, 2), (10, 3, 3), (4, 9, 5), (7, 1, 1)])
def test_windows(length, side, step):
    covered = windows(length, side, step)
    assert covered.any(0).all()
    assert covered.any(1).all()
    assert len(covered) == len(
        [at for at in range(0, length, step) if at == 0 or at - step + side < length]
    )
    assert all(int(row.float().argmax()) == i * step for i, row in enumerate(covered))


def test_another_way_to_hide():
    result = explain_occlusion(replaced(Patch(), 0.5), image(), 8, 8, target=1)
    grey = image()[None].clone()
    grey[:, :, 8:, :8] = 0.5
    whole, hidden = Patch()(torch.cat([image()[None], grey])).double().softmax(1)[:, 1]
    assert float(result.attribution[12, 3]) == pytest.approx(float(whole - hidden), rel=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="stride: got 5, want at most the size, 4"):
        explain_occlusion(Patch(), image(), 4, 5)
    with pytest.raises(ValueError, match="size: got 0"):
        explain_occlusion(Patch(), image(), 0)
