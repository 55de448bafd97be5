"""One small valid call of every public callable: its name to what makes callee and arguments.

A callable without an entry fails tests/test_bad_input.py. What follows a slash tells apart several
calls of one.
"""

import torch
from torch import nn

import robustcore
from bad_input import attack_ops, attacks, curvature, groups, influence, lipschitz_layers, tasks
from bad_input.inputs import (
    CLASSES,
    IMAGE_OF_RUN,
    NOISE,
    call,
    certificates,
    counts,
    curves,
    game,
    images,
    labels,
    leaf,
    lime,
    lipschitz_network,
    logits,
    mask,
    masked_network,
    method,
    network,
    penalty,
    penalty_op,
    rand,
    saved,
    segments,
    skew,
    smoothed,
    tmp_path,
    traced,
)
from robustcore import density, lipschitz, masking, ops, smoothing

EXAMPLES = {
    "as_tensor": call(robustcore.as_tensor, array=lambda: rand(3)),
    # ---- ops
    "ops.ablate_patches": call(
        ops.ablate_patches, x=images, size=3, stride=2, positions=(0, 4), fill=0.5, mean=None,
        std=None, dtype=None, memory_format=torch.contiguous_format, out=None,
    ),
    "ops.ablate_patches/out": call(
        ops.ablate_patches, x=images, size=3, positions=(0, 2), out=lambda: rand(2, 2, 6, 8, 8)
    ),
    "ops.ablate_pixels/out": call(
        ops.ablate_pixels, x=images, num_samples=2, k=3, seed=0, out=lambda: rand(2, 2, 6, 8, 8)
    ),
    "ops.ablate_pixels": call(ops.ablate_pixels, k=3, fill=0.5, **NOISE),
    "ops.add_pixel_votes": call(
        ops.add_pixel_votes, counts=lambda: torch.zeros(3, 4).int(), logits=lambda: rand(2, 3, 4),
        chosen=None,
    ),
    "ops.add_pixel_votes/chosen": call(
        ops.add_pixel_votes, counts=lambda: torch.zeros(4).int(), logits=lambda: rand(2, 3, 4),
        chosen=lambda: torch.zeros(4).long(),
    ),
    "ops.attention": call(
        ops.attention, q=lambda: rand(2, 3, 4), k=lambda: rand(2, 5, 4), v=lambda: rand(2, 5, 2),
        scale=None, causal=False, mask=lambda: rand(3, 5),
    ),
    "ops.conv_exp": call(
        ops.conv_exp, x=lambda: rand(2, 4, 6, 6), kernel=skew, radius=1.0, tol=None, degree=4,
        method="chebyshev", contractive=False, recompute=False, fused=None, check=True,
    ),
    "ops.conv_norm_bound": call(ops.conv_norm_bound, kernel=lambda: rand(2, 3, 3, 3), grid=8),
    "ops.conv_spectral_bound": call(
        ops.conv_spectral_bound, kernel=lambda: rand(2, 3, 3, 3), stride=1
    ),
    "ops.count_votes": call(ops.count_votes, logits=lambda: rand(2, 5, 3), out=None),
    "ops.count_votes/out": call(
        ops.count_votes, logits=lambda: rand(2, 5, 3), out=lambda: torch.zeros(2, 3).long()
    ),
    "ops.exp_series": call(
        ops.exp_series, radius=1.0, tol=None, degree=4, method="chebyshev", contractive=False
    ),
    "ops.gaussian_noise": call(ops.gaussian_noise, sigma=0.25, **NOISE),
    "ops.gaussian_noise/tensors": call(
        ops.gaussian_noise, x=images, num_samples=2, sigma=lambda: rand(2), seed=0,
        image_offset=lambda: torch.tensor(0), sample_offset=lambda: torch.tensor(0),
        mean=lambda: rand(3), std=lambda: rand(3) + 1, out=lambda: rand(2, 2, 3, 8, 8),
    ),
    "ops.grad_norm": call(ops.grad_norm, grad=lambda: rand(2, 3, 4), p=2.0),
    "ops.householder": call(
        ops.householder, x=lambda: rand(2, 4, 3, 3), theta=lambda: rand(2)
    ),
    "ops.laplace_noise": call(ops.laplace_noise, scale=0.25, **NOISE),
    "ops.lattice_noise": call(
        ops.lattice_noise,
        x=images,
        sigma=0.25,
        grid=255,
        kind="gaussian",
        **{name: value for name, value in NOISE.items() if name != "x"},
    ),
    "ops.linear_logsumexp": call(
        ops.linear_logsumexp, features=lambda: rand(2, 4), weight=lambda: rand(3, 4),
        bias=lambda: rand(3), targets=labels, ignore_index=-100, dtype=torch.float32, fused=None,
    ),
    "ops.logsumexp": call(ops.logsumexp, logits=lambda: rand(2, 3), dtype=torch.float32),
    "ops.mask_multiply": call(ops.mask_multiply, x=images, mask=mask),
    "ops.mask_pool": call(
        ops.mask_pool, mask=mask, kernel=(3, 3), stride=(1, 1), pads=((1, 1), (1, 1)),
        dilation=(1, 1), ceil_mode=False,
    ),
    "ops.masked_conv2d": call(
        ops.masked_conv2d, x=images, mask=mask, weight=lambda: rand(4, 3, 3, 3),
        bias=lambda: rand(4), stride=1, padding=1, dilation=1, groups=1, fill="neighbor",
        iters=None, scale=lambda: rand(4), shift=lambda: rand(4), relu=False,
    ),
    "ops.masked_mean": call(ops.masked_mean, x=images, mask=mask),
    "ops.masked_pool": call(
        ops.masked_pool, x=images, mask=mask, kernel_size=2, stride=None, padding=0,
        ceil_mode=False, kind="max",
    ),
    "ops.maxmin": call(ops.maxmin, x=lambda: rand(2, 4, 3, 3)),
    "ops.mean_softmax": call(ops.mean_softmax, logits=lambda: rand(2, 3, 4), scale=2.0),
    "ops.neighbor_fill": call(
        ops.neighbor_fill, x=images, mask=mask, iters=2, fill="neighbor", detach=True
    ),
    "ops.projection_pool": call(
        ops.projection_pool, x=lambda: rand(2, 4, 3, 3), theta=lambda: rand(2)
    ),
    "ops.skew_kernel": call(ops.skew_kernel, weight=lambda: rand(4, 4, 3, 3)),
    "ops.splitting_levels": call(ops.splitting_levels, scale=0.25),
    "ops.splitting_noise": call(ops.splitting_noise, scale=0.25, derandomized=False, **NOISE),
    "ops.uniform_noise": call(ops.uniform_noise, scale=0.25, **NOISE),
    # ---- smoothing
    "smoothing.Smooth": call(
        smoothing.Smooth, base_classifier=network, num_classes=CLASSES, sigma=0.25, noise=None,
        seed=0, mean=None, std=None, dtype=None, memory_format=torch.contiguous_format,
        cuda_graph=None, input_dims=3, output="logits", grid=None,
    ),
    "smoothing.Smooth/tensors": call(
        smoothing.Smooth, base_classifier=network, num_classes=CLASSES, noise=smoothing.Gaussian(1),
        mean=lambda: rand(3), std=lambda: rand(3) + 1,
    ),
    "smoothing.Smooth.certify": method(
        smoothed, "certify", x=images, n0=4, n=20, alpha=0.01, early_stop=False,
        radius_tolerance=None, **IMAGE_OF_RUN,
    ),
    "smoothing.Smooth.certify_at": method(
        smoothed, "certify_at", x=images, radius=0.01, alpha=0.01, max_n=40, n0=4, **IMAGE_OF_RUN
    ),
    "smoothing.Smooth.predict": method(
        smoothed, "predict", x=images, n=20, alpha=0.01, **IMAGE_OF_RUN
    ),
    "smoothing.Gaussian.on_grid": method(lambda: smoothing.Gaussian(0.25), "on_grid", grid=255),
    "smoothing.Gaussian": call(smoothing.Gaussian, level=0.25, norm="l2", grid=None),
    "smoothing.Uniform": call(smoothing.Uniform, scale=0.25, norm="l1", grid=None),
    "smoothing.Laplace": call(smoothing.Laplace, scale=0.25, norm="l1", grid=None),
    "smoothing.Splitting": call(
        smoothing.Splitting, scale=0.25, derandomized=False, norm="l1", seed=0
    ),
    "smoothing.Dual": call(smoothing.Dual, base=smoothing.Gaussian(0.25), norm="l2"),
    "smoothing.PixelAblation": call(smoothing.PixelAblation, k=4, fill=None, norm="l0"),
    "smoothing.BandAblation": call(
        smoothing.BandAblation, width=3, stride=1, threshold=0.2, fill=None
    ),
    "smoothing.BlockAblation": call(
        smoothing.BlockAblation, size=3, stride=1, threshold=0.2, fill=None
    ),
    "smoothing.Certificates.top_k_radius": method(
        certificates, "top_k_radius", labels=labels, k=1
    ),
    "smoothing.Certificates.certified_accuracy": method(
        certificates, "certified_accuracy", labels=labels, radii=0.1
    ),
    "smoothing.Certificates.certified_accuracy_lower": method(
        certificates, "certified_accuracy_lower", labels=labels, radii=0.1, rho=0.01
    ),
    "smoothing.Certificates.average_certified_radius": method(
        certificates, "average_certified_radius", labels=labels
    ),
    "smoothing.Result.cat": call(
        smoothing.Result.cat, parts=lambda: [certificates(), certificates()]
    ),
    "smoothing.Result.save": method(
        certificates, "save", path=tmp_path("c.pt"), overwrite=True
    ),
    "smoothing.Result.load": call(smoothing.Result.load, path=saved),
    "smoothing.Certificates.to_tsv": method(
        certificates, "to_tsv", path=tmp_path("c.tsv"), labels=labels, overwrite=True
    ),
    "smoothing.Certificates.plot": method(
        certificates, "plot", path=tmp_path("c.svg"), labels=labels, overwrite=True
    ),
    "smoothing.clopper_pearson_lower": call(
        smoothing.clopper_pearson_lower, k=90, n=100, alpha=0.001
    ),
    "smoothing.gaussian_radius": call(smoothing.gaussian_radius, p_lower=0.9, sigma=0.25),
    "smoothing.majority_certificate": call(
        smoothing.majority_certificate, counts=counts, influence=[0, 1, 3]
    ),
    "smoothing.top_k_certificate": call(
        smoothing.top_k_certificate, counts=counts, labels=labels, k=1, influence=[0, 1, 3],
        several=False,
    ),
    "smoothing.dpa_certificate": call(smoothing.dpa_certificate, counts=counts),
    "smoothing.finite_aggregation_certificate": call(
        smoothing.finite_aggregation_certificate, votes=lambda: torch.tensor([[0, 1, 0, 0, 2]]),
        num_classes=CLASSES, shifts=[0, 2],
    ),
    "smoothing.message_ensemble_certificate": call(
        smoothing.message_ensemble_certificate, counts=lambda: torch.tensor([[4, 1, 1]]),
        num_agents=5, k=2,
    ),
    "smoothing.noise_augment": call(
        smoothing.noise_augment, x=images, sigma=0.25, seed=0, step=0, image_offset=0, mean=None,
        std=None, dtype=None,
    ),
    # ---- lipschitz
    **lipschitz_layers.EXAMPLES,
    "lipschitz.SOC": call(
        lipschitz.SOC, in_channels=3, out_channels=4, kernel_size=3, stride=1, bias=True,
        train_degree=4, tol=1e-6, scale=1.0, recompute=False, fused=None, device=None, dtype=None,
    ),
    "lipschitz.SOC.forward": call(lambda: lipschitz.SOC(3, 4).eval(), x=images),
    "lipschitz.CRCHead": call(
        lipschitz.CRCHead, in_features=4, num_classes=CLASSES, hidden=5, beta=1.0, device=None,
        dtype=None,
    ),
    "lipschitz.CRCHead.forward": call(lambda: lipschitz.CRCHead(4, 3), x=lambda: rand(2, 4)),
    "lipschitz.Householder": call(
        lipschitz.Householder, channels=4, order=1, device=None, dtype=None
    ),
    "lipschitz.Householder.forward": call(
        lambda: lipschitz.Householder(4), x=lambda: rand(2, 4, 3, 3)
    ),
    "lipschitz.MaxMin": call(lipschitz.MaxMin, channels=4),
    "lipschitz.MaxMin.forward": call(lambda: lipschitz.MaxMin(4), x=lambda: rand(2, 4, 3, 3)),
    **{
        f"lipschitz.{kind.__name__}": call(
            kind, in_channels=4, out_channels=4, kernel_size=3, stride=1, padding="same",
            dilation=1, groups=2, padding_mode="circular", bias=True, device=None, dtype=None,
        )
        for kind in (
            lipschitz.OrthogonalConv1d, lipschitz.OrthogonalConv2d, lipschitz.OrthogonalConv3d,
            lipschitz.OrthogonalConvTranspose1d, lipschitz.OrthogonalConvTranspose2d,
            lipschitz.OrthogonalConvTranspose3d,
        )
    },
    "lipschitz.OrthogonalConv1d.forward": call(
        lambda: lipschitz.OrthogonalConv1d(4, 4, 3), x=lambda: rand(2, 4, 6)
    ),
    "lipschitz.LipschitzModule.train": method(
        lambda: lipschitz.OrthogonalLinear(3, 3), "train", mode=True
    ),
    "lipschitz.OrthogonalLinear": call(
        lipschitz.OrthogonalLinear, in_features=4, out_features=3, bias=True, device=None,
        dtype=None,
    ),
    "lipschitz.ProjectionPool2d": call(
        lipschitz.ProjectionPool2d, channels=4, theta=None, device=None, dtype=None
    ),
    "lipschitz.ProjectionPool2d.forward": call(
        lambda: lipschitz.ProjectionPool2d(4), x=lambda: rand(2, 4, 3, 3)
    ),
    "lipschitz.NormalizedLinear": call(
        lipschitz.NormalizedLinear, in_features=4, out_features=CLASSES, bias=True, device=None,
        dtype=None,
    ),
    "lipschitz.NormalizedLinear.forward": call(
        lambda: lipschitz.NormalizedLinear(4, 3), x=lambda: rand(2, 4)
    ),
    "lipschitz.LipConvNet": call(
        lipschitz.LipConvNet, depth=1, num_classes=CLASSES, version="soc", in_channels=3,
        init_channels=2, input_size=4, stages=1, activation="maxmin", pooling="max",
        head="orthogonal", mean=0.0, std=1.0, scale=None, train_degree=4, tol=1e-6,
        recompute=False,
    ),
    "lipschitz.LipConvNet.forward": call(lipschitz_network, x=lambda: rand(2, 3, 4, 4)),
    "lipschitz.LipConvNet.features": method(
        lipschitz_network, "features", x=lambda: rand(2, 3, 4, 4)
    ),
    "lipschitz.Normalize": call(
        lipschitz.Normalize, shift=lambda: rand(3, 1, 1), scale=lambda: rand(3, 1, 1) + 1
    ),
    "lipschitz.Normalize.forward": call(lambda: lipschitz.Normalize(*torch.ones(2, 1)), x=images),
    "lipschitz.lipschitz_bound": call(
        lipschitz.lipschitz_bound, model=lipschitz_network, example=lambda: rand(2, 3, 4, 4),
        norm="l2",
    ),
    "lipschitz.certify": call(
        lipschitz.certify, model=lipschitz_network, x=lambda: rand(2, 3, 4, 4), norm="l2",
        rounding=False,
    ),
    "lipschitz.certificate_loss": call(
        lipschitz.certificate_loss, logits=lambda: rand(2, 3), labels=labels,
        certificates=lambda: rand(2).double(), gamma=0.5,
    ),
    "lipschitz.margin_certificate": call(
        lipschitz.margin_certificate, logits=lambda: rand(2, 3), bound=1.0,
        head=lambda: nn.Linear(4, 3), labels=labels,
    ),
    "lipschitz.Certificate.certified_accuracy": method(
        lambda: lipschitz.certify(lipschitz_network(), rand(2, 3, 4, 4)), "certified_accuracy",
        labels=labels, radii=0.1,
    ),
    # ---- masking
    "masking.MaskedModel": call(
        masking.MaskedModel, model=network, example=images, fill="neighbor", fold=False
    ),
    "masking.MaskedModel.forward": call(
        masked_network, x=images, mask=mask, segments=None, z=None, batch_size=None,
        progress=False,
    ),
    "masking.MaskedModel.forward/segments": call(
        masked_network, x=images, segments=segments, z=lambda: rand(2, 4) > 0.5
    ),
    "masking.explain_lime": call(
        masking.explain_lime, model=masked_network, image=lambda: images(1), segments=segments,
        num_samples=8, target=None, batch_size=4, kernel_width=0.25, ridge=1.0, seed=0,
        progress=False,
    ),
    "masking.explain_occlusion": call(
        masking.explain_occlusion, model=masked_network, image=lambda: images(1), size=4,
        stride=(2, 4), target=None, batch_size=4, progress=False,
    ),
    "masking.explain_rise": call(
        masking.explain_rise, model=masked_network, image=lambda: images(1), num_samples=8,
        grid=3, p=0.5, normalize="shown", target=None, batch_size=4, seed=0, progress=False,
    ),
    "masking.explain_shap": call(
        masking.explain_shap, model=masked_network, image=lambda: images(1), segments=segments,
        num_samples=16, target=None, batch_size=4, seed=0, progress=False,
    ),
    "masking.Explanation.plot": method(lime, "plot", path=tmp_path("l.svg")),
    "masking.insertion_deletion": call(
        masking.insertion_deletion, model=masked_network, image=lambda: images(1),
        attribution=lambda: rand(8, 8), target=None, step=32, fill="mask", batch_size=4,
        progress=False,
    ),
    "masking.masked_accuracy_curve": call(
        masking.masked_accuracy_curve, model=masked_network, images=images, labels=labels,
        fractions=(0.0, 0.5), block=4, fills=None, output=None, batch_size=4, seed=0,
        progress=False,
    ),
    "masking.replaced": call(masking.replaced, model=network, value=0.5),
    "masking.make_plan": call(
        masking.make_plan, graph=lambda: traced().graph,
        fill="neighbor",
    ),
    "masking.Curves.plot": method(curves, "plot", path=tmp_path("u.svg")),
    "masking.Game.plot": method(game, "plot", path=tmp_path("g.svg")),
    # ---- density
    "density.PenaltyOp": call(
        density.PenaltyOp, penalty=density.marginal_density_penalty, model=network
    ),
    "density.PenaltyOp.__call__": call(penalty_op, x=images, target=labels),
    "density.marginal_density_penalty": penalty(density.marginal_density_penalty),
    "density.marginal_density_penalty/logits": call(
        density.marginal_density_penalty, model=network, x=leaf, logits=logits
    ),
    "density.input_gradient_penalty": penalty(density.input_gradient_penalty, of="loss"),
    "density.score_matching_penalty": penalty(
        density.score_matching_penalty, sigma=0.01, tau=1e-3
    ),
    "density.curvature_penalty": penalty(density.curvature_penalty, h=3.0, loss_reduction="mean"),
    "density.attribution_penalty": penalty(density.attribution_penalty, baseline=None, steps=3),
    "density.integrated_gradients": call(
        density.integrated_gradients, model=network, x=images, target=labels, baseline=None,
        steps=3, create_graph=False,
    ),
    "density.feature_leakage": call(
        density.feature_leakage, model=network, x=images, region=lambda: rand(2, 3, 8, 8) > 0.5,
        target=labels, p=2.0, baseline=None, steps=3,
    ),
    "density.pixel_perturbation": call(
        density.pixel_perturbation, model=network, x=images,
        attributions=images, target=labels, fractions=(0.5, 1.0), remove="least", fill=0.5,
        unit="pixel",
    ),
    "density.insertion_game": call(
        density.insertion_game, model=network, x=images, attributions=images, target=labels,
        fractions=(0.5, 1.0), fill=0.5, unit="pixel",
    ),
    "density.density_curve": call(
        density.density_curve, model=network, x=images, sigmas=(0.1, 0.2), seed=0
    ),
    "density.gradient_curve": call(
        density.gradient_curve, model=network, x=images, sigmas=(0.1, 0.2), seed=0
    ),
    **tasks.EXAMPLES,
    **attack_ops.EXAMPLES,
    **attacks.EXAMPLES,
    **curvature.EXAMPLES,
    **groups.EXAMPLES,
    **influence.EXAMPLES,
}  # fmt: skip
