"""Published results, recomputed. The samples in data/ name their sources."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from robustcore.smoothing import Certificates, clopper_pearson_lower, gaussian_radius

DATA = Path(__file__).parent / "data"
N = 100_000
TABLES = [
    ("cifar10_cohen_sigma0.50.tsv", 0.5, 0.001),
    ("cifar10_locuslab_sigma0.25.tsv", 0.25, 0.01),
]


def read_table(name):
    lines = (DATA / name).read_text().splitlines()
    assert lines[1].split("\t") == ["idx", "label", "predict", "radius", "correct", "time"]
    return [line.split("\t") for line in lines[2:]]


def recounted(rows, sigma, alpha):
    """Certificates from the votes that a published table tells of, and its labels."""
    k = np.arange(N // 2, N + 1)
    p_lower = clopper_pearson_lower(k, N, alpha)
    radii = gaussian_radius(np.maximum(p_lower, 0.5), sigma)
    votes_of = {f"{r:.3}": votes for votes, r in zip(k.tolist(), radii.tolist(), strict=True)}
    counts = torch.zeros(len(rows), 10, dtype=torch.int64)
    for i, (_, _, predict, radius, _, _) in enumerate(rows):
        # An abstention does not tell its votes: half of them are too few.
        choice, votes = (0, N // 2) if predict == "-1" else (int(predict), votes_of[radius])
        counts[i, choice] = votes
        counts[i, (choice + 1) % 10] = N - votes
    labels = [int(row[1]) for row in rows]
    certificates = Certificates.from_counts(
        counts, counts, n0=100, n=N, alpha=alpha, sigma=sigma, seed=0
    )
    return certificates, labels


@pytest.mark.parametrize(("name", "sigma", "alpha"), TABLES)
def test_every_published_radius_is_that_of_some_count(name, sigma, alpha, tmp_path):
    rows = read_table(name)
    certificates, labels = recounted(rows, sigma, alpha)
    certificates.to_tsv(tmp_path / "again.tsv", labels)
    again = [line.split("\t") for line in (tmp_path / "again.tsv").read_text().splitlines()]
    for ours, theirs in zip(again[1:], rows, strict=True):
        assert ours[1:3] + ours[4:5] == theirs[1:3] + theirs[4:5]
        # Theirs is the nearest of 3 digits, ours is not above the certified one.
        if ours[3] != theirs[3]:
            unit = 10 ** (math.floor(math.log10(float(theirs[3]))) - 2)
            assert float(theirs[3]) - float(ours[3]) == pytest.approx(unit)
    assert any(ours[3] == theirs[3] != "0.0" for ours, theirs in zip(again[1:], rows, strict=True))


def test_the_level_is_one_sided():
    # At half the level the largest published radius is out of reach; at twice, it is not reached.
    rows = read_table("cifar10_locuslab_sigma0.25.tsv")
    largest = max(float(row[3]) for row in rows)
    reach = {a: gaussian_radius(clopper_pearson_lower(N, N, a), 0.25) for a in (0.005, 0.01, 0.02)}
    assert f"{reach[0.01]:.3}" == str(largest)
    assert float(f"{reach[0.005]:.3}") < largest < float(f"{reach[0.02]:.3}")


def test_published_certified_accuracy():
    rows = read_table("cifar10_locuslab_sigma0.25.tsv")
    certificates, labels = recounted(rows, 0.25, 0.01)
    accuracy = certificates.certified_accuracy(labels, [0.25, 0.5, 0.75])
    assert [round(a, 2) for a in accuracy.tolist()] == [0.60, 0.43, 0.27]
    assert int((certificates.prediction == -1).sum()) == 43


def top_k_radius(votes, label, k, sigma, alpha):
    """Radius within which the label stays in the top k; Jia et al., ICLR 2020, theorem 1."""
    lower = clopper_pearson_lower(votes, votes.sum(), alpha)
    upper = 1 - clopper_pearson_lower(votes.sum() - votes, votes.sum(), alpha)
    others = np.sort(np.delete(upper, label))[::-1][:k]
    radii = [0.0]
    for t in range(1, k + 1):
        # The t smallest of the k strongest rivals must together stay above t times the label.
        rivals = min(others[k - t :].sum(), 1 - lower[label])
        lead = norm.ppf(lower[label])

        def gap(r, lead=lead, rivals=rivals, t=t):
            return norm.cdf(lead - r / sigma) - norm.cdf(norm.ppf(rivals) + r / sigma) / t

        if gap(0.0) > 0:
            radii.append(brentq(gap, 0.0, 10.0))
    return max(radii)


def test_published_top_3_radii():
    table = np.loadtxt(DATA / "cifar10_top3_sigma0.25.txt")
    votes, labels, published = table[:, :10].astype(int), table[:, 10].astype(int), table[:, 11]
    assert (votes.sum(1) == N).all()
    # A union bound over the 10 classes; the published search stops within 1e-5 of the root.
    got = [
        top_k_radius(row, label, 3, 0.25, 0.001 / 10)
        for row, label in zip(votes, labels, strict=True)
    ]
    assert (published > 0).sum() > 40
    np.testing.assert_allclose(got, published, rtol=0.005, atol=2e-5)
