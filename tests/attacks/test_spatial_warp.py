"""ops.spatial_warp: quarter turns, whole pixels, torch's grid_sample, its transpose, layouts."""

import math

import pytest
import torch
from torch.nn import functional

from robustcore import ops
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

pytestmark = pytest.mark.kernel
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def images(*shape, dtype=torch.float32, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poses(n, seed=1, reach=5.0):
    generator = torch.Generator().manual_seed(seed)
    angles = 360 * torch.rand(n, generator=generator) - 180
    return angles, reach * (2 * torch.rand(n, 2, generator=generator) - 1)


def reference(x, angles, shifts):
    """By torch's grid_sample in float64: [B, P, C, H, W]."""
    h, w = x.shape[2:]
    made = []
    for angle, (down, right) in zip(angles.double(), shifts.double(), strict=True):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        i, j = torch.meshgrid(
            torch.arange(h).double() - (h - 1) / 2 - down,
            torch.arange(w).double() - (w - 1) / 2 - right,
            indexing="ij",
        )
        y, x_ = c * i + s * j + (h - 1) / 2, -s * i + c * j + (w - 1) / 2
        grid = torch.stack([(2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1], 2).expand(
            len(x), -1, -1, -1
        )
        made.append(functional.grid_sample(x.double().cpu(), grid, align_corners=False))
    return torch.stack(made, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 5, 9), (3, 2, 1, 1), (1, 4, 70, 3)])
def test_it_is_grid_sample(shape, dtype, device):
    x, (angles, shifts) = images(*shape, dtype=dtype), poses(9)
    got = ops.spatial_warp(x.to(device), angles.to(device), shifts.to(device))
    assert got.shape == (shape[0], 9, *shape[1:])
    assert got.dtype == dtype
    assert got.is_contiguous()
    want = reference(x, angles, shifts)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype)
    if tolerance is None:
        assert_close(got, want)
    else:
        assert (got.cpu().double() - want).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, 4, 7])
