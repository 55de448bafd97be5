"""The calls of the lipschitz family's curvature certificates."""

import torch

from bad_input.inputs import CLASSES, call, labels, rand
from robustcore import lipschitz


def perceptron():
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 5), torch.nn.Softplus(), torch.nn.Linear(5, CLASSES)
    return torch.nn.Sequential(*layers).eval()


EXAMPLES = {
    "lipschitz.crc_certificate": call(
        lipschitz.crc_certificate, head=lambda: lipschitz.CRCHead(4, 3),
        features=lambda: rand(2, 4), bound=1.0, labels=labels,
    ),
    "lipschitz.curvature_certificate": call(
        lipschitz.curvature_certificate, model=perceptron, x=lambda: rand(2, 4), steps=3
    ),
    "lipschitz.curvature_penalty": call(
        lipschitz.curvature_penalty, model=perceptron, x=lambda: rand(2, 4),
        labels=lambda: torch.tensor([0, 1]),
    ),
}  # fmt: skip
