"""Groups that a spurious feature hurts: a loss for the worst of them, and measures of the harm.

A group is a class together with a value of the spurious attribute, such as waterbirds on land, as
int64 ``[N]`` in [0, num_groups).
"""

from robustcore.density.groups.accuracy import GroupAccuracy, core_accuracy, group_accuracy
from robustcore.density.groups.dro import GroupDRO
from robustcore.density.groups.images import GroupImages, load_celeba, load_waterbirds
from robustcore.density.groups.spuriosity import (
    SpuriosityRanking,
    SpuriousGap,
    least_spurious,
    retrain_head,
    spuriosity_ranking,
    spurious_gap,
)
from robustcore.density.matching import gradient_matching_penalty

__all__ = [
    "GroupAccuracy",
    "GroupDRO",
    "GroupImages",
    "SpuriosityRanking",
    "SpuriousGap",
    "core_accuracy",
    "gradient_matching_penalty",
    "group_accuracy",
    "least_spurious",
    "load_celeba",
    "load_waterbirds",
    "retrain_head",
    "spuriosity_ranking",
    "spurious_gap",
]
