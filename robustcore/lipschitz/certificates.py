"""Lipschitz bounds of whole models, and the l2 radii that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcore.common.checks import (
    require_classes,
    require_floating,
    require_module,
    require_not_negative,
    require_positive,
    require_radii,
)
from robustcore.lipschitz.layers import CRCHead, NormalizedLinear, flat_features, matrix_norm_bound
from robustcore.ops import conv_norm_bound


def lipschitz_bound(model: nn.Module) -> float:
    """Upper bound of a model's l2 Lipschitz constant in eval mode, composed from its layers.

    Understands ``nn.Sequential`` of: modules with a method ``lipschitz_bound()`` (all of this
    family), convolutions, linear layers, BatchNorm, pooling, reshapes and the activations of
    ``torch.nn`` with a bounded slope. The norms are upper bounds computed in float64. It holds in
    exact arithmetic: rounding moves each logit by about ``layers * eps * norm(x)`` more.

    Raises TypeError naming the layer that it cannot bound: of an unknown type, with a forward of
    its own, or with a hook.
    """
    require_module("model", model)
    return _bound(model, "model")


def _bound(module: nn.Module, name: str) -> float:
    kind = type(module)
    if module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(f"{name}: has forward hooks, which nothing bounds; remove them")
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        return math.prod(_bound(child, f"{name}.{key}") for key, child in module.named_children())
    own = getattr(module, "lipschitz_bound", None)
    if callable(own):
        return float(own())
    for known, bound in _BOUNDS.items():
        if isinstance(module, known) and kind.forward is known.forward:
            value = bound(module)
            if value is None:
                break
            return value
    raise TypeError(
        f"{name}: nothing bounds a {kind.__name__} ({module}); give it a method lipschitz_bound()"
    )


def _linear(module: Any) -> float:
    return matrix_norm_bound(module.weight)


def _convolution(module: Any) -> float | None:
    if module.padding_mode not in ("zeros", "circular"):
        return None  # reflected pixels count twice
    kernel = module.weight.unflatten(0, (module.groups, -1))
    grid = 32 if max(kernel.shape[1:3]) <= 64 else 16
    return float(conv_norm_bound(kernel, max(grid, 2 * max(kernel.shape[-2:]))).max())


def _batch_norm(module: Any) -> float | None:
    if module.running_var is None or module.training:
        return None
    slope = (module.running_var.double() + module.eps).rsqrt()
    if module.weight is not None:
        slope = slope * module.weight.detach().double().abs()
    return float(slope.max())


def _pool(module: Any) -> float | None:
    # Windows that overlap would count a pixel several times.
    kernel, stride = (
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (module.kernel_size, module.stride or module.kernel_size)
    )
    if any(k > s for k, s in zip(kernel, stride, strict=True)):
        return None
    if isinstance(module, nn.AvgPool2d):
        return 1 / math.sqrt(math.prod(kernel)) if module.divisor_override is None else None
    return 1.0 if module.dilation in (1, (1, 1)) else None


def _one(module: Any) -> float:
    return 1.0


_NON_EXPANSIVE = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.Tanh, nn.Softplus, nn.Hardtanh,
    nn.PixelUnshuffle, nn.PixelShuffle, nn.ChannelShuffle, nn.ZeroPad2d,
)  # fmt: skip
_BOUNDS: dict[type[nn.Module], Callable[[Any], float | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.LeakyReLU: lambda module: max(1.0, abs(module.negative_slope)),
    nn.ELU: lambda module: max(1.0, abs(module.alpha)),
    nn.Sigmoid: lambda module: 0.25,
    nn.Dropout: lambda module: None if module.training and module.p > 0 else 1.0,
    **dict.fromkeys(_NON_EXPANSIVE, _one),
}


def margin_certificate(
    logits: Tensor,
    bound: float,
    *,
    head: nn.Module | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """l2 radii within which the arg-max of the logits cannot change, from their margins.

    Args:
        logits: ``[N, K]``, K >= 2.
        bound: Lipschitz bound of the network, in logits per unit of input; with a ``head``, of the
            features that the head reads.
        head: a NormalizedLinear or ``nn.Linear``: its rows w give each pair of classes a constant
            of its own, ``bound * norm(w_y - w_j)``. Without one it is ``sqrt(2) * bound``, which is
            also right for an orthogonal head (SOC) counted in the bound.
        labels: int64 ``[N]``; default: the arg-max.

    Returns:
        float64 ``[N]``: the smallest over j of ``(f_y - f_j) / constant``; negative where the label
        is not the arg-max, NaN where a logit is. Differentiable in the logits and the head's rows.
        Raises ValueError or TypeError naming the argument.
    Source: Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", 2018; Singla et al., 2022.
    """
    if require_floating("logits", logits).dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [N, K] with K >= 2")
    bound = require_positive("bound", bound)
    values = logits.double()
    chosen = _chosen(values, labels)
    margins = values.gather(1, chosen[:, None]) - values
    if head is None:
        constants = torch.full_like(values[:1], math.sqrt(2)).expand_as(values)
    elif isinstance(head, nn.Linear):
        rows = (
            head.normalized_weight() if isinstance(head, NormalizedLinear) else head.weight
        ).double()
        if len(rows) != values.shape[1]:
            raise ValueError(f"head: got {len(rows)} classes, want {values.shape[1]} as logits")
        apart = torch.linalg.vector_norm(rows[:, None] - rows[None], dim=2)
        constants = apart[chosen] * (1 + 1e-12)
    else:
        raise TypeError(
            f"head: got {type(head).__name__}, want a NormalizedLinear or an nn.Linear; "
            "for a CRCHead see crc_certificate"
        )
    # Equal rows: the margin cannot change. Kept out of the quotient, whose gradient would be NaN.
    fixed = constants == 0
    radii = margins / (bound * constants.masked_fill(fixed, 1.0))
    radii = torch.where(fixed & (margins != 0), margins.sign() * math.inf, radii)
    return _smallest(radii, chosen)


def _chosen(logits: Tensor, labels: Any) -> Tensor:
    """The class of each row: as given, or the arg-max."""
    return logits.argmax(1) if labels is None else require_classes("labels", labels, *logits.shape)


def _smallest(radii: Tensor, chosen: Tensor) -> Tensor:
    """Over the classes that were not chosen; NaN if there is one."""
    own = torch.zeros_like(radii, dtype=torch.bool).scatter(1, chosen[:, None], True)
    return radii.masked_fill(own & ~radii.isnan(), math.inf).amin(1)


def crc_certificate(
    head: CRCHead, features: Tensor, bound: float, *, labels: Tensor | None = None
) -> Tensor:
    """l2 radii for a network that ends in a CRCHead, from gradients and curvature of the margins.

    ``(sqrt(norm(g)^2 + 2 K D) - norm(g)) / (K * bound)`` with D a margin, g its gradient in the
    features, and K = beta / 4 * norm(W1)^2 * max(-(w2_y - w2_j), 0) its curvature from below;
    ``D / (norm(g) bound)`` at K = 0. Computed in float64, norm(W1) as an upper bound.

    Args:
        head: the last layers.
        features: ``[N, *]``, its inputs.
        bound: Lipschitz bound of the features.
        labels: int64 ``[N]``; default: the arg-max of the logits.

    Returns:
        float64 ``[N]``: smallest over the other classes, 0 at most where the label is not the
        arg-max. Differentiable. Raises ValueError naming the argument.
    Source: Singla and Feizi, "Second-order provable defenses", 2020; Singla et al., 2022.
    """
    if not isinstance(head, CRCHead):
        raise TypeError(f"head: got a {type(head).__name__}, want a CRCHead")
    bound = require_positive("bound", bound)
    flat = flat_features(features, head.linear1.in_features, "features")
    w1, w2 = head.linear1.weight.double(), head.linear2.weight.double()
    inner = flat.double() @ w1.T + head.linear1.bias.double()
    active = torch.nn.functional.softplus(inner, head.beta)
    logits = active @ w2.T + head.linear2.bias.double()
    chosen = _chosen(logits, labels)
    margins = logits.gather(1, chosen[:, None]) - logits  # [N, K]
    apart = w2[chosen][:, None] - w2[None]  # [N, K, hidden]
    slope = torch.sigmoid(head.beta * inner)
    gradient = torch.linalg.vector_norm((apart * slope[:, None]) @ w1, dim=2)
    norm = torch.linalg.matrix_norm(w1, ord=2) * (1 + 1e-12)
    curvature = head.beta / 4 * norm**2 * (-apart).clamp(min=0).amax(2)
    # The same quotient without cancellation, and without a division by a curvature of 0.
    root = (gradient**2 + 2 * curvature * margins.clamp(min=0)).clamp(min=1e-300).sqrt()
    radii = 2 * margins / ((root + gradient) * bound)
    return _smallest(radii, chosen)


def certificate_loss(logits: Tensor, labels: Tensor, certificates: Tensor, gamma: float) -> Tensor:
    """Cross-entropy less ``gamma`` times the mean of the positive certificates.

    Args:
        logits: ``[N, K]``; labels: int64 ``[N]``.
        certificates: ``[N]`` of those labels, see :func:`margin_certificate`.
        gamma: per unit of radius, at least 0.

    Differentiable. Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2022.
    """
    if require_floating("logits", logits).dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [N, K]")
    # On a GPU torch looks at them: to do so here would wait for it.
    classes = None if logits.is_cuda else logits.shape[1]
    require_classes("labels", labels, len(logits), classes)
    if require_floating("certificates", certificates).shape != logits.shape[:1]:
        got = list(certificates.shape)
        raise ValueError(f"certificates: got shape {got}, want [{len(logits)}]")
    gamma = require_not_negative("gamma", gamma)
    return cross_entropy(logits, labels) - gamma * certificates.relu().mean().to(logits.dtype)


@dataclass(frozen=True, eq=False)
class Certificate:
    """Predictions of N images and the l2 radii within which they cannot change."""

    prediction: Tensor
    """int64 ``[N]``."""
    radius: Tensor
    """float64 ``[N]``, in the input's units (usually pixels in [0, 1])."""
    bound: float | None
    """The Lipschitz bound used: of the features where a head is taken apart, else of the logits;
    None where curvature was used."""

    def __len__(self) -> int:
        return len(self.prediction)

    def certified_accuracy(self, labels: Tensor, radii: Any) -> Tensor:
        """Part of the images that are right and certified to each radius: float64, as ``radii``."""
        wanted = require_radii(radii)
        require_classes("labels", labels, len(self))
        right = (self.prediction == labels.to(self.prediction.device)).cpu()
        reached = self.radius.cpu() >= wanted.unsqueeze(-1)
        return (reached & right).double().mean(-1)


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 convolutions and matrix products at full precision: no TF32, no autocast.

    A context; :func:`certify` is inside it already.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@torch.no_grad()
