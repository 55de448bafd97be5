"""Log-sum-exp gradient regularisers: models that do not lean on features their data do not need."""

from robustcore.density.double_backward import fast_double_backward
from robustcore.density.evaluate import (
    density_curve,
    feature_leakage,
    gradient_curve,
    insertion_game,
    integrated_gradients,
    pixel_perturbation,
)
from robustcore.density.groups import (
    GroupAccuracy,
    GroupDRO,
    GroupImages,
    SpuriosityRanking,
    SpuriousGap,
    core_accuracy,
    group_accuracy,
    least_spurious,
    load_celeba,
    load_waterbirds,
    retrain_head,
    spuriosity_ranking,
    spurious_gap,
)
from robustcore.density.matching import gradient_matching_penalty
from robustcore.density.ood import OODMetrics, ood_auroc, ood_metrics
from robustcore.density.penalties import (
    attribution_penalty,
    curvature_penalty,
    input_gradient_penalty,
    marginal_density_penalty,
    score_matching_penalty,
)
from robustcore.density.penalty_op import PenaltyOp
from robustcore.density.saliency import activation_maximisation, langevin_samples, smooth_grad

__all__ = [
    "GroupAccuracy",
    "GroupDRO",
    "GroupImages",
    "OODMetrics",
    "PenaltyOp",
    "SpuriosityRanking",
    "SpuriousGap",
    "activation_maximisation",
    "attribution_penalty",
    "core_accuracy",
    "curvature_penalty",
    "density_curve",
    "fast_double_backward",
    "feature_leakage",
    "gradient_curve",
    "gradient_matching_penalty",
    "group_accuracy",
    "input_gradient_penalty",
    "insertion_game",
    "integrated_gradients",
    "langevin_samples",
    "least_spurious",
    "load_celeba",
    "load_waterbirds",
    "marginal_density_penalty",
    "ood_auroc",
    "ood_metrics",
    "pixel_perturbation",
    "retrain_head",
    "score_matching_penalty",
    "smooth_grad",
    "spuriosity_ranking",
    "spurious_gap",
]
