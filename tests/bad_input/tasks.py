"""Calls of what smoothing has beside the classifier: other tasks, base classifiers, mixes."""

import torch
from torch import nn

from bad_input.inputs import CLASSES, call, dense, images, labels, method, network, rand, smoothed
from robustcore import smoothing

TASK = dict(
    sigma=0.25, grid=None, seed=0, mean=None, std=None, dtype=None,
    memory_format=torch.contiguous_format, input_dims=3, output=None,
)  # fmt: skip


def logits():
    """Of four copies of two images."""
    return rand(2, 4, CLASSES)


def share():
    return rand(2) / 2


EXAMPLES = {
    "smoothing.AdaptiveMix": call(
        smoothing.AdaptiveMix, standard=network, smooth=smoothed, least=0.75, mixing=None,
        temperature=1.0,
    ),
    "smoothing.AdaptiveMix.certify": method(
        lambda: smoothing.AdaptiveMix(network(), smoothed(), 0.75), "certify", x=images, n0=4,
        n=60, alpha=0.01,
    ),
    "smoothing.AdaptiveMix.probabilities": method(
        lambda: smoothing.AdaptiveMix(network(), smoothed(), 0.75), "probabilities", x=images,
        n=60,
    ),
    "smoothing.CropSelection": call(
        smoothing.CropSelection, model=network, size=4, circular=True
    ),
    "smoothing.CropSelection.forward": call(
        lambda: smoothing.CropSelection(network(), 4), x=images
    ),
    "smoothing.CropSelection.crop": method(
        lambda: smoothing.CropSelection(network(), 4), "crop", x=images
    ),
    "smoothing.Denoised": call(smoothing.Denoised, denoiser=network, classifier=network),
    "smoothing.Denoised.forward": call(
        lambda: smoothing.Denoised(nn.Identity(), network()), x=images
    ),
    "smoothing.Diffusion": call(
        smoothing.Diffusion, eps_model=network, alphas_cumprod=(0.9, 0.5, 0.1),
        classifier=network, sigma=0.25, clip=True,
    ),
    "smoothing.great_score": call(
        smoothing.great_score, probabilities=lambda: rand(2, 3), labels=labels, delta=0.05
    ),
    "smoothing.losses.smooth_adv": call(
        smoothing.losses.smooth_adv, logits=logits, labels=labels
    ),
    "smoothing.losses.macer": call(
        smoothing.losses.macer, logits=logits, labels=labels, sigma=0.25, lam=12.0, gamma=8.0,
        beta=16.0,
    ),
    "smoothing.losses.consistency": call(
        smoothing.losses.consistency, logits=logits, lam=10.0, eta=0.5
    ),
    "smoothing.losses.smoothmix": call(
        smoothing.losses.smoothmix, logits=logits, mixed_logits=logits, labels=labels, share=share
    ),
    "smoothing.SmoothSegmentation": call(
        smoothing.SmoothSegmentation, model=dense, num_classes=CLASSES, **TASK
    ),
    "smoothing.SmoothSegmentation.certify": method(
        lambda: smoothing.SmoothSegmentation(dense(), CLASSES, 0.25, seed=0), "certify", x=images,
        n0=4, n=60, tau=0.75, alpha=0.01, correction="holm", batch_size=10, image_offset=0,
        progress=False,
    ),
    "smoothing.SmoothRegression": call(smoothing.SmoothRegression, model=network, **TASK),
    "smoothing.SmoothRegression.certify": method(
        lambda: smoothing.SmoothRegression(network(), 0.25, seed=0), "certify", x=images, eps=0.1,
        n=60, alpha=0.01, q=0.5, batch_size=10, image_offset=0, progress=False,
    ),
}  # fmt: skip
