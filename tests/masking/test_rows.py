"""Dense layers of what is hidden are left out, in windows and where every sample hides its own."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from masking import nets
from robustcore.masking import MaskedModel
from testing import assert_same

WIDTH = 96


class Block(nn.Module):
    """Attention in windows of 4 x 4 tokens, shifted by 2, and dense layers of each token."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.rand(WIDTH))
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        n, h, w, c = x.shape
        t = self.norm(x).roll((2, 2), (1, 2)).view(n, h // 4, 4, w // 4, 4, c)
        t = self.qkv(t.transpose(2, 3).reshape(-1, 16, c))
        q, k, v = t.view(-1, 16, 3, c).unbind(2)
        t = self.out((q @ k.mT / c**0.5).softmax(-1) @ v)
        t = t.view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
        x = x + t.roll((-2, -2), (1, 2)) * self.scale
        return x + self.mlp(x) * self.scale


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, WIDTH, 2, 2), nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x):
        t = self.blocks(self.patch(x).permute(0, 2, 3, 1))
        return self.head(self.norm(t).mean((1, 2)))


@pytest.fixture
def case():
    torch.manual_seed(0)
    model, x = Windows().double().eval(), nets.image(3, 32)
    mask = nets.blocks(3, 32, 4, 0.4, seed=1)
    return model, MaskedModel(model), x, mask


def dense_flops(f):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        f()
    return counter.get_flop_counts()["Global"][torch.ops.aten.addmm]


def test_the_work_falls_with_what_is_visible(case):
    model, masked, x, mask = case
    masked(x, mask)
    share, plain = float(mask.mean()), dense_flops(lambda: model(x))
    for given in (mask, mask[:1], mask.bool(), 0.5 * mask):
        own = share if len(given) > 1 else float(given.mean())
        ratio = dense_flops(lambda given=given: masked(x, given)) / plain
        assert ratio == pytest.approx(own, rel=0.01)
    # Copies of nearly all rows would take longer than the rows left out.
    assert dense_flops(lambda: masked(x, torch.ones_like(mask))) == plain


def test_the_result_is_that_of_all_rows(case, monkeypatch):
    _, masked, x, mask = case
    with torch.no_grad():
        got, soft = masked(x, mask), masked(x, 0.5 * mask)
        monkeypatch.setattr("robustcore.masking.calls.visible_rows", lambda mask, x: None)
        whole = MaskedModel(masked.model)
        torch.testing.assert_close(got, whole(x, mask), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(soft, whole(x, 0.5 * mask), rtol=1e-9, atol=1e-9)


def test_ones_nan_and_nothing(case):
    model, masked, x, mask = case
    mask[2] = 0
    with torch.no_grad():
        assert_same(masked(x, torch.ones_like(mask)), model(x))
        got = masked(x, mask)
        assert_same(masked(torch.where(mask > 0, x, torch.nan), mask), got)
        assert_same(got[2], model.head.bias.detach())
        assert_same(masked(x, torch.zeros(1, 1, 32, 32)), got[2:].expand(3, -1).clone())
        many = masked(x[:1], mask)
        torch.testing.assert_close(many[:1], got[:1])


def test_gradients(case, monkeypatch):
    model, masked, x, mask = case
    found = []
    for _ in range(2):
        leaf = torch.where(mask > 0, x, torch.nan).requires_grad_()
        (slope,) = torch.autograd.grad(masked(leaf, mask).square().sum(), leaf, create_graph=True)
        model.zero_grad()
        torch.where(mask > 0, slope, 0).square().sum().backward()
        assert (slope[(mask == 0).expand_as(x)] == 0).all()
        found.append([slope.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        monkeypatch.setattr("robustcore.masking.calls.visible_rows", lambda mask, x: None)
        masked = MaskedModel(model)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_values_that_cannot_be_looked_at(case):
    _, masked, x, mask = case
    with torch.no_grad():
        got = torch.vmap(lambda x, m: masked(x[None], m[None])[0])(x, mask.bool())
        torch.testing.assert_close(got, masked(x, mask))
