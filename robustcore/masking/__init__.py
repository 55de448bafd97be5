"""Layer masking: run a CNN on part of an image, explain it, and evaluate the explanation."""

from robustcore.masking.model import MaskedModel
from robustcore.masking.plan import Plan, make_plan
from robustcore.masking.rules import UnsupportedOperation

__all__ = ["MaskedModel", "Plan", "UnsupportedOperation", "make_plan"]
