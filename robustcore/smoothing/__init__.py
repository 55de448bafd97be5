"""Randomized smoothing: certify any classifier, in l2, l1, linf, l0, against patches, by votes."""

from robustcore.common.table import ABSTAIN
from robustcore.smoothing import losses
from robustcore.smoothing.adaptive import AdaptiveMix, GreatScore, MixCertificates, great_score
from robustcore.smoothing.augment import noise_augment
from robustcore.smoothing.certificates import Certificates, Predictions
from robustcore.smoothing.crops import CropSelection
from robustcore.smoothing.denoised import Denoised, Diffusion
from robustcore.smoothing.regression import RegressionIntervals, SmoothRegression
from robustcore.smoothing.result import Result
from robustcore.smoothing.segmentation import SegmentationCertificates, SmoothSegmentation
from robustcore.smoothing.sequential import RadiusTests, StoppedCertificates
from robustcore.smoothing.smooth import Smooth
from robustcore.smoothing.theory.ablations import BandAblation, BlockAblation, PixelAblation
from robustcore.smoothing.theory.bounds import clopper_pearson_lower, gaussian_radius
from robustcore.smoothing.theory.distributions import (
    Distribution,
    Gaussian,
    Laplace,
    Splitting,
    Uniform,
)
from robustcore.smoothing.theory.dual import Dual
from robustcore.smoothing.theory.votes import (
    dpa_certificate,
    finite_aggregation_certificate,
    majority_certificate,
    message_ensemble_certificate,
    top_k_certificate,
)

__all__ = [
    "ABSTAIN",
    "AdaptiveMix",
    "BandAblation",
    "BlockAblation",
    "Certificates",
    "CropSelection",
    "Denoised",
    "Diffusion",
    "Distribution",
    "Dual",
    "Gaussian",
    "GreatScore",
    "Laplace",
    "MixCertificates",
    "PixelAblation",
    "Predictions",
    "RadiusTests",
    "RegressionIntervals",
    "Result",
    "SegmentationCertificates",
    "Smooth",
    "SmoothRegression",
    "SmoothSegmentation",
    "Splitting",
    "StoppedCertificates",
    "Uniform",
    "clopper_pearson_lower",
    "dpa_certificate",
    "finite_aggregation_certificate",
    "gaussian_radius",
    "great_score",
    "losses",
    "majority_certificate",
    "message_ensemble_certificate",
    "noise_augment",
    "top_k_certificate",
]
