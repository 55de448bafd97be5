"""LIME: it finds the patch, and gives lime's and Captum's weights on equal samples."""

import numpy as np
import pytest
import torch

from masking.explained import SEGMENTS, Patch, image, of_sets
from robustcore.masking import MaskedModel, explain_lime, replaced
from robustcore.masking.explain.lime import ridge_regression


def test_lime_finds_the_patch():
    result = explain_lime(Patch(), image(), SEGMENTS, 300, progress=True)
    assert result.target == int(Patch()(image()[None]).argmax())
    result = explain_lime(Patch(), image(), SEGMENTS, 300, target=1)
    assert int(result.weights.argmax()) == 5
    assert result.score == pytest.approx(float(Patch()(image()[None]).double().softmax(1)[0, 1]))
    assert torch.equal(result.attribution, result.weights[SEGMENTS])
    assert 0.3 < result.r2 <= 1


def test_lime_repeats_by_its_seed_and_leaves_torch_alone():
    model = MaskedModel(Patch())
    state = torch.get_rng_state()
    first = explain_lime(model, image(), SEGMENTS.numpy(), 100, target=1, batch_size=7)
    again = explain_lime(model, image()[None], SEGMENTS, 100, target=1, batch_size=100)
    other = explain_lime(model, image(), SEGMENTS, 100, target=1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.weights, again.weights, rtol=1e-4, atol=1e-6)
    assert not torch.equal(first.weights, other.weights)


def samples_of(result):
    """The samples that an explanation drew, and what a plain call gives for them."""
    shown = result.shown
    mask = shown[:, SEGMENTS].unsqueeze(1)
    return shown, MaskedModel(Patch())(image()[None], mask).double().softmax(1)


def test_the_weights_are_those_of_lime():
    """lime's own regression, with its kernel, on the samples that were drawn."""
    lime_image = pytest.importorskip("lime.lime_image")
    pairwise = pytest.importorskip("sklearn.metrics").pairwise_distances
    result = explain_lime(Patch(), image(), SEGMENTS, 200, target=1)
    z, probabilities = samples_of(result)
    data = z.numpy().astype(int)
    distances = pairwise(data, data[:1], metric="cosine").ravel()
    base = lime_image.LimeImageExplainer().base  # with the kernel and width that are its defaults
    intercept, weights, r2, _ = base.explain_instance_with_data(
        data, probabilities.numpy(), distances, 1, 100000
    )
    want = torch.tensor([w for _, w in sorted(weights)], dtype=torch.float64)
    torch.testing.assert_close(result.weights, want, rtol=1e-9, atol=1e-12)
    assert result.intercept == pytest.approx(intercept, rel=1e-9)
    assert result.r2 == pytest.approx(r2, rel=1e-9)


def test_the_weights_are_those_of_captum():
    """Captum's Lime, perturbing the mask, made to draw the same samples."""
    attr = pytest.importorskip("captum.attr", exc_type=ImportError)
    models = pytest.importorskip("captum._utils.models.linear_model", exc_type=ImportError)
    result = explain_lime(Patch(), image(), SEGMENTS, 120, target=1, kernel_width=0.4, ridge=0.7)
    masked = MaskedModel(Patch())

    def the_same(mask, **options):
        yield from result.shown.long().unsqueeze(1)

    lime = attr.Lime(
        lambda mask, x: masked(x, mask).softmax(1),
        interpretable_model=models.SkLearnRidge(alpha=0.7),
        similarity_func=attr._core.lime.get_exp_kernel_similarity_function("cosine", 0.4),
        perturb_func=the_same,
    )
    attribution = lime.attribute(
        torch.ones(1, 1, 16, 16),
        baselines=0,
        target=1,
        additional_forward_args=(image()[None],),
        feature_mask=SEGMENTS[None, None],
        n_samples=120,
    )
    # Captum regresses in float32.
    torch.testing.assert_close(result.attribution, attribution[0, 0].double(), rtol=1e-4, atol=1e-6)


