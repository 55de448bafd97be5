"""Log-sum-exp gradient regularisers: models that do not lean on features their data do not need."""

from robustcore.density.double_backward import fast_double_backward
from robustcore.density.evaluate import (
    density_curve,
    feature_leakage,
    gradient_curve,
    insertion_game,
    integrated_gradients,
    ood_auroc,
    pixel_perturbation,
)
from robustcore.density.penalties import (
    attribution_penalty,
    curvature_penalty,
    input_gradient_penalty,
    marginal_density_penalty,
    score_matching_penalty,
)
from robustcore.density.penalty_op import PenaltyOp

__all__ = [
    "PenaltyOp",
    "attribution_penalty",
    "curvature_penalty",
    "density_curve",
    "fast_double_backward",
    "feature_leakage",
    "gradient_curve",
    "input_gradient_penalty",
    "insertion_game",
    "integrated_gradients",
    "marginal_density_penalty",
    "ood_auroc",
    "pixel_perturbation",
    "score_matching_penalty",
]
