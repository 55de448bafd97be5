"""Explanations of one image, against Captum's and lime's of the same masked model.

All ask the same masks of the same model; theirs perturb a mask of ones, as the README says. `model
alone` is the masked model on those masks and nothing else: what no explanation can go below. The
small network shows what is around the model, the ResNet-18 what is left of that where the model is
the work.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustcore.masking import MaskedModel, explain_lime, explain_occlusion, explain_shap

attr = pytest.importorskip("captum.attr", exc_type=ImportError)
linear_model = pytest.importorskip("captum._utils.models.linear_model", exc_type=ImportError)
build = runpy.run_path(str(Path(__file__).with_name("zoo.py")))["build"]
BATCH, TARGET = 32, 3


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


def resnet18():
    return build("torchvision", "resnet18")


# What makes the network, side of the image and of its blocks, samples, rounds.
NETWORKS = {"small network": (small, 32, 4, 500, 5), "ResNet-18 at 128": (resnet18, 128, 16, 64, 3)}


class Case:
    """One masked model, one image, its blocks; and the others' ways to ask the same masks."""

    def __init__(self, network, device):
        make, side, self.block, self.samples, self.rounds = NETWORKS[network]
        torch.manual_seed(0)
        self.model = MaskedModel(make().requires_grad_(False).to(device))
        patches = torch.randn(1, 3, 4, 4, device=device)
        self.x = nn.functional.interpolate(patches, (side, side), mode="nearest")
        at = torch.arange(side, device=device) // self.block
        self.segments = at[:, None] * (side // self.block) + at
        self.ones = torch.ones(1, 1, side, side, device=device)
        self.captums = {
            "baselines": 0,
            "target": TARGET,
            "additional_forward_args": (self.x,),
            "perturbations_per_eval": BATCH,
        }

    def probabilities(self, mask, x):
        return self.model(x[:1], mask).softmax(1)

    def alone(self, shown):
        shown = shown.to(self.x.device)
        return lambda: self.model(self.x, segments=self.segments, z=shown, batch_size=BATCH)


@pytest.fixture(params=NETWORKS)
def network(request):
    return request.param


def measure_all(measure, group, impl, implementations, rounds):
    """Ours in turn with Captum's."""
    with torch.no_grad():
        against = ("captum", implementations["captum"]) if impl == "robustcore" else None
        fn = implementations[impl]
        measure(group, impl, fn, rounds=rounds, warmups=1, against=against)


@pytest.mark.parametrize("impl", ["robustcore", "model alone", "captum", "lime"])
def test_lime(network, impl, measure, device):
    case = Case(network, device)

    def ours():
        return explain_lime(
            case.model, case.x, case.segments, case.samples, target=TARGET, batch_size=BATCH
        )

    want = ours()
    implementations = {
        "robustcore": ours,
        "model alone": case.alone(want.shown),
        "captum": captum_lime(case, want),
        "lime": lime(case, want),
    }
    if impl not in ("robustcore", "model alone"):
        got = implementations[impl]()
        torch.testing.assert_close(want.weights, got, rtol=1e-3, atol=1e-6)
    group = f"LIME of {case.samples} samples, {network}"
    measure_all(measure, group, impl, implementations, case.rounds)


def captum_lime(case, want):
    def the_same(mask, **options):
        yield from want.shown.long().unsqueeze(1).to(mask.device)

    explainer = attr.Lime(
        case.probabilities,
        interpretable_model=linear_model.SkLearnRidge(alpha=1.0),
        similarity_func=attr._core.lime.get_exp_kernel_similarity_function("cosine", 0.25),
        perturb_func=the_same,
    )

    def run():
        return explainer.attribute(
            case.ones,
            feature_mask=case.segments[None, None],
            n_samples=case.samples,
            return_input_shape=False,
            **case.captums,
        )[0].double()

    return run


def lime(case, want):
    """The package explains an image of ones; what it makes 0 is hidden."""
    lime_image = pytest.importorskip("lime.lime_image")

    class Same(np.random.RandomState):
        def randint(self, low, high=None, size=None):
            return 0 if size is None else want.shown.numpy().astype(int).ravel()

    def classify(images):
        mask = torch.from_numpy(np.array(images)[..., 0]).float().unsqueeze(1)
        return case.probabilities(mask.to(case.x.device), case.x).cpu().double().numpy()

    image = np.ones((*case.segments.shape, 3))
    segments = case.segments.cpu().numpy()
    explainer = lime_image.LimeImageExplainer(random_state=Same())

    def run():
        explanation = explainer.explain_instance(
            image, classify, labels=(TARGET,), top_labels=None, hide_color=0, random_seed=0,
            num_samples=case.samples, batch_size=BATCH, segmentation_fn=lambda _: segments,
        )  # fmt: skip
        return torch.tensor([w for _, w in sorted(explanation.local_exp[TARGET])])

    return run


@pytest.mark.parametrize("impl", ["robustcore", "captum"])
def test_occlusion(network, impl, measure, device):
    case = Case(network, device)
    size, stride = 2 * case.block, case.block

    def ours():
        return explain_occlusion(case.model, case.x, size, stride, target=TARGET, batch_size=BATCH)

    def theirs():
        return attr.Occlusion(case.probabilities).attribute(
            case.ones, sliding_window_shapes=(1, size, size), strides=(1, stride, stride),
            **case.captums,
        )  # fmt: skip

    torch.testing.assert_close(
        ours().attribution, theirs()[0, 0].cpu().double(), rtol=1e-2, atol=1e-5
    )
    windows = (case.x.shape[-1] // stride - 1) ** 2
    implementations = {"robustcore": ours, "captum": theirs}
    measure_all(
        measure, f"occlusion, {windows} windows, {network}", impl, implementations, case.rounds
    )


@pytest.mark.parametrize("impl", ["robustcore", "captum"])
def test_shap(impl, measure, device):
    """12 segments, 200 samples; the errors are against all 4096 sets."""
    case = Case("small network", device)
    at = torch.arange(32, device=device)
    segments = at[:, None] // 11 * 4 + at // 8
    exact = explain_shap(case.model, case.x, segments, 4096, target=TARGET, batch_size=256)
    assert exact.exact

    def ours(seed=0):
        return explain_shap(
            case.model, case.x, segments, 200, target=TARGET, batch_size=BATCH, seed=seed
        ).weights

    def theirs(seed=0):
        torch.manual_seed(seed)
        return attr.KernelShap(case.probabilities).attribute(
            case.ones, feature_mask=segments[None, None], n_samples=200,
            return_input_shape=False, **case.captums,
        )[0].cpu().double()  # fmt: skip

    implementations = {"robustcore": ours, "captum": theirs}
    values = torch.stack([implementations[impl](seed) for seed in range(10)])
    error = float((values - exact.weights).norm(dim=1).mean() / exact.weights.norm())
    note = f"error of the values, mean of 10 seeds: {error:.1%} of their norm"
    with torch.no_grad():
        group = "SHAP of 200 samples, 12 segments, small network"
        measure(group, impl, implementations[impl], rounds=7, warmups=1, note=note)
