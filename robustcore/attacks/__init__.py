"""Attacks: adversarial images, an upper bound on robust accuracy, and training against them."""

from robustcore.attacks.apgd import APGD, APGDT
from robustcore.attacks.autoattack import AutoAttack, Evaluation
from robustcore.attacks.fab import FAB
from robustcore.attacks.perceptual import PerceptualLPA, PerceptualPGD
from robustcore.attacks.pgd import FGSM, PGD
from robustcore.attacks.result import Attacked
from robustcore.attacks.spatial import Spatial
from robustcore.attacks.square import Square
from robustcore.attacks.training import adversarial_training_loss

__all__ = [
    "APGD",
    "APGDT",
    "FAB",
    "FGSM",
    "PGD",
    "Attacked",
    "AutoAttack",
    "Evaluation",
    "PerceptualLPA",
    "PerceptualPGD",
    "Spatial",
    "Square",
    "adversarial_training_loss",
]
