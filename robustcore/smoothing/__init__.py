"""Randomized smoothing: certify any classifier against l2 perturbations."""

from robustcore.smoothing.augment import noise_augment
from robustcore.smoothing.bounds import clopper_pearson_lower, gaussian_radius
from robustcore.smoothing.certificates import ABSTAIN, Certificates, Predictions
from robustcore.smoothing.sequential import RadiusTests, StoppedCertificates
from robustcore.smoothing.smooth import Smooth

__all__ = [
    "ABSTAIN",
    "Certificates",
    "Predictions",
    "RadiusTests",
    "Smooth",
    "StoppedCertificates",
    "clopper_pearson_lower",
    "gaussian_radius",
    "noise_augment",
]
