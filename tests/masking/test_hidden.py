"""Nothing hidden has any influence, whatever a network does with its pixels and tokens."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from masking import nets
from robustcore.masking import MaskedModel, UnsupportedOperation
from testing import assert_same


class Layer(nn.Module):
    """f(modules, x) of a map ``[N, 6, 10, 10]``."""

    def __init__(self, f, *modules):
        super().__init__()
        self.f, self.modules_ = f, nn.ModuleList(modules)

    def forward(self, x):
        return self.f(*self.modules_, x)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def attend(t):
    return (t @ t.transpose(1, 2)).softmax(-1) @ t


def windows(x, order):
    return x.reshape(x.shape[0], 6, 2, 5, 2, 5).permute(*order).flatten(0, 2).flatten(1, 2)


def linear_attention(to_qkv, x):
    q, k, v = (functional.elu(t) + 1 for t in to_qkv(tokens(x)).chunk(3, -1))
    return ((q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1)[..., None] + 1e-6)).mean(1)


def channel_attention(to_qkv, x):
    q, k, v = (t.transpose(1, 2) for t in to_qkv(tokens(x)).chunk(3, -1))
    q, k = (functional.normalize(t, dim=2) for t in (q, k))
    return ((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(2)


def seen_by_class_tokens(layer, x):
    t = torch.cat([x.new_ones(x.shape[0], 2, 6), tokens(x)], 1)
    return layer(t)[:, :2].mean(1)


def merged(norm, layer, x):
    """Swin's: four pixels become one."""
    t = x.permute(0, 2, 3, 1)
    parts = [t[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return layer(norm(torch.cat(parts, -1))).mean((1, 2))


def chosen(layer, x):
    """Selective kernels: branches weighed by a softmax over them."""
    branches = torch.stack([x, layer(x)], 1)
    weights = branches.mean((3, 4)).softmax(1)
    return (branches * weights[..., None, None]).sum(1)


def pyramid(x):
    pools = [functional.adaptive_max_pool2d(x - 5, k).flatten(1) for k in (1, 2, 5)]
    return torch.cat(pools, 1)


def multihead(attention, x):
    return attention(tokens(x), tokens(x), tokens(x))[0].mean(1)


def in_sequence(attention, x):
    t = x.flatten(2).permute(2, 0, 1)
    return attention(t, t, t, need_weights=False)[0].mean(0)


def coordinate_attention(conv, x):
    """Means of rows and of columns, seen together, gate the pixels."""
    rows, columns = x[..., :8].mean(3, True), x[..., :8].mean(2, True).transpose(2, 3)
    rows, columns = conv(torch.cat([rows, columns], 2)).sigmoid().split([10, 8], 2)
    return x[..., :8] * rows * columns.transpose(2, 3)


def encoder():
    return nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True)


LAYERS = {
    "tokens as a batch": lambda: Layer(
        lambda n, f, x: f(n(x.permute(0, 2, 3, 1).reshape(-1, 6))).view(-1, 100, 4).amax(1),
        nn.BatchNorm1d(6), nn.Linear(6, 4)),
    "channels as a batch": lambda: Layer(
        lambda c, x: c(x.reshape(-1, 1, 10, 10)).reshape(x.shape[0], 6, 10, 10),
        nn.Conv2d(1, 1, 3, padding=1)),
    "attention to pixels": lambda: Layer(
        lambda c, x: (c(x).flatten(2).softmax(-1) * x.flatten(2)).sum(-1), nn.Conv2d(6, 1, 1)),
    "windows": lambda: Layer(
        lambda x: attend(windows(x, (0, 2, 4, 3, 5, 1))).reshape(x.shape[0], -1, 6).mean(1)),
    "a grid": lambda: Layer(
        lambda x: attend(windows(x, (0, 3, 5, 2, 4, 1))).reshape(x.shape[0], -1, 6).mean(1)),
    "rows": lambda: Layer(
        lambda x: attend(x.permute(0, 2, 3, 1).flatten(0, 1)).reshape(x.shape[0], -1, 6).amax(1)),
    "linear attention": lambda: Layer(linear_attention, nn.Linear(6, 18)),
    "channel attention": lambda: Layer(channel_attention, nn.Linear(6, 18)),
    "class tokens": lambda: Layer(seen_by_class_tokens, encoder()),
    "multihead attention": lambda: Layer(multihead, nn.MultiheadAttention(6, 2, batch_first=True)),
    "the same in sequence": lambda: Layer(in_sequence, nn.MultiheadAttention(6, 2)),
    "causal": lambda: Layer(lambda x: functional.scaled_dot_product_attention(
        tokens(x), tokens(x), tokens(x), is_causal=True).mean(1)),
    "a mixer": lambda: Layer(lambda f, x: f(x.flatten(2)), nn.Linear(100, 7)),
    "a gate of tokens": lambda: Layer(
        lambda f, x: x.flatten(2).chunk(2, 1)[0] * f(x.flatten(2).chunk(2, 1)[1]),
        nn.Linear(100, 100)),
    "merged patches": lambda: Layer(merged, nn.LayerNorm(24), nn.Linear(24, 4)),
    "branches chosen": lambda: Layer(chosen, nn.Conv2d(6, 6, 3, padding=1)),
    "a norm over space": lambda: Layer(lambda n, x: n(x), nn.LayerNorm([10, 10])),
    "a norm of tokens": lambda: Layer(lambda n, x: n(x.flatten(2)).mean(2), nn.GroupNorm(2, 6)),
    "a pyramid": lambda: Layer(pyramid),
    "a maximum, flattened": lambda: Layer(lambda x: (x - 5).flatten(2).max(2)[0]),
    "a maximum of all": lambda: Layer(lambda x: functional.max_pool2d(x.abs().neg() - 1, 10)),
    "a generalized mean": lambda: Layer(lambda x: x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)),
    "squeezed from a mean": lambda: Layer(
        lambda c, x: x * c(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1)).sigmoid(),
        nn.Conv2d(2, 1, 7, padding=3)),
    "products": lambda: Layer(
        lambda x: torch.einsum("nchw,nkhw->nck", x, x).flatten(1)),
    "products, unsaid": lambda: Layer(lambda x: torch.einsum("...hw,...hw->...h", x, x)),
    "clusters": lambda: Layer(
        lambda f, x: f(tokens(x)).softmax(-1).transpose(1, 2) @ tokens(x), nn.Linear(6, 3)),
    "patches": lambda: Layer(
        lambda f, x: functional.unfold(x, 3, padding=1).transpose(1, 2) @ f.weight.T,
        nn.Linear(54, 4)),
    "a leaky choice": lambda: Layer(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "a gate of channels": lambda: Layer(lambda x: functional.glu(x, 1)),
    "sums along channels": lambda: Layer(lambda x: x.cumsum(1)),
    "the largest channels": lambda: Layer(lambda x: x.topk(3, 1)[0]),
    "channels by number": lambda: Layer(lambda x: x.index_select(1, torch.tensor([4, 0]))),
    "resized to its size": lambda: Layer(lambda c, x: c(torch.cat([x, functional.interpolate(
        functional.max_pool2d(x, 2), size=x.shape[2:], mode="bilinear")], 1)),
        nn.Conv2d(12, 4, 3, padding=1)),
    "made smaller": lambda: Layer(
        lambda x: functional.interpolate(x, scale_factor=0.3, mode="bilinear")),
    "a deviation": lambda: Layer(lambda x: x.std((2, 3))),
    "a deviation and a mean": lambda: Layer(
        lambda x: sum(torch.var_mean(x, (2, 3), correction=0, keepdim=True)) * x),
    "a deviation of tokens": lambda: Layer(lambda f, x: f(tokens(x)).var(1), nn.Linear(6, 6)),
    "a soft maximum": lambda: Layer(lambda x: x.logsumexp((2, 3))),
    "products of rows": lambda: Layer(lambda x: x.prod(2, keepdim=True) * x),
    "coordinate attention": lambda: Layer(coordinate_attention, nn.Conv2d(6, 6, 1)),
    "coordinates": lambda: Layer(
        lambda c, x: c(torch.cat([x, x.new_ones(x.shape[0], 1, 10, 10).cumsum(3)], 1)),
        nn.Conv2d(7, 4, 3, padding=1)),
}  # fmt: skip


