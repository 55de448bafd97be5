"""Logits of tokens, targets that are ignored, weights of tokens, heads of bfloat16, half models."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from density.test_transformers import PENALTIES, run, same
from robustcore import density, ops

IGNORED = -100


class Language(nn.Module):
    """Embeddings ``[N, T, D]`` to logits ``[N, T, K]``, each token seeing those before it."""

    def __init__(self, width=8, classes=11):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 12, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def features(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.body(x, mask, is_causal=True)

    def forward(self, x):
        return self.head(self.features(x))


def language(n=3, t=5):
    torch.manual_seed(0)
    model = Language().double()
    x, y = torch.randn(n, t, 8, dtype=torch.float64), torch.randint(11, (n, t))
    y[0, 2:] = IGNORED
    y[1, 0] = IGNORED
    return model, x, y


def by_hand(values, y, weights):
    kept = (y != IGNORED) * (1 if weights is None else weights)
    return (values * kept).sum(1) / kept.sum(1)


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_means_over_tokens(weighted):
    model, x, y = language()
    weights = torch.rand(3, 5, dtype=torch.float64) if weighted else None
    options = dict(target=y, token_weights=weights, reduction="none", p=1.0)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    kept = y.clamp(min=0)
    values = {
        "density": logits.logsumexp(-1),
        "gradient": cross_entropy(logits.transpose(1, 2), kept, reduction="none"),
    }
    for name, value in values.items():
        score = by_hand(value, y, weights)
        (g,) = torch.autograd.grad(score.sum(), leaf, retain_graph=True)
        got = PENALTIES[name](model, x, **options)
        torch.testing.assert_close(got.detach(), g.flatten(1).norm(p=1, dim=1))
    got = density.input_gradient_penalty(model, x, of="logit", **options)
    value = logits.gather(-1, kept.unsqueeze(-1)).squeeze(-1)
    (g,) = torch.autograd.grad(by_hand(value, y, weights).sum(), leaf)
    torch.testing.assert_close(got.detach(), g.flatten(1).norm(p=1, dim=1))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_of_a_language_model(penalty):
    model, x, y = language()
    got = run(PENALTIES[penalty], model, x, target=y)
    same(run(PENALTIES[penalty], model, x, "within", target=y), got)
    # What is ignored has no say.
    other = copy.deepcopy(model)
    hook = lambda module, inputs, out: out.masked_fill((y == IGNORED)[..., None], 3.0)  # noqa: E731
    other.head.register_forward_hook(hook)
    same(run(PENALTIES[penalty], other, x, target=y), got)
    default = run(PENALTIES[penalty], model, x)
    same(run(PENALTIES[penalty], model, x, target=model(x).argmax(-1)), default)


def test_samples_that_are_ignored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, IGNORED, 2, IGNORED])
    each = density.input_gradient_penalty(model, x, target=y, reduction="none")
    assert (each == 0).tolist() == [False, True, False, True]
    rest = density.input_gradient_penalty(model, x[::2], target=y[::2], reduction="none")
    torch.testing.assert_close(each[::2], rest)
    moved = density.input_gradient_penalty(
        model, x, target=y.where(y != IGNORED, 1), ignore_index=1, reduction="none"
    )
    torch.testing.assert_close(moved, each)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_cross_entropy_of_a_head(dtype):
    _, x, y = language()
    head = nn.Linear(8, 3000, dtype=torch.float64)
    inputs = [t.detach().to(dtype).requires_grad_() for t in (x, head.weight, head.bias)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y = y * 7
    y[y == 7 * IGNORED] = IGNORED
    count = (y != IGNORED).sum()

    def ours(x, weight, bias):
        lse, target = ops.linear_logsumexp(x, weight, bias, targets=y, dtype=torch.float64)
        return (lse - target).sum() / count

    def eager(x, weight, bias):
        return cross_entropy((x @ weight.T + bias).flatten(0, 1), y.flatten())

    results = []
    for loss, tensors in ((ours, inputs), (eager, wide)):
        value = loss(*tensors)
        grads = torch.autograd.grad(value, tensors, create_graph=True)
        second = torch.autograd.grad(grads[0].double().square().sum(), tensors)
        results.append([value.detach(), *grads, *second])
    for got, want in zip(*results, strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 0.02
        assert (got.double() - want).norm() <= tolerance * want.norm()
    assert (results[0][1][y == IGNORED] == 0).all()
    # float32 sums: no digit of a bfloat16 value is lost on the way.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert abs(results[0][0] - results[1][0]) < tolerance * results[1][0]


def test_a_narrow_head_of_wide_features():
    x, head = torch.randn(4, 6, 8).requires_grad_(), nn.Linear(8, 50).bfloat16()
    lse = ops.linear_logsumexp(x, head.weight, head.bias)
    want = (x @ head.weight.float().T + head.bias.float()).logsumexp(-1)
    torch.testing.assert_close(lse, want)
    (g,) = torch.autograd.grad(lse.sum(), x, create_graph=True)
    ops.grad_norm(g.flatten(0, 1), 2.0).sum().backward()
    assert head.weight.grad.dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"weight: got torch\.float64, want torch\.float32 as feat"):
        ops.linear_logsumexp(x, head.weight.double())


def test_logsumexp_of_tokens():
    z = torch.randn(3, 4, 5, dtype=torch.bfloat16)
    lse = ops.logsumexp(z, dtype=torch.float32)
    torch.testing.assert_close(lse, z.float().logsumexp(-1))
    assert ops.logsumexp(z).dtype == torch.bfloat16
    z = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(ops.logsumexp, z)


def test_errors():
    model, x, y = language()
    penalty = density.marginal_density_penalty
    with pytest.raises(ValueError, match=r"target: got shape \[3, 4\], want \[3, 5\]"):
        penalty(model, x, target=y[:, :4])
    with pytest.raises(ValueError, match=r"token_weights: got shape \[5\]"):
        penalty(model, x, target=y, token_weights=torch.ones(5))
    with pytest.raises(TypeError, match="ignore_index: got '1'"):
        penalty(model, x, target=y, ignore_index="1")
    with pytest.raises(ValueError, match="target: got -3 to"):
        penalty(model, x, target=torch.where(y == IGNORED, -3, y))
    with pytest.raises(ValueError, match=r"logits: got shape \[3, 5, 2, 2\]"):
        penalty(model, x, logits=torch.zeros(3, 5, 2, 2, requires_grad=True))


def half_and_double():
    """A float16 network whose input gradients are mostly below what float16 can hold."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 6)
    )
    with torch.no_grad():
        model[0].weight.mul_(1e-4)
    model.half()
    x = torch.rand(48, 64).half()
    return model, copy.deepcopy(model).double(), x


