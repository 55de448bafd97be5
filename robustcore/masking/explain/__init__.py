"""Explanations: which parts of an image a model's answer rests on."""

from robustcore.masking.explain.explanation import (
    Explanation,
    LimeExplanation,
    SegmentExplanation,
    ShapExplanation,
)
from robustcore.masking.explain.lime import explain_lime
from robustcore.masking.explain.occlusion import explain_occlusion
from robustcore.masking.explain.rise import explain_rise
from robustcore.masking.explain.shap import explain_shap

__all__ = [
    "Explanation",
    "LimeExplanation",
    "SegmentExplanation",
    "ShapExplanation",
    "explain_lime",
    "explain_occlusion",
    "explain_rise",
    "explain_shap",
]
