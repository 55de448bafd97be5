"""Layer masking: run a CNN on part of an image, explain it, and evaluate the explanation."""

from robustcore.masking.evaluate import (
    Curves,
    Game,
    insertion_deletion,
    masked_accuracy_curve,
    replaced,
)
from robustcore.masking.explain import LimeExplanation, explain_lime
from robustcore.masking.model import MaskedModel
from robustcore.masking.plan import Plan, make_plan
from robustcore.masking.rules.call import UnsupportedOperation

__all__ = [
    "Curves",
    "Game",
    "LimeExplanation",
    "MaskedModel",
    "Plan",
    "UnsupportedOperation",
    "explain_lime",
    "insertion_deletion",
    "make_plan",
    "masked_accuracy_curve",
    "replaced",
]
