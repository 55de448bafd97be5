"""No attack succeeds inside a certificate of another family."""

import pytest
import torch
from torch import nn

from attacks.models import images
from robustcore import attacks, lipschitz
from robustcore.smoothing import Smooth


def attackers(model, norm, eps):
    yield attacks.PGD(model, eps, norm=norm, steps=20, restarts=2, seed=0)
    yield attacks.APGD(model, eps, norm=norm, steps=20, loss="margin", seed=0)
    yield attacks.FAB(model, eps, norm=norm, steps=10, targets=3, seed=0)


def test_none_inside_a_lipschitz_bound():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    x = images(shape=(3, 4, 4))
    certificate = lipschitz.certify(model, x)
    assert (certificate.radius > 1e-3).all()
    outside = 0
    for b, radius in enumerate(certificate.radius.tolist()):
        one, label = x[b : b + 1], certificate.prediction[b : b + 1]
        for attack in attackers(model, "L2", 0.999 * radius):
            assert not attack.run(one, label).success.any(), (b, radius)
        far = attacks.APGD(model, 10 * radius, norm="L2", steps=20, loss="margin", seed=0)
        outside += int(far.run(one, label).success.sum())
    assert outside  # the attacks do find what there is


@pytest.mark.filterwarnings("ignore:model. two passes")
def test_none_inside_a_smoothing_certificate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    x = images(shape=(3, 4, 4))
    smooth = Smooth(model, 3, 0.25, seed=1)
    certificates = smooth.certify(x, n=2000)
    held = (certificates.prediction >= 0).nonzero().flatten().tolist()
    assert len(held) > 3
    outside = 0
    for b in held:
        one, label = x[b : b + 1], certificates.prediction[b : b + 1]
        radius = float(certificates.radius[b])
        options = dict(norm="L2", steps=10, eot=8, seed=0, predict=dict(n=500))
        assert not attacks.PGD(smooth, 0.99 * radius, **options).run(one, label).success.any(), b
        outside += int(attacks.PGD(smooth, 8 * radius, **options).run(one, label).success.sum())
    assert outside
