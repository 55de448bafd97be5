"""CropSelection: every circular shift of small images, ties and all, by brute force."""

import itertools

import pytest
import torch
from torch import nn

from robustcore.smoothing import CropSelection


def all_shifts(x):
    for dy, dx in itertools.product(range(x.shape[2]), range(x.shape[3])):
        yield (dy, dx), x.roll((dy, dx), (2, 3))


def identity(crops):
    return crops


IMAGES = {
    "noise": torch.rand(3, 3, 9, 13, generator=torch.Generator().manual_seed(0)),
    "few levels": (torch.rand(4, 1, 6, 7, generator=torch.Generator().manual_seed(1)) * 2).round(),
    "one pixel": torch.zeros(1, 2, 7, 5).index_fill_(3, torch.tensor([2]), 0.0),
    "black": torch.zeros(1, 1, 6, 6),
    "stripes": torch.arange(12.0).remainder(3).expand(1, 2, 10, 12).contiguous(),
    "checkers": (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, None],
    "half": torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(2)).half(),
}
IMAGES["one pixel"][0, 1, 3, 4] = 0.7


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [1, (3, 4), (6, 5)])
def test_every_circular_shift_gives_the_same_crop_to_the_bit(name, size):
    x, select = IMAGES[name], CropSelection(identity, size)
    expected = select(x)
    for shift, shifted in all_shifts(x):
        assert torch.equal(select(shifted), expected), shift


@pytest.mark.parametrize("size", [(3, 4), 5])
def test_is_a_crop_of_most_energy(size):
    x = IMAGES["noise"].double()
    h, w = (size, size) if isinstance(size, int) else size
    for circular in (True, False):
        crops = CropSelection(identity, size, circular=circular)(x)
        for image, crop in zip(x, crops, strict=True):
            best = max(candidates(image, h, w, circular), key=lambda c: float(energy(c)))
            assert torch.equal(best, crop)


def candidates(image, h, w, circular):
    _, height, width = image.shape
    wide = torch.cat([image, image], 1)
    wide = torch.cat([wide, wide], 2)
    rows = height if circular else height - h + 1
    columns = width if circular else width - w + 1
    return [wide[:, r : r + h, c : c + w] for r in range(rows) for c in range(columns)]


def energy(crop):
    return crop.diff(dim=1).square().sum() + crop.diff(dim=2).square().sum()


def test_a_camera_that_moves():
    """While the chosen crop stays inside, the frames of a larger scene give the same one."""
    scene = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.1
    scene[:, :, 8:13, 9:13] = torch.rand(1, 3, 5, 4)
    select = CropSelection(identity, 6, circular=False)
    crops = [select(scene[:, :, r : r + 12, c : c + 12]) for r in range(3, 6) for c in range(3, 6)]
    for crop in crops:
        assert torch.equal(crop, crops[0])


def test_gradient_goes_through_the_crop():
    x = IMAGES["noise"].clone().requires_grad_()
    CropSelection(nn.Flatten(), 4)(x).sum().backward()
    assert (x.grad.flatten(1).sum(1) == 3 * 16).all()


def test_nan_and_empty():
    x = IMAGES["noise"].clone()
    x[0, 0, 2, 2] = float("nan")
    assert CropSelection(identity, 3)(x).shape == (3, 3, 3, 3)
    assert CropSelection(identity, 3)(x[:0]).shape == (0, 3, 3, 3)


def test_errors():
    with pytest.raises(TypeError, match="model: got int"):
        CropSelection(3, 4)
    with pytest.raises((TypeError, ValueError), match="size: got"):
        CropSelection(identity, 0)
    with pytest.raises(ValueError, match="x: got images of 3 x 9, want at least 4 x 4"):
        CropSelection(identity, 4)(torch.rand(1, 1, 3, 9))
    with pytest.raises(ValueError, match=r"x: got shape \[3, 9, 9\]"):
        CropSelection(identity, 4)(torch.rand(3, 9, 9))
