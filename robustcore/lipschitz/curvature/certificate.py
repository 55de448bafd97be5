"""l2 radii of smooth perceptrons, from bounds of their curvature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustcore.common.checks import require_int
from robustcore.lipschitz.certificates import Certificate
from robustcore.lipschitz.curvature.bounds import most_negative, upper_eigenvalues
from robustcore.lipschitz.curvature.mlp import Mlp, read_mlp
from robustcore.lipschitz.curvature.proof import distance_from_smooth, proven_radii
from robustcore.lipschitz.curvature.search import Margins, search

_ROWS = 4096  # margins searched at a time: what bounds the memory


@torch.no_grad()
def curvature_certificate(model: nn.Module, x: Tensor, *, steps: int = 20) -> Certificate:
    """Predictions of a smooth perceptron and their certified l2 radii.

    Args:
        model: linear layers with softplus, sigmoid or tanh between them, two to four or more, K >=
            2 logits ``[N, K]``; read from the graph that torch.export gives. Weights of any
            floating dtype count as the numbers they are.
        x: images ``[N, *D]`` of the model's dtype.
        steps: of the search for a proof; more may find larger radii, none finds a false one.

    Returns:
        A :class:`Certificate`; its ``bound`` is None. Radii are those of exact arithmetic on the
        model's weights, for all of the input space (no box), over all classes; 0 where nothing is
        proven. Rounding in the computation of the radius is counted, that of the model's own
        forward is not. Not differentiable.

    The radius is ``sqrt(2 d)``, d the largest dual value ``min_u |u - x|^2 / 2 + eta margin(u)``
    found. With the margin's Hessian at least ``-m I`` everywhere, a proven bound, the minimum is
    convex for ``eta < 1 / m`` and any point near it bounds it from below. A bound of m takes one
    Cholesky factorisation a pair of classes.

    Raises ValueError or TypeError naming the argument, or the module that is no part of a smooth
    perceptron.

    Source: Singla and Feizi, "Second-order provable defenses against adversarial attacks", ICML
    2020, whose released code estimates m from below and looks at one other class.
    """
    require_int("steps", steps, 1, 10_000)
    net = read_mlp(model, x)
    logits = model(x)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"model: gives logits {list(logits.shape)}, want [N, K] with K >= 2")
    chosen, classes = logits.argmax(1), logits.shape[1]
    others = torch.arange(classes - 1, device=x.device).expand(len(x), -1)
    others = others + (others >= chosen[:, None])  # [N, K - 1]
    certificate = _Certifier(net, chosen.unique(), steps)
    radii = [
        certificate(images, own, other).amin(1)
        for images, own, other in zip(
            *(t.split(max(1, _ROWS // (classes - 1))) for t in (x.flatten(1), chosen, others)),
            strict=True,
        )
    ]
    return Certificate(chosen, torch.cat(radii).masked_fill(logits.isnan().any(1), 0.0), None)


class _Certifier:
    """What all images share: the bounds of every pair of classes that is asked for."""

    def __init__(self, net: Mlp, chosen: Tensor, steps: int) -> None:
        self.proof, self.steps = net.to(torch.float64), steps
        single = net.weights[0].dtype != torch.float64
        self.net = net.to(torch.float32) if single else self.proof
        self.gram = self.net.weights[0] @ self.net.weights[0].T
        last, bias = self.proof.weights[-1], self.proof.biases[-1]
        classes = len(last)
        self.rows, self.offsets = last[:, None] - last, bias[:, None] - bias  # [K, K, hidden]
        wanted = torch.zeros(classes, classes, dtype=torch.bool, device=last.device)
        wanted[chosen] = True
        wanted = (wanted | wanted.T).fill_diagonal_(False)
        # The reverse of a margin has the opposite Hessian, so both of a pair are of use.
        self.concave = last.new_zeros(classes, classes)
        self.concave[wanted] = most_negative(self.proof, self.rows[wanted], upper_eigenvalues)

    def __call__(self, images: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
        """[N, K - 1] radii of the chosen classes over the others."""
        own, other = chosen.repeat_interleave(others.shape[1]), others.flatten()
        images = images.repeat_interleave(others.shape[1], 0)
        weight, bias, dtype = self.net.weights[0], self.net.biases[0], self.net.weights[0].dtype
        rows, offsets = self.rows[own, other], self.offsets[own, other]
        concave, convex = self.concave[own, other], self.concave[other, own]
        margins = Margins(
            images.to(dtype) @ weight.T + bias,
            *(t.to(dtype) for t in (rows, offsets, concave, convex)),
        )
        found = search(self.net, self.gram, margins, self.steps)
        images = images.double()
        points = images - found.c.double() @ self.proof.weights[0]
        radii = proven_radii(
            self.proof, images, points, found.eta.double(), rows, offsets, concave,
            distance_from_smooth(self.proof, rows),
        )  # fmt: skip
        return radii.view_as(others)