def certify(model: nn.Module, x: Tensor) -> Certificate:
    """Predictions of ``model`` and their certified l2 radii.

    Args:
        model: in eval mode, float32 or float64; a LipConvNet, or anything :func:`lipschitz_bound`
            understands. A LipConvNet or an ``nn.Sequential`` that ends in a NormalizedLinear,
            ``nn.Linear`` or CRCHead is taken apart before it, for larger radii.
        x: a batch of inputs.

    Returns:
        A :class:`Certificate`. Logits are computed without TF32 or autocast; radii are those of
        exact arithmetic on the logits computed. Not differentiable. Raises ValueError or TypeError
        naming the argument.

    Source: Tsuzuku, Sato, Sugiyama, 2018; Singla and Feizi, "Second-order provable defenses", 2020.
    """
    require_module("model", model)
    if require_floating("x", x).dim() < 2:
        raise ValueError(f"x: got shape {list(x.shape)}, want a batch [N, *D]")
    if model.training:
        raise ValueError("model: is in training mode, want model.eval()")
    for name, tensor in model.named_parameters():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"model: {name} is {tensor.dtype}, want float32 or float64")
    with exact_products():
        body, head = _parts(model)
        bound = lipschitz_bound(body)
        features = body(x)
        if isinstance(head, CRCHead):
            radius = crc_certificate(head, features, bound)
            logits = head(features)
        else:
            logits = features if head is None else head(features)
            logits = logits.flatten(1)
            radius = margin_certificate(logits, bound, head=head)
        return Certificate(logits.argmax(1), radius, bound)


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """The model without its head, and the head where it allows for better certificates."""
    if model._forward_hooks or model._forward_pre_hooks:
        return model, None  # to be refused
    split = getattr(model, "body_and_head", None)
    if callable(split):
        body, head = split()
    elif isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        body, head = model[:-1], model[-1] if len(model) > 1 else None
    else:
        return model, None
    # A hook or a forward of its own would be left out: _bound refuses it in the whole.
    plain = type(head) in (nn.Linear, NormalizedLinear, CRCHead)
    if head is not None and (not plain or head._forward_hooks or head._forward_pre_hooks):
        return model, None
    return body, head
