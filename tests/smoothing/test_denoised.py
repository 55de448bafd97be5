"""Denoised and Diffusion: a Gaussian prior, whose best denoiser is linear and known."""

import copy

import pytest
import torch
from torch import nn

from robustcore import ops
from robustcore.smoothing import Denoised, Diffusion, Smooth

SCHEDULE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
MU, TAU = 0.3, 0.4  # of the prior, on [-1, 1]


class BestEps(nn.Module):
    """E[eps | x_t] for pixels from N(MU, TAU^2)."""

    def __init__(self, learnt_variance=False):
        super().__init__()
        self.learnt_variance, self.steps = learnt_variance, []

    def forward(self, x, t):
        self.steps.append(t)
        a = SCHEDULE[t[0]]
        eps = (1 - a).sqrt() * (x - a.sqrt() * MU) / (a * TAU**2 + 1 - a)
        return torch.cat([eps, torch.full_like(eps, 9.0)], 1) if self.learnt_variance else eps


def sigma_of(step):
    """The noise of a step, in pixels in [0, 1]."""
    return float(((1 - SCHEDULE[step]) / SCHEDULE[step]).sqrt() / 2)


def flat(x):
    return x.flatten(1)


@pytest.mark.parametrize("step", [20, 200, 500])
@pytest.mark.parametrize("learnt_variance", [False, True])
def test_is_the_posterior_mean(step, learnt_variance):
    """Of a pixel u from N(m, s^2) seen as u + sigma z: m + s^2 / (s^2 + sigma^2) (seen - m)."""
    sigma = sigma_of(step)
    model = Diffusion(BestEps(learnt_variance), SCHEDULE, flat, sigma, clip=False)
    assert model.step == step
    m, s = (MU + 1) / 2, TAU / 2
    z = torch.randn(5000, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    clean = m + s * z
    seen = ops.gaussian_noise(clean, 1, sigma, seed=1).squeeze(1)
    denoised = model(seen).view_as(clean)
    torch.testing.assert_close(denoised, m + s**2 / (s**2 + sigma**2) * (seen - m))
    # And so it errs as little as anything can.
    error = float((denoised - clean).square().mean())
    assert error == pytest.approx(1 / (1 / s**2 + 1 / sigma**2), rel=0.05)


def test_the_model_is_told_the_step_and_sees_the_noise_of_it():
    sigma, eps = sigma_of(300), BestEps()
    model = Diffusion(eps, SCHEDULE, flat, sigma)
    received = []
    eps.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    noisy = ops.gaussian_noise(torch.full((1, 1, 64, 64), 0.75), 4, sigma, seed=0).flatten(0, 1)
    model(noisy.double())
    assert eps.steps[0].tolist() == [300] * 4
    a = float(SCHEDULE[300])
    # x_t = sqrt(abar) x0 + sqrt(1 - abar) eps, x0 = 1/2 on [-1, 1]: noise is not added twice.
    assert float(received[0].mean()) == pytest.approx(a**0.5 * 0.5, abs=0.03)
    assert float(received[0].std()) == pytest.approx((1 - a) ** 0.5, rel=0.03)


def test_nearest_step_clip_and_objects():
    class Made:
        def __init__(self, sample):
            self.sample = sample

    model = Diffusion(lambda x, t: Made(x), SCHEDULE.tolist(), flat, 0.25)
    ratios = ((1 - SCHEDULE) / SCHEDULE).log()
    assert model.step == int((ratios - torch.tensor(0.5).log() * 2).abs().argmin())
    out = Diffusion(lambda x, t: -9 * x, SCHEDULE, flat, 0.25)(torch.rand(2, 3, 4, 4) * 5)
    assert out.min() >= 0 and out.max() <= 1  # noqa: PT018
    again = copy.deepcopy(Diffusion(BestEps(), SCHEDULE, nn.Flatten(), 0.25))
    assert again.denoiser.eps_model is not None


def test_is_certified_like_any_classifier():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    for base in (
        Denoised(lambda x: x.clamp(0, 1), classifier).eval(),
        Diffusion(BestEps(), SCHEDULE.float(), classifier.double(), 0.25).eval(),
    ):
        x = torch.rand(2, 3, 2, 2, dtype=torch.float64)
        base = base.double()
        result = Smooth(base, 3, 0.25, seed=0).certify(x, 10, 100)
        assert int(result.counts.sum()) == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eps_model=3), "eps_model: got int"),
        (dict(classifier=None), "classifier: got NoneType"),
        (dict(alphas_cumprod=[0.5, 0.6]), "alphas_cumprod: want .* fall"),
        (dict(alphas_cumprod=[1.0, 0.6]), "alphas_cumprod: want"),
        (dict(alphas_cumprod=0.5), "alphas_cumprod: got shape"),
        (dict(alphas_cumprod="x"), "alphas_cumprod: got a str"),
        (dict(sigma=1e5), "sigma: got 100000.0, want one of the schedule's"),
        (dict(sigma=0), "sigma: got 0"),
        (dict(clip=1), "clip: got 1"),
    ],
)
def test_errors(change, message):
    good = dict(eps_model=BestEps(), alphas_cumprod=SCHEDULE, classifier=flat, sigma=0.25)
    with pytest.raises((TypeError, ValueError), match=message):
        Diffusion(**{**good, **change})


def test_a_wrong_eps():
    with pytest.raises(ValueError, match=r"eps_model: gave \[2, 1\]"):
        Diffusion(lambda x, t: x[:, :, 0, 0], SCHEDULE, flat, 0.25)(torch.rand(2, 1, 3, 3))