@pytest.mark.parametrize("style", ["itself", "within"])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_float16_does_not_underflow(style, p):
    half, wide, x = half_and_double()
    want = run(density.marginal_density_penalty, wide, x.double(), style, p=p)
    scale = 1024 / max(float(t.abs().max()) for t in want[1:])  # a gradient scaler's

    def penalty(*arguments, **options):
        return density.marginal_density_penalty(*arguments, **options) * scale

    got = run(penalty, half, x, style, p=p)
    assert got[0].dtype == torch.float32
    for a, b in zip(got, want, strict=True):
        b = b * scale
        assert (a.double() - b).norm() < 0.02 * b.norm()


def test_float16_overflow_lowers_the_scale():
    half, wide, x = half_and_double()
    with torch.no_grad():
        for model in (half, wide):
            model[4].weight.mul_(300)  # gradients of 300 times the scale are beyond float16
    want = run(density.marginal_density_penalty, wide, x.double())
    got = run(density.marginal_density_penalty, half, x)
    assert abs(got[0] - want[0]) < 0.05 * want[0]
    assert all(g.isfinite().all() for g in got)


def test_float16_gradients_add_up():
    # Of loss and penalty, and over two calls of backward.
    half, _, x = half_and_double()
    x.requires_grad_()
    logits = half(x)
    penalty = density.marginal_density_penalty(half, x, logits=logits)
    (logits.float().logsumexp(1).sum() + 1e3 * penalty).backward()
    got = [p.grad.float() for p in half.parameters()]
    half.zero_grad()
    half(x).float().logsumexp(1).sum().backward()
    (1e3 * density.marginal_density_penalty(half, x)).backward()
    for a, b in zip(got, (p.grad.float() for p in half.parameters()), strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm()
