"""The calls of the density family's groups, scores and pictures."""

import functools
from pathlib import Path

import torch

from bad_input.inputs import call, images, labels, method, network, rand, tmp_path
from robustcore import density


def dro():
    return density.GroupDRO(2)


def classes():
    return torch.arange(12) % 2


def features():
    return rand(12, 3)


@functools.cache
def ranking():
    return density.spuriosity_ranking(features(), classes(), {0: [1], 1: [2]})


def critic(x):
    return x.square().flatten(1).sum(1)


def waterbirds():
    folder = Path(tmp_path("waterbirds"))
    folder.mkdir(exist_ok=True)
    (folder / "metadata.csv").write_text("img_filename,y,split,place\na.png,1,0,0\n")
    return folder


def celeba():
    folder = Path(tmp_path("celeba"))
    folder.mkdir(exist_ok=True)
    (folder / "list_attr_celeba.txt").write_text("1\nBlond_Hair Male\na.jpg 1 -1\n")
    (folder / "list_eval_partition.txt").write_text("a.jpg 0\n")
    return folder


EXAMPLES = {
    "density.GroupDRO": call(
        density.GroupDRO, num_groups=2, eta=0.01, adjustment=0.0, group_counts=None
    ),
    "density.GroupDRO/counts": call(
        density.GroupDRO, num_groups=2, adjustment=0.5, group_counts=(3, 4)
    ),
    "density.GroupDRO.forward": method(dro, "forward", losses=lambda: rand(2), groups=labels),
    "density.group_accuracy": call(
        density.group_accuracy, predicted=labels, labels=labels, groups=labels, num_groups=3,
        train_counts=(1, 2, 3),
    ),
    "density.core_accuracy": call(
        density.core_accuracy, model=network, x=images, y=labels, mask=lambda: rand(2, 1, 8, 8),
        sigma=0.25, seed=0, image_offset=0,
    ),
    "density.gradient_matching_penalty": call(
        density.gradient_matching_penalty, critic=lambda: critic, x=images, target=lambda: critic,
        reduction="mean", values=None,
    ),
    "density.spuriosity_ranking": call(
        density.spuriosity_ranking, features=features, labels=classes,
        spurious_features=lambda: {0: [1], 1: [2]},
    ),
    "density.spurious_gap": call(
        density.spurious_gap, predicted=classes, labels=classes, ranking=ranking, k=2
    ),
    "density.least_spurious": call(density.least_spurious, ranking=ranking, k=2),
    "density.retrain_head": call(
        density.retrain_head, features=features, labels=classes, chosen=lambda: torch.arange(6),
        num_classes=2, ridge=1e-2,
    ),
    "density.load_waterbirds": call(
        density.load_waterbirds, root=waterbirds, split="train", transform=None
    ),
    "density.load_celeba": call(
        density.load_celeba, root=celeba, split="train", target="Blond_Hair", attribute="Male",
        transform=None,
    ),
    "density.smooth_grad": call(
        density.smooth_grad, model=network, x=images, target=labels, sigma=0.1, samples=2, seed=0,
        image_offset=0,
    ),
    "density.activation_maximisation": call(
        density.activation_maximisation, model=network, start=images, target=labels, of="logit",
        steps=2, step_size=0.1, bounds=(0.0, 1.0),
    ),
    "density.langevin_samples": call(
        density.langevin_samples, model=network, start=images, target=labels, steps=2,
        step_size=1.0, noise=0.01, bounds=None, seed=0, image_offset=0, step_offset=0,
    ),
    "density.ood_metrics": call(
        density.ood_metrics, model=network, inside=images, outside=images, score="lse",
        temperature=1.0,
    ),
    "density.ood_auroc": call(
        density.ood_auroc, model=network, inside=images, outside=images, score="lse",
        temperature=1.0,
    ),
}  # fmt: skip