def case(layer):
    torch.manual_seed(0)
    model = nets.randomized(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), layer))
    x, mask = nets.image(3, 10), nets.blocks(3, 10, 3, 0.5)
    mask[2] = 0
    mask[2, :, 3:5, 3:7] = 1
    return model, x, mask


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_content_has_no_influence(name):
    model, x, mask = case(LAYERS[name]())
    masked, hidden = MaskedModel(model), (mask == 0).expand_as(x)
    with torch.no_grad():
        want = model(x)
        got = masked(x, mask)
        assert got.isfinite().all()
        assert not torch.equal(got, want)
        # Attention whose implementation changes with a mask is near.
        near = dict(rtol=0, atol=1e-12)
        torch.testing.assert_close(masked(x, torch.ones_like(mask)), want, **near)
        torch.testing.assert_close(masked(x, torch.ones(1, 1, 10, 10)), want, **near)
        for other in (torch.nan, torch.inf, 1e30):
            assert_same(masked(x.masked_fill(hidden, other), mask), got)
        # Alone, tokens may really be left out; the published mean divides by a share + 1e-8.
        alone = torch.cat([masked(x[i : i + 1], mask[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, got, rtol=1e-6, atol=1e-6)
    for n in (3, 1):
        leaf = x.masked_fill(hidden, torch.nan)[:n].requires_grad_()
        model.zero_grad()
        masked(leaf, mask[:n]).square().sum().backward()
        assert (leaf.grad[hidden[:n]] == 0).all()
        assert leaf.grad.isfinite().all()
        assert (leaf.grad != 0).any()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def turned(f):
    """f of the map with the batch as its last dimension."""
    return lambda x: f(x.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)


def batch_attention(x):
    t = tokens(x).transpose(0, 1)
    return functional.scaled_dot_product_attention(t, t, t).transpose(0, 1)


MIXING = {
    "softmax": lambda x: x.softmax(0),
    "layer_norm": turned(lambda t: functional.layer_norm(t, (t.shape[-1],))),
    "group_norm": lambda x: functional.group_norm(x.transpose(0, 1), 1).transpose(0, 1),
    "matmul": lambda x: x.flatten(2).permute(2, 1, 0) @ x.flatten(2).permute(2, 0, 1),
    "einsum": lambda x: torch.einsum("nchw,mchw->nchw", x, x),
    "einsum of all": lambda x: x * torch.einsum("nchw,nchw", x, x),
    "scaled_dot_product_attention": batch_attention,
    "avg_pool1d": lambda x: functional.avg_pool1d(x.flatten(2).permute(2, 1, 0), 3, 1, 1),
    "cumsum": lambda x: x.cumsum(0),
    "sort": lambda x: x.sort(0)[0],
    "glu": lambda x: functional.glu(torch.cat([x, x], 0), 0),
    "linalg_vector_norm": lambda x: functional.normalize(x, dim=0),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_refused(name):
    """What one sample hides another may show."""
    model, x, _ = case(Layer(MIXING[name]))
    with pytest.raises(UnsupportedOperation, match=rf"\({name.split()[0]} .*mixes the samples"):
        MaskedModel(model, x)
