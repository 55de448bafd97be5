"""ops.spatial_warp on the published grid of 775 poses against a grid tensor and grid_sample."""

import pytest
import torch
from torch.nn import functional

from robustcore import attacks, ops


def grids(poses, side):
    """``[P, 2, 3]`` for affine_grid: the same poses."""
    turn, shift = poses[:, 0].deg2rad(), poses[:, 1:]
    c, s = turn.cos(), turn.sin()
    down, right = (-2 * shift / side).unbind(1)
    rows = torch.stack([c, -s, c * right - s * down]), torch.stack([s, c, s * right + c * down])
    return torch.stack(rows).permute(2, 0, 1)


def sampled(x, poses):
    theta = grids(poses, x.shape[-1])
    grid = functional.affine_grid(theta, (len(poses), *x.shape[1:]), align_corners=False)
    return functional.grid_sample(x.expand(len(poses), -1, -1, -1), grid, align_corners=False)


@pytest.mark.parametrize("impl", ["robustcore", "eager"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224)], ids=str)
def test_grid_of_poses(shape, impl, measure, device):
    torch.manual_seed(0)
    x = torch.rand(1, *shape, device=device)
    poses = attacks.Spatial(lambda x: x).poses().to(device)
    fn = {
        "robustcore": lambda: ops.spatial_warp(x, poses[:, 0], poses[:, 1:]),
        "eager": lambda: sampled(x, poses),
    }[impl]
    expected = ops.spatial_warp(x, poses[:, 0], poses[:, 1:])[0]
    torch.testing.assert_close(sampled(x, poses), expected, rtol=0, atol=2e-4)
    measure(f"775 poses of {' x '.join(map(str, shape))}", impl, fn)
