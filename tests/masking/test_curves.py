"""Accuracy against the hidden fraction, ways to hide, and the pictures."""

import itertools

import pytest
import torch
from torch import nn

from masking import nets
from masking.explained import SEGMENTS, OneLogit, Patch, image
from robustcore.masking import (
    curves,
    explain_lime,
    explain_occlusion,
    insertion_deletion,
    masked_accuracy_curve,
    replaced,
)


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
    order = curves._block_order(images, 8, 0)
    masks = [curves._hide(order, f, 8, images) for f in (0, 0.25, 0.5, 1)]
    assert masks[0].all()
    assert not masks[-1].any()
    for more, less in itertools.pairwise(masks):
        assert (less <= more).all()
    assert not torch.equal(masks[1][0], masks[1][1])


def test_one_logit_has_no_largest():
    """A network with one logit gave class 0 whatever it said: 1.0 unchanged, no entropy."""
    torch.manual_seed(0)
    images = torch.randn(6, 1, 8, 8)
    labels = (OneLogit()(images)[:, 0] > 0).long()
    assert 0 < labels.sum() < 6
    options = {"block": 4, "fractions": [0, 0.5], "progress": False}
    with pytest.raises(ValueError, match="model: gave one logit an image"):
        masked_accuracy_curve(OneLogit(), images, labels, **options)
    two = masked_accuracy_curve(
        OneLogit(), images, labels, output=lambda y: torch.cat([-y, y], 1), **options
    )
    assert two.accuracy["layer masking"][0] == 1


def test_logits_that_are_no_number():
    class Broken(Patch):
        def forward(self, x):
            return super().forward(x) / 0 * 0

    with pytest.raises(ValueError, match="model: gave nan"):
        masked_accuracy_curve(
            Broken(), torch.ones(2, 1, 8, 8), torch.zeros(2).long(), progress=False
        )


def test_a_dict_of_logits():
    class Named(Patch):
        def forward(self, x):
            return {"logits": super().forward(x)}

    images, labels = torch.randn(4, 1, 8, 8), torch.zeros(4).long()
    options = {"block": 4, "progress": False}
    with pytest.raises(TypeError, match="model: gave dict"):
        masked_accuracy_curve(Named(), images, labels, **options)
    named = masked_accuracy_curve(
        Named(), images, labels, output=lambda y: y["logits"], **options,
        fills={"grey": replaced(Named(), 0.5)},
    )  # fmt: skip
    plain = masked_accuracy_curve(
        Patch(), images, labels, **options, fills={"grey": replaced(Patch(), 0.5)}
    )
    assert named == plain


# ---- ways to hide --------------------------------------------------------------------------------


def shown(x, mask, value):
    return replaced(nn.Identity().eval(), value)(x, mask)


def test_replaced():
    x = torch.rand(1, 3, 4, 4)
    mask = torch.rand(5, 1, 4, 4) < 0.5
    for value, fill in (
        (0.25, torch.full((3, 1, 1), 0.25)),
        ([0.1, 0.2, 0.3], torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)),
        (torch.arange(48.0).view(3, 4, 4), torch.arange(48.0).view(3, 4, 4)),
    ):
        want = torch.where(mask, x, fill)
        assert torch.equal(shown(x, mask, value), want)
        assert torch.equal(shown(x, mask.float(), value), want)


def test_replaced_by_weight():
    """With a value of 0 the image is multiplied by its mask, and what is hidden does not pass."""
    x, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(shown(x, mask, 0.0), x * mask)
    torch.testing.assert_close(shown(x, mask, 0.5), x * mask + 0.5 * (1 - mask))
    x[0, 0, 0, 0], mask[0, 0, 0, 0] = torch.nan, 0
    assert shown(x, mask, 0.5)[0, 0, 0, 0] == 0.5
    mask[0, 0, 1, 1] = 1
    assert torch.equal(shown(x, mask, 1e30)[0, :, 1, 1], x[0, :, 1, 1])


def test_replaced_bad_input():
    with pytest.raises(ValueError, match=r"value: got shape \[2, 2\]"):
        replaced(Patch(), [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"value: got shape \[1, 2, 1, 1\], want one that broad"):
        replaced(Patch(), [1, 2])(image()[None], torch.ones(1, 1, 16, 16))
    with pytest.raises(ValueError, match="model: is in training mode"):
        replaced(Patch().train(), 1)(image()[None], torch.ones(1, 1, 16, 16))


# ---- pictures and bad input ----------------------------------------------------------------------


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    explain_lime(Patch(), image(), SEGMENTS, 50).plot(tmp_path / "lime.png")
    explain_occlusion(Patch(), image(), 4, 4).plot(tmp_path / "occlusion.png")
    insertion_deletion(Patch(), image(), torch.rand(16, 16)).plot(tmp_path / "game.png")
    images = nets.image(2, 16)[:, :1].float()
    curves = masked_accuracy_curve(Patch(), images, torch.zeros(2, dtype=torch.int64), block=4)
    curves.plot(tmp_path / "curve.png")
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_input():
    images, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels: got shape \[1\], want \[2\]"):
        masked_accuracy_curve(Patch(), images, labels[:1])
    with pytest.raises(ValueError, match="fractions: got 2"):
        masked_accuracy_curve(Patch(), images, labels, fractions=[2])
    with pytest.raises(ValueError, match="fills: got 'layer masking', which is the name"):
        masked_accuracy_curve(
            Patch(), images, labels, fills={"layer masking": replaced(Patch(), 0)}
        )
