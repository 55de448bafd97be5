"""1-Lipschitz networks: orthogonal convolutions and deterministic l2 certificates."""

from robustcore.lipschitz.base import LipschitzModule
from robustcore.lipschitz.blocks import (
    Abs,
    BatchCentering,
    GroupSort,
    L2NormPool2d,
    Residual,
)
from robustcore.lipschitz.bounds import lipschitz_bound
from robustcore.lipschitz.cayley import CayleyConv2d, CayleyLinear
from robustcore.lipschitz.certificates import (
    Certificate,
    certificate_loss,
    crc_certificate,
    margin_certificate,
)
from robustcore.lipschitz.certify import certify
from robustcore.lipschitz.curvature import curvature_certificate, curvature_penalty
from robustcore.lipschitz.export import export
from robustcore.lipschitz.layers import (
    CRCHead,
    Householder,
    MaxMin,
    NormalizedLinear,
    ProjectionPool2d,
)
from robustcore.lipschitz.losses import hkr, tau_cross_entropy
from robustcore.lipschitz.networks import LipConvNet, Normalize
from robustcore.lipschitz.orthogonal import (
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConv3d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
    OrthogonalConvTranspose3d,
    OrthogonalLinear,
)
from robustcore.lipschitz.precision import exact_products
from robustcore.lipschitz.rescaled import AOLConv2d, AOLLinear, SLLConv2d, SLLLinear
from robustcore.lipschitz.soc import SOC
from robustcore.ops import conv_norm_bound, conv_spectral_bound

__all__ = [
    "SOC",
    "AOLConv2d",
    "AOLLinear",
    "Abs",
    "BatchCentering",
    "CRCHead",
    "CayleyConv2d",
    "CayleyLinear",
    "Certificate",
    "GroupSort",
    "Householder",
    "L2NormPool2d",
    "LipConvNet",
    "LipschitzModule",
    "MaxMin",
    "Normalize",
    "NormalizedLinear",
    "OrthogonalConv1d",
    "OrthogonalConv2d",
    "OrthogonalConv3d",
    "OrthogonalConvTranspose1d",
    "OrthogonalConvTranspose2d",
    "OrthogonalConvTranspose3d",
    "OrthogonalLinear",
    "ProjectionPool2d",
    "Residual",
    "SLLConv2d",
    "SLLLinear",
    "certificate_loss",
    "certify",
    "conv_norm_bound",
    "conv_spectral_bound",
    "crc_certificate",
    "curvature_certificate",
    "curvature_penalty",
    "exact_products",
    "export",
    "hkr",
    "lipschitz_bound",
    "margin_certificate",
    "tau_cross_entropy",
]