def test_captum():
    """The recipe: what is perturbed is the mask, ones on the whole; the image comes along."""
    captum = pytest.importorskip("captum.attr", exc_type=ImportError)
    masked = MaskedModel(Patch())

    def forward(mask, x):
        return masked(x, mask)

    torch.manual_seed(0)
    lime = captum.Lime(forward)
    mask = torch.ones(1, 1, 16, 16)
    attribution = lime.attribute(
        mask,
        baselines=0,
        target=1,
        additional_forward_args=(image()[None],),
        feature_mask=SEGMENTS[None, None],
        n_samples=200,
        perturbations_per_eval=1,
    )
    assert attribution.shape == mask.shape
    assert int(SEGMENTS.flatten()[attribution.flatten().argmax()]) == 5


def test_the_regression_is_weighted_ridge():
    """Against the closed form on explicit columns, the intercept not penalised."""
    generator = torch.Generator().manual_seed(0)
    z = (torch.rand(50, 6, generator=generator) < 0.5).double()
    y = torch.rand(50, generator=generator, dtype=torch.float64)
    weights, intercept, r2 = ridge_regression(z, y, 0.25, 2.0)
    cosine = z.sum(1) / (z.sum(1).sqrt() * 6**0.5).clamp(min=1e-9)
    w = (-((1 - cosine) ** 2) / 0.25**2).exp().sqrt()
    columns = torch.cat([z, torch.ones(50, 1, dtype=torch.float64)], 1)
    penalty = torch.diag(torch.tensor([2.0] * 6 + [0.0], dtype=torch.float64))
    solution = torch.linalg.solve(columns.T @ (w[:, None] * columns) + penalty, columns.T @ (w * y))
    torch.testing.assert_close(weights, solution[:6])
    assert intercept == pytest.approx(float(solution[6]))
    assert 0 < r2 < 1


def test_a_linear_function_is_its_own_explanation():
    want = torch.linspace(-1, 1, 16, dtype=torch.float64)
    result = explain_lime(of_sets(lambda z: 3 + z @ want), image(), SEGMENTS, 200, ridge=0)
    torch.testing.assert_close(result.weights, want)
    assert result.intercept == pytest.approx(3)
    assert result.r2 == pytest.approx(1)


def test_too_few_samples_for_no_ridge():
    """Not the numbers that rounding makes of a singular system."""
    model = of_sets(lambda z: z[:, 0])
    for samples in (2, 8, 16):
        with pytest.raises(ValueError, match=f"ridge: got 0.0, too little for {samples} samples"):
            explain_lime(model, image(), SEGMENTS, samples, ridge=0)
    assert explain_lime(model, image(), SEGMENTS, 8, ridge=1).weights.isfinite().all()


def test_grey_instead_of_layer_masking():
    """The usual LIME, by a function of image and mask."""
    model = Patch()
    result = explain_lime(replaced(model, 0.5), image(), SEGMENTS, 50, target=1)
    mask = result.shown[:, SEGMENTS].unsqueeze(1)
    grey = torch.where(mask, image()[None], torch.tensor(0.5))
    want = model(grey).double().softmax(1)[:, 1]
    torch.testing.assert_close(result.scores, want, rtol=1e-6, atol=1e-9)


def test_equal_samples_run_once():
    asked = []

    def value(z):
        asked.extend(map(tuple, z.tolist()))
        return z @ torch.arange(4.0, dtype=torch.float64)

    quarters = torch.arange(16)[:, None] // 8 * 2 + torch.arange(16) // 8
    result = explain_lime(of_sets(value, quarters), image(), quarters, 500)
    assert len(result.scores) == 500
    assert len(asked) == 1 + 16  # the whole image, and every set
    assert torch.equal(result.scores, result.shown.double() @ torch.arange(4.0).double())


def test_bad_input():
    model = Patch()
    with pytest.raises(TypeError, match="image: got list"):
        explain_lime(model, [1], SEGMENTS)
    with pytest.raises(ValueError, match=r"image: got shape \[2, 1, 16, 16\]"):
        explain_lime(model, image().expand(2, -1, -1, -1), SEGMENTS)
    with pytest.raises(ValueError, match="num_samples: got 1"):
        explain_lime(model, image(), SEGMENTS, 1)
    with pytest.raises(ValueError, match="num_samples: got 2, and all of them show everything"):
        explain_lime(model, image(), np.zeros((16, 16), int), 2, seed=1)
