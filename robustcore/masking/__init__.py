"""Layer masking: run a model on part of an image, explain it, and evaluate the explanation."""

from robustcore.masking.curves import Curves, masked_accuracy_curve
from robustcore.masking.explain import (
    Explanation,
    LimeExplanation,
    SegmentExplanation,
    ShapExplanation,
    explain_lime,
    explain_occlusion,
    explain_rise,
    explain_shap,
)
from robustcore.masking.game import Game, insertion_deletion
from robustcore.masking.model import MaskedModel
from robustcore.masking.plan import Plan, make_plan
from robustcore.masking.predictor import replaced
from robustcore.masking.rules.call import UnsupportedOperation

__all__ = [
    "Curves",
    "Explanation",
    "Game",
    "LimeExplanation",
    "MaskedModel",
    "Plan",
    "SegmentExplanation",
    "ShapExplanation",
    "UnsupportedOperation",
    "explain_lime",
    "explain_occlusion",
    "explain_rise",
    "explain_shap",
    "insertion_deletion",
    "make_plan",
    "masked_accuracy_curve",
    "replaced",
]
