"""The spatial attack: its poses, the worst of them, what it leaves to training."""

import pytest
import torch

from attacks.models import Linear, conv_net, images, labelled
from robustcore import attacks, ops


def brute_force(model, x, y, poses):
    """The margin ``[B, P]`` of every pose."""
    made = ops.spatial_warp(x, poses[:, 0], poses[:, 1:])
    with torch.no_grad():
        logits = model(made.flatten(0, 1)).unflatten(0, made.shape[:2])
    own = logits.gather(2, y.view(-1, 1, 1).expand(-1, len(poses), 1)).squeeze(2)
    others = logits.scatter(2, y.view(-1, 1, 1).expand(-1, len(poses), 1), -torch.inf).amax(2)
    return others - own


def test_the_grid_is_the_published_one():
    poses = attacks.Spatial(Linear()).poses()
    assert poses.shape == (775, 3)
    assert len(poses.unique(dim=0)) == 775
    assert poses[:, 0].unique().tolist() == torch.linspace(-30, 30, 31).tolist()
    assert poses[:, 1].unique().tolist() == [-3, -1.5, 0, 1.5, 3]
    assert (poses == 0).all(1).sum() == 1
    assert attacks.Spatial(Linear(), angles=1, shifts=1).poses().tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_the_worst_pose_of_the_grid(batch_size):
    model = Linear()
    x, y = labelled(model, 30)
    attack = attacks.Spatial(
        model, 12, 0.4, angles=5, shifts=3, loss="margin", batch_size=batch_size
    )
    margins = brute_force(model, x, y, attack.poses())
    made = attack.run(x, y)
    assert torch.equal(made.success, (margins > 0).any(1))
    assert 3 < made.success.sum() < 27
    assert torch.equal(made.loss[~made.success], margins.amax(1)[~made.success])
    first = (margins > 0).int().argmax(1)
    poses = attack.poses()
    for b in range(30):
        worst = first[b] if made.success[b] else margins[b].argmax()
        pose = poses[worst : worst + 1]
        want = ops.spatial_warp(x[b : b + 1], pose[:, 0], pose[:, 1:])[0, 0]
        assert torch.equal(made.images[b], want.clamp(0, 1))
    assert made.queries[~made.success].tolist() == [1 + len(poses)] * int((~made.success).sum())
    assert made.queries[made.success].tolist() == (first + 2)[made.success].tolist()


def test_random_poses_are_an_images_own():
    model = Linear()
    x, y = labelled(model, 30)
    options = dict(search="random", tries=6, seed=3, loss="margin")
    whole = attacks.Spatial(model, 10, 0.5, **options).run(x, y)
    part = attacks.Spatial(model, 10, 0.5, batch_size=4, **options).run(x[20:], y[20:], 20)
    assert torch.equal(part.images, whole.images[20:])
    other = attacks.Spatial(model, 10, 0.5, **{**options, "seed": 4}).run(x, y)
    assert not torch.equal(other.images, whole.images)
    more = attacks.Spatial(model, 10, 0.5, **{**options, "tries": 60}).run(x, y)
    assert torch.equal(more.images[whole.success], whole.images[whole.success])
    assert more.success.sum() > whole.success.sum()
    still = attacks.Spatial(model, 0, 0, **options).run(x, y)
    assert torch.equal(still.images, x)


def test_random_poses_are_uniform():
    seen = []

    def model(x):
        """Of an image with two bright pixels: where they are."""
        seen.append(x)
        return torch.zeros(len(x), 2)

    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    attacks.Spatial(model, 0, 8, search="random", tries=2000, seed=0).run(x, torch.tensor([0]))
    made = torch.cat([batch for batch in seen if len(batch) > 1])[:, 0]
    total = made.sum((1, 2))
    down = (made.sum(2) * torch.arange(41)).sum(1) / total - 20
    right = (made.sum(1) * torch.arange(41)).sum(1) / total - 20
    for shift in (down, right):
        assert shift.abs().max() <= 8
        assert abs(shift.mean()) < 0.4
        assert abs(shift.std() - 8 / 3**0.5) < 0.2
    assert abs(torch.corrcoef(torch.stack([down, right]))[0, 1]) < 0.1


def test_training_takes_the_worst_of_k():
    model = conv_net()
    x, y = images(), torch.arange(12) % 5
    attack = attacks.Spatial(model, 30, 1, search="random", tries=5, seed=0)
    loss = attacks.adversarial_training_loss(model, x, y, attack)
    expected = torch.nn.functional.cross_entropy(model(attack(x, y)), y)
    assert torch.equal(loss, expected)
    assert loss > torch.nn.functional.cross_entropy(model(x), y)


def test_targeted_and_bad_input():
    model = Linear()
    x, y = labelled(model, 20)
    made = attacks.Spatial(model, 180, 1, targeted=True).run(x, (y + 1) % 5)
    assert made.success.any()
    assert torch.equal(made.prediction == (y + 1) % 5, made.success)
    for name, value in (("max_angle", -1), ("search", "all"), ("angles", 0), ("tries", 0)):
        with pytest.raises(ValueError, match=f"{name}: got"):
            attacks.Spatial(model, **{name: value})
