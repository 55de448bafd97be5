"""Certificates of smooth networks from bounds of their curvature (CRC), and training for them."""

from robustcore.lipschitz.curvature.certificate import curvature_certificate
from robustcore.lipschitz.curvature.penalty import curvature_penalty

__all__ = ["curvature_certificate", "curvature_penalty"]
