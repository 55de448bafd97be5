"""Which training images made this prediction: projected gradients, TRAK, and what checks them."""

from robustcore.influence.evaluate import lds
from robustcore.influence.linear import LinearInfluence, exact_linear
from robustcore.influence.projector import Projected, Projector
from robustcore.influence.trak import TRAK, Top

__all__ = [
    "TRAK",
    "LinearInfluence",
    "Projected",
    "Projector",
    "Top",
    "exact_linear",
    "lds",
]
