"""Hidden tokens are absent: against the network run on the visible ones alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from masking import nets
from robustcore.masking import MaskedModel
from testing import assert_same


class Attention(nn.Module):
    """Of [N, T, C]; ``bias``: relative positions, as BEiT; ``fused``: torch's one operation."""

    def __init__(self, width, tokens, fused, bias):
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), fused
        self.bias = nn.Parameter(torch.randn(2, tokens, tokens)) if bias else None

    def forward(self, x, keep=None):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias
        if bias is not None and keep is not None:
            bias = bias[:, keep][:, :, keep]
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = (q * (c // 2) ** -0.5) @ k.transpose(-2, -1)
            y = (scores if bias is None else scores + bias).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class ViT(nn.Module):
    """Images [N, 3, 16, 16] to [N, 5], patches of 4; ``classes``: class tokens, 0: a mean."""

    def __init__(self, classes=1, fused=True, bias=False, width=12):
        super().__init__()
        self.patch, self.classes = nn.Conv2d(3, width, 4, 4), classes
        self.token = nn.Parameter(torch.randn(1, classes, width))
        self.position = nn.Parameter(torch.randn(1, classes + 16, width))
        self.blocks = nn.ModuleList(
            nn.ModuleList([
                nn.LayerNorm(width), Attention(width, classes + 16, fused, bias),
                nn.LayerNorm(width),
                nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)),
            ])
            for _ in range(3)
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x, keep=None):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        if keep is not None:  # the visible tokens alone
            x = x[:, keep]
        for norm, attention, norm2, mlp in self.blocks:
            x = x + attention(norm(x), keep)
            x = x + mlp(norm2(x))
        x = self.norm(x)
        return self.head(x[:, : self.classes].mean(1) if self.classes else x.mean(1))


KINDS = [
    dict(), dict(fused=False), dict(classes=2), dict(classes=0, fused=False), dict(bias=True),
    dict(bias=True, fused=False),
]  # fmt: skip


def vit(**options):
    torch.manual_seed(0)
    return ViT(**options).eval()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_equals_the_network_on_the_visible_tokens(options):
    model, x = vit(**options), nets.image(4, 16, dtype=torch.float32)
    mask = nets.blocks(4, 16, 4, 0.5, dtype=torch.float32)
    masked = MaskedModel(model)
    with torch.no_grad():
        got = masked(x, mask)
        for i, m in enumerate(mask):
            shown = m[0, ::4, ::4].flatten().nonzero().flatten() + model.classes
            keep = torch.cat([torch.arange(model.classes), shown])
            torch.testing.assert_close(got[i : i + 1], model(x[i : i + 1], keep), rtol=0, atol=1e-5)
        hidden = torch.where(mask > 0, x, torch.nan)
        assert_same(masked(hidden, mask), got)
        ones = masked(x, torch.ones_like(mask))
        torch.testing.assert_close(ones, model(x), rtol=0, atol=1e-5)
        one = torch.cat([masked(x[:1], m[None]) for m in mask])
        torch.testing.assert_close(masked(x[:1], mask), one, rtol=0, atol=1e-5)


def flops(f):
    """Of layers; torch does not count those of every implementation of attention."""
    with FlopCounterMode(display=False) as counter:
        f()
    counts = counter.get_flop_counts()["Global"]
    return counts[torch.ops.aten.addmm] + counts.get(torch.ops.aten.mm, 0)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_tokens_that_a_batch_hides_are_left_out(options):
    """Batch of one, an expanded mask, equal rows, segments: as the same mask beside another."""
    model, x = vit(**options), nets.image(3, 16, dtype=torch.float32)
    mask = nets.blocks(1, 16, 4, 0.5, dtype=torch.float32, seed=1)
    share = float(mask.mean())
    masked, other = MaskedModel(model), torch.ones_like(mask)
    segments = (mask[0, 0] == 0).long()
    with torch.no_grad():
        mixed = torch.cat([mask, mask, other])
        want, plain = masked(x, mixed)[:2], flops(lambda: model(x))
        assert flops(lambda: masked(x, mixed)) == plain
        ways = {
            "one": lambda: masked(x[:2], mask),
            "expanded": lambda: masked(x[:2], mask.expand(2, -1, -1, -1)),
            "equal rows": lambda: masked(x[:2], mask.bool().repeat(2, 1, 1, 1)),
            "batches of one": lambda: masked(x[:2], torch.cat([mask, mask]), batch_size=1),
            "segments": lambda: masked(
                x[:2], segments=segments, z=torch.tensor([[True, False]] * 2)
            ),
        }
        for name, way in ways.items():
            torch.testing.assert_close(way(), want, rtol=0, atol=1e-5, msg=name)
            assert flops(way) <= 2 / 3 * plain * (share + 0.07), name  # 0.07: a class token
        hidden = torch.where(mask > 0, x, torch.nan)
        assert_same(masked(hidden, mask), masked(x, mask))
        assert_same(masked(x, other), model(x))
        many = masked(x[:1], mask.expand(3, -1, -1, -1))
        torch.testing.assert_close(many, want[:1].expand(3, -1), rtol=0, atol=1e-5)


