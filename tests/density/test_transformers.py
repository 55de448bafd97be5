"""Attention in the penalties: models that hold it, checkpointed and not, against torch's math."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from masking import zoo
from robustcore import density

PENALTIES = {
    "density": density.marginal_density_penalty,
    "gradient": density.input_gradient_penalty,
    "score": density.score_matching_penalty,
    "curvature": density.curvature_penalty,
    "attribution": lambda *a, **k: density.attribution_penalty(*a, steps=2, **k),
}
STYLES = ["itself", "within", "outside"]


class Encoder(nn.Module):
    """torch's own layers, with a mask and the causal kind of attention."""

    def __init__(self, causal=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.causal = nn.Linear(12, 5), causal

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
        mask = mask if self.causal else None
        return self.head(self.encoder(tokens, mask, is_causal=self.causal).mean(1))


class Weights(nn.Module):
    """Of nn.MultiheadAttention, whose weights are asked for."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        y, weights = self.attention(tokens, tokens, tokens)
        return self.head((y + weights.sum(2, keepdim=True)).mean(1))


def torchvisions():
    vit = zoo.torchvision().models.VisionTransformer
    model = vit(12, 4, 2, 3, 12, 24, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # it begins at 0
    return model, (2, 3, 12, 12)


def timms(**options):
    zoo.torchvision()
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3,
        num_classes=5, **options,
    ), (2, 3, 16, 16)  # fmt: skip


MODELS = {
    "encoder": lambda: (Encoder(), (2, 12, 3, 3)),
    "causal": lambda: (Encoder(causal=True), (2, 12, 3, 3)),
    "weights": lambda: (Weights(), (2, 12, 3, 3)),
    "torchvision": torchvisions,
    "timm": timms,
    "timm, norms": lambda: timms(qk_norm=True),
}


def build(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    return model.double(), torch.rand(shape, dtype=torch.float64), torch.tensor([1, 3])


def run(penalty, model, x, style="itself", **options):
    """The penalty and its gradients in x where it has one, and the parameters."""
    model = copy.deepcopy(model)
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    if style == "itself":
        value = penalty(model, x, **options)
    elif style == "within":
        with density.fast_double_backward():
            logits = model(x)
        value = penalty(model, x, logits=logits, **options)
    else:
        value = penalty(model, x, logits=model(x), **options)
    value.backward()
    return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty(name, penalty):
    model, x, y = build(name)
    for p in (1.0, 2.0, 3.0, float("inf")):
        with sdpa_kernel(SDPBackend.MATH):
            want = run(PENALTIES[penalty], model, x, "outside", target=y, p=p)
        for style in STYLES if p == 2 else STYLES[1:2]:
            same(run(PENALTIES[penalty], model, x, style, target=y, p=p), want)


def blocks():
    torch.manual_seed(0)
    block = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
    )
    return nn.Sequential(block(), block(), block(), nn.Flatten(), nn.Linear(48, 4)).double()


class Checkpointed(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.blocks, self.call = blocks(), call

    def forward(self, x):
        return self.blocks[3:](self.call(self.blocks[:3], x))


def once(function, x):
    return checkpoint(function, x, use_reentrant=False)


def within(function, x):
    def inner(x):
        with density.fast_double_backward():
            return function(x)

    return once(inner, x)


CALLS = {
    "one": once,
    "each": lambda f, x: checkpoint_sequential(f, 3, x, use_reentrant=False),
    "nested": lambda f, x: once(lambda x: f[2](once(lambda x: once(f[1], f[0](x)), x)), x),
    "the context inside": within,
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("call", CALLS)
def test_checkpointing(call, style):
    penalty = density.marginal_density_penalty
    x = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    want = run(penalty, Checkpointed(lambda f, x: f(x)), x, "outside")
    same(run(penalty, Checkpointed(CALLS[call]), x, style), want)


def test_checkpoints_of_timm_and_densenet():
    penalty = density.marginal_density_penalty
    for model, x in (
        build("timm")[:2],
        (
            zoo.torchvision().models.DenseNet(4, (2, 2), 8, 2, 0, 4).double(),
            torch.rand(3, 3, 32, 32, dtype=torch.float64),
        ),
    ):
        want = run(penalty, model, x, "within")
        if hasattr(model, "set_grad_checkpointing"):
            model.set_grad_checkpointing()
        else:
            for layer in model.modules():
                if hasattr(layer, "memory_efficient"):
                    layer.memory_efficient = True
        for style in STYLES:
            same(run(penalty, model, x, style), want)


def test_checkpoints_keep_less():
    model, x = blocks()[:3].requires_grad_(), torch.rand(2, 3, 4, 4, dtype=torch.float64)

    def kept(call):
        sizes = []
        with (
            density.fast_double_backward(),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t: sizes.append(t.numel()) or t, lambda t: t
            ),
        ):
            call(model, x.requires_grad_())
        return sum(sizes)

    assert kept(once) < kept(lambda f, x: f(x)) / 5


def test_reentrant_checkpoints_are_refused():
    model = Checkpointed(lambda f, x: checkpoint(f, x, use_reentrant=True))
    x = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    for style in STYLES:
        with pytest.raises(ValueError, match=r"logits: come through reentrant checkpointing"):
            run(density.marginal_density_penalty, model, x, style)


MASKS = {
    "none": {},
    "bool": dict(attn_mask=torch.tensor([[True, False, True], [True, True, False]])),
    "floating": dict(attn_mask=torch.tensor([[0.5, 1.0, -2.0], [0.0, 1.0, 0.0]]).double()),
    "causal": dict(is_causal=True),
    "scale": dict(scale=0.3),
    "groups": dict(enable_gqa=True),
    "learned": dict(attn_mask=torch.zeros(2, 3).double().requires_grad_()),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_arguments_of_attention(mask, dtype):
    heads = 2 if mask == "groups" else 4
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(s, generator=generator, dtype=torch.float64)
        for s in ((2, 4, 2, 5), (2, heads, 3, 5), (2, heads, 3, 6))
    )

    def derivatives(call, dtype):
        inputs = [t.to(dtype, copy=True).requires_grad_() for t in (q, k, v)]
        options = dict(MASKS[mask])
        if "attn_mask" in options and options["attn_mask"].is_floating_point():
            options["attn_mask"] = options["attn_mask"].to(dtype)
        y = call(functional.scaled_dot_product_attention)(*inputs, **options)
        assert y.dtype == dtype
        grads = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        total = sum(g.square().sum() for g in grads)
        return [y, *grads, *torch.autograd.grad(total, inputs)]

    def by_math(function):
        def call(*arguments, **options):
            with sdpa_kernel(SDPBackend.MATH):
                return function(*arguments, **options)

        return call

    def ours(function):
        def call(*arguments, **options):
            with density.fast_double_backward():
                return function(*arguments, **options)

        return call

    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for got, want in zip(
        derivatives(ours, dtype), derivatives(by_math, torch.float64), strict=True
    ):
        assert (got - want).norm() <= tolerance * want.norm()


def test_accumulation_and_autocast():
    model, x, y = build("encoder")
    whole = run(density.input_gradient_penalty, model, x, target=y)
    parts = [
        run(density.input_gradient_penalty, model, x[i : i + 1], target=y[i : i + 1])
        for i in (0, 1)
    ]
    same([(a + b) / 2 for a, b in zip(*parts, strict=True)], whole)
    model, x = model.float(), x.float()
    for style in STYLES:
        with torch.autocast("cpu", torch.bfloat16):
            value, *grads = run(density.input_gradient_penalty, model, x, style, target=y)
        assert value.dtype == torch.float32
        got = torch.cat([g.flatten() for g in grads]).double()
        want = torch.cat([g.flatten() for g in whole[1:]])
        assert functional.cosine_similarity(got, want, dim=0) > 0.98


def test_attention_under_autocast_and_without_gradients():
    q = torch.rand(2, 2, 5, 4, requires_grad=True)
    with density.fast_double_backward():
        with torch.autocast("cpu", torch.bfloat16):
            y = functional.scaled_dot_product_attention(q, q, q)
            assert y.dtype == torch.bfloat16
        (g,) = torch.autograd.grad(y.float().square().sum(), q, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), q)
        assert h.isfinite().all()
        with torch.no_grad():
            y = functional.scaled_dot_product_attention(q, q, q)
        torch.testing.assert_close(y, functional.scaled_dot_product_attention(q, q, q).detach())


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", ["encoder", "convolutions"])
def test_transforms_of_torch_func(name, penalty):
    model, x, y = (
        (blocks(), torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor([1, 3]))
        if name == "convolutions"
        else build(name)
    )
    model.eval()
    state = dict(model.named_parameters())

    def value(state, x, y):
        call = lambda at: torch.func.functional_call(model, state, at)  # noqa: E731
        torch.manual_seed(1)  # of score matching's noise, as in run()
        return PENALTIES[penalty](call, x, target=y)

    want = run(PENALTIES[penalty], model, x, target=y)[1:]
    got = torch.func.grad(value)(state, x, y)
    same([g for g in got.values() if g.count_nonzero()], [g for g in want if g.count_nonzero()])
    each = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0), randomness="same")
    rows = each(state, x.unsqueeze(1), y.unsqueeze(1))
    alone = [torch.func.grad(value)(state, x[i : i + 1], y[i : i + 1]) for i in range(2)]
    for key, row in rows.items():
        torch.testing.assert_close(row, torch.stack([a[key] for a in alone]))