def test_quarter_turns_are_rot90(side, dtype, device):
    x = images(2, 3, side, side, dtype=dtype).to(device)
    angles = torch.tensor([90.0 * k for k in range(-8, 9)], device=device)
    got = ops.spatial_warp(x, angles)
    for k, pose in zip(range(-8, 9), got.unbind(1), strict=True):
        assert_same(pose, torch.rot90(x, k, (2, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_pixels_are_copies(dtype, device):
    x = images(2, 3, 6, 5, dtype=dtype).to(device)
    moves = [(down, right) for down in range(-6, 7) for right in (-5, -1, 0, 2, 5)]
    shifts = torch.tensor(moves, dtype=torch.float32, device=device)
    got = ops.spatial_warp(x, torch.zeros(len(moves), device=device), shifts)
    for (down, right), pose in zip(moves, got.unbind(1), strict=True):
        want = functional.pad(x, (right, -right, down, -down))
        assert_same(pose, want)


def test_poses_of_each_image(device):
    x = images(3, 2, 7, 7).to(device)
    angles, shifts = (t.to(device) for t in poses(12))
    together = ops.spatial_warp(x, angles, shifts)
    own = ops.spatial_warp(x, angles.view(3, 4), shifts.view(3, 4, 2))
    mixed = ops.spatial_warp(x, angles.view(3, 4), shifts[:4])
    for b in range(3):
        assert_same(own[b], together[b, 4 * b : 4 * b + 4])
        alone = ops.spatial_warp(x[b : b + 1], angles[4 * b : 4 * b + 4], shifts[:4])
        assert_same(mixed[b : b + 1], alone)


def test_out_of_sight_is_zero(device):
    x = images(1, 1, 4, 4).to(device) + 1
    far = torch.tensor([[1e30, 0], [0, -1e9], [torch.nan, 0], [torch.inf, 0], [4, 0], [0, -4.0]])
    got = ops.spatial_warp(x, torch.full((6,), 30.0, device=device) * 0, far.to(device))
    assert (got == 0).all()
    assert (ops.spatial_warp(x, torch.tensor([torch.nan], device=device)) == 0).all()
    grad = torch.ones(1, 6, 1, 4, 4, device=device)
    leaf = x.clone().requires_grad_()
    (back,) = torch.autograd.grad(ops.spatial_warp(leaf, far[:, 0] * 0, far.to(device)), leaf, grad)
    assert (back == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_backward_pass_is_the_transpose(dtype, device):
    x, (angles, shifts) = images(2, 3, 9, 12, dtype=dtype).to(device), poses(40)
    angles[:5] = torch.tensor([0.0, 90.0, 45.0, -45.0, 180.0])
    leaf = x.clone().requires_grad_()
    out = ops.spatial_warp(leaf, angles.to(device), shifts.to(device))
    v = images(*out.shape, dtype=dtype, seed=3).to(device)
    (back,) = torch.autograd.grad(out, leaf, v)
    basis = torch.eye(9 * 12, dtype=dtype).view(-1, 1, 9, 12).to(device)
    matrix = ops.spatial_warp(basis, angles.to(device), shifts.to(device)).squeeze(2).flatten(2)
    want = torch.einsum("bpco,qpo->bcq", v.double().flatten(3), matrix.double()).view_as(x)
    assert (back.double() - want).abs().max() < (1e-12 if dtype == torch.float64 else 2e-5)


def test_gradients(device):
    x = images(2, 2, 4, 5, dtype=torch.float64).to(device).requires_grad_()
    angles, shifts = (t.to(device) for t in poses(3, reach=1.0))
    check_gradients(lambda x: ops.spatial_warp(x, angles, shifts), x)
    single = torch.func.vmap(lambda one: ops.spatial_warp(one.unsqueeze(0), angles, shifts)[0])
    assert_same(single(x.detach()), ops.spatial_warp(x.detach(), angles, shifts))
    got = torch.func.grad(lambda x: ops.spatial_warp(x, angles, shifts).square().sum())(x.detach())
    (want,) = torch.autograd.grad(ops.spatial_warp(x, angles, shifts).square().sum(), x)
    assert_same(got, want)


def test_layouts_and_threads(device):
    x = images(2, 3, 6, 7).to(device)
    angles, shifts = (t.to(device) for t in poses(5))
    expected = ops.spatial_warp(x, angles, shifts)
    for laid in relayouts(x).values():
        assert_same(ops.spatial_warp(laid, angles, shifts), expected)
    for laid in relayouts(shifts).values():
        assert_same(ops.spatial_warp(x, angles, laid), expected)
    if device.type == "cpu":
        large = images(2, 3, 40, 150).requires_grad_()

        def both():
            out = ops.spatial_warp(large, angles, shifts)
            return torch.cat([out.flatten(), torch.autograd.grad(out.sum(), large)[0].flatten()])

        check_repeatable(both)


def test_instruction_sets_agree(simd):
    angles, shifts = poses(6)

    def run():
        for dtype in DTYPES:
            x = images(2, 3, 9, 71, dtype=dtype).requires_grad_()
            out = ops.spatial_warp(x, angles, shifts)
            yield out.detach()
            yield torch.autograd.grad(out, x, out.detach())[0]

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


def test_opcheck(device):
    x = images(2, 3, 6, 7).to(device)
    turns = torch.rand(1, 5, 4, device=device)
    utils = ["test_schema", "test_faketensor"]
    torch.library.opcheck(torch.ops.robustcore.warp_images.default, (x, turns), test_utils=utils)
    args = torch.rand(2, 5, 3, 6, 7, device=device), turns
    torch.library.opcheck(
        torch.ops.robustcore.warp_images_transposed.default, args, test_utils=utils
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile(device):
    x = images(2, 3, 6, 7).to(device)
    angles, shifts = (t.to(device) for t in poses(5))
    compiled = torch.compile(ops.spatial_warp, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    out = compiled(leaf, angles, shifts)
    assert_same(out, ops.spatial_warp(x, angles, shifts))
    out.sum().backward()
    assert leaf.grad.shape == x.shape


def test_nothing_in(device):
    angles = torch.zeros(3, device=device)
    assert ops.spatial_warp(torch.rand(0, 3, 4, 4, device=device), angles).shape == (0, 3, 3, 4, 4)
    x = torch.rand(2, 3, 4, 4, device=device, requires_grad=True)
    none = ops.spatial_warp(x, angles[:0])
    assert none.shape == (2, 0, 3, 4, 4)
    (grad,) = torch.autograd.grad(none.sum(), x)
    assert (grad == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.rand(3, 4, 4)}, "x: got shape"),
        ({"angles": torch.rand(2, 3, 4)}, "angles: got shape"),
        ({"angles": torch.rand(3, 5)}, "angles: got shape"),
        ({"angles": torch.rand(5, requires_grad=True)}, "angles: requires a gradient"),
        ({"shifts": torch.rand(5)}, "shifts: got shape"),
        ({"shifts": torch.rand(4, 2)}, "shifts: got shape"),
        ({"shifts": torch.rand(3, 5, 2)}, "shifts: got shape"),
        ({"shifts": torch.rand(5, 3)}, "shifts: got shape"),
    ],
)
def test_bad_input(change, message):
    given = dict(x=torch.rand(2, 3, 4, 4), angles=torch.rand(5), shifts=torch.rand(5, 2))
    with pytest.raises(ValueError, match=message):
        ops.spatial_warp(**{**given, **change})