def test_nothing_shared_is_visible():
    model, x = vit(), nets.image(2, 16, dtype=torch.float32)
    masked, nothing = MaskedModel(model), torch.zeros(1, 1, 16, 16)
    with torch.no_grad():
        want = model(x, torch.tensor([0]))  # the class token alone
        torch.testing.assert_close(masked(x, nothing), want, rtol=0, atol=1e-5)
    model = vit(classes=0)
    with torch.no_grad():
        assert_same(MaskedModel(model)(x, nothing), model.head.bias.expand(2, -1).clone())


def test_gradients_where_tokens_are_left_out():
    model, x = vit(bias=True, fused=False), nets.image(2, 16, dtype=torch.float32)
    mask = nets.blocks(1, 16, 4, 0.5, dtype=torch.float32)
    grads = []
    for given in (mask, torch.cat([mask, torch.ones_like(mask)])):  # shared; not
        leaf = torch.where(mask > 0, x, torch.nan)[:1].expand(len(given), -1, -1, -1)
        leaf = leaf.nan_to_num() if len(given) > 1 else leaf
        leaf = leaf.clone().requires_grad_()
        model.zero_grad()
        MaskedModel(model)(leaf, given)[0].square().sum().backward()
        grads.append([leaf.grad[:1], *(p.grad.clone() for p in model.parameters())])
    assert (grads[0][0][(mask == 0).expand(1, 3, -1, -1)] == 0).all()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Flat(nn.Module):
    """A layer of tokens that sees them as one batch, [N * T, C], as LeViT's BatchNorm does."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).reshape_as(x)


def test_tokens_that_were_part_of_the_batch_stay_hidden():
    model, x = vit(), nets.image(2, 16, dtype=torch.float32)
    for block in model.blocks:
        block[0] = Flat(12)
    model.eval()
    mask = nets.blocks(1, 16, 4, 0.5, dtype=torch.float32)
    shown = mask[0, 0, ::4, ::4].flatten().nonzero().flatten() + 1
    with torch.no_grad():
        want = model(x, torch.cat([torch.tensor([0]), shown]))
        torch.testing.assert_close(MaskedModel(model)(x, mask), want, rtol=0, atol=1e-5)


def test_a_token_is_visible_if_any_pixel_of_its_patch_is():
    model, x = vit(), nets.image(1, 16, dtype=torch.float32)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5, 6] = 1
    with torch.no_grad():
        got = MaskedModel(model)(x, mask)
        filled = x[..., 5:6, 6:7].expand(-1, -1, 4, 4)  # what a patch is filled with
        y = torch.zeros(1, 3, 16, 16)
        y[..., 4:8, 4:8] = filled
        torch.testing.assert_close(got, model(y, torch.tensor([0, 6])), rtol=0, atol=1e-4)


def test_the_gradient_is_0_under_the_mask():
    model, x = vit(), nets.image(2, 16, dtype=torch.float32)
    mask = nets.blocks(2, 16, 4, 0.5, dtype=torch.float32)
    x = torch.where(mask > 0, x, torch.nan).requires_grad_()
    MaskedModel(model)(x, mask).square().sum().backward()
    assert (x.grad[(mask == 0).expand_as(x)] == 0).all()
    assert (x.grad[(mask == 1).expand_as(x)] != 0).double().mean() > 0.9
    assert all(p.grad.isfinite().all() for p in model.parameters())
