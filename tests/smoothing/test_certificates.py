"""Certificates and Predictions: from votes to accuracies, tables and pictures."""

import builtins
import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore.smoothing import ABSTAIN, Certificates, Predictions, gaussian_radius, plots
from testing import three_digits_down

MADE = {"n": 1000, "alpha": 0.001, "sigma": 0.5, "seed": 3, "image_offset": 20, "seconds": 6.0}
VOTES = torch.tensor([[900, 50, 50], [0, 1000, 0], [400, 300, 300], [20, 30, 950]])
LABELS = [0, 1, 0, 1]


@pytest.fixture
def certificates():
    return Certificates.from_counts(VOTES // 100, VOTES, n0=10, **MADE)


def test_from_counts(certificates):
    assert certificates.prediction.tolist() == [0, 1, ABSTAIN, 2]
    assert certificates.radius.dtype == certificates.p_lower.dtype == torch.float64
    assert certificates.radius[1] == pytest.approx(
        gaussian_radius(0.001 ** (1 / 1000), 0.5), rel=1e-14
    )
    assert certificates.radius[2] == 0.0
    assert 0 < certificates.p_lower[2] < 0.5
    assert certificates.seconds.tolist() == [1.5] * 4
    assert len(certificates) == 4
    assert repr(certificates) == (
        "Certificates(4 images, 1 abstained, sigma=0.5, n=1000, alpha=0.001, seed=3)"
    )


def test_the_selection_decides_and_its_ties_go_to_the_lowest():
    counts0 = torch.tensor([[5, 5, 0], [0, 5, 5], [0, 0, 10]])
    counts = torch.tensor([[0, 1000, 0], [0, 900, 100], [900, 0, 100]])
    result = Certificates.from_counts(counts0, counts, n0=10, **MADE)
    # Image 0: the class chosen got no vote; image 2: another one has the majority.
    assert result.prediction.tolist() == [ABSTAIN, 1, ABSTAIN]
    assert result.p_lower[0] == 0.0


def test_certified_accuracy(certificates):
    r0, r1 = certificates.radius[:2].tolist()
    radii = [0.0, r0, math.nextafter(r0, 2), r1, math.nextafter(r1, 2)]
    accuracy = certificates.certified_accuracy(LABELS, radii)
    assert accuracy.dtype == torch.float64
    assert accuracy.tolist() == [0.5, 0.5, 0.25, 0.25, 0.0]
    scalar = certificates.certified_accuracy(torch.tensor(LABELS), 0.1)
    assert scalar.shape == ()
    assert float(scalar) == 0.5
    assert certificates.certified_accuracy(np.array(LABELS), np.zeros((2, 3))).shape == (2, 3)
    # An abstention is never right, at no radius.
    assert float(certificates.certified_accuracy([1, 0, 0, 0], 0.0)) == 0.0


def test_average_certified_radius(certificates):
    r0, r1 = certificates.radius[:2].tolist()
    assert certificates.average_certified_radius(LABELS) == pytest.approx((r0 + r1) / 4, rel=1e-15)


def test_the_lower_bound_of_certified_accuracy(certificates):
    lower = certificates.certified_accuracy_lower(LABELS, [0.0, 0.1], rho=0.01)
    tail = math.log(100)
    slack = 0.001 + math.sqrt(0.001 * 0.999 * tail / 4) + tail / 12
    assert lower.tolist() == pytest.approx([0.5 - slack] * 2, rel=1e-14)
    with pytest.raises(ValueError, match=r"^rho: "):
        certificates.certified_accuracy_lower(LABELS, 0.0, rho=1.0)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([0, 1, 0], ValueError),
        ([[0, 1, 0, 1]], ValueError),
        (0, ValueError),
        ([0, 1, 0, -1], ValueError),  # would count an abstention as right
        ([0, 1, 0, 3], ValueError),
        ([0.0, 1.0, 0.0, 1.0], TypeError),
        ([True, True, False, True], TypeError),
    ],
)
def test_bad_labels(certificates, labels, error, tmp_path):
    for use in (
        lambda: certificates.certified_accuracy(labels, 0.0),
        lambda: certificates.average_certified_radius(labels),
        lambda: certificates.to_tsv(tmp_path / "out.tsv", labels),
        lambda: certificates.plot(tmp_path / "out.png", labels),
    ):
        with pytest.raises(error, match=r"^labels: "):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("radii", [-0.1, math.nan, [0.0, -1.0]])
def test_bad_radii(certificates, radii):
    with pytest.raises(ValueError, match=r"^radii: "):
        certificates.certified_accuracy(LABELS, radii)


def test_no_images():
    none = torch.zeros(0, 3, dtype=torch.int64)
    empty = Certificates.from_counts(none, none, n0=10, **MADE)
    assert math.isnan(empty.certified_accuracy([], 0.0))
    assert math.isnan(empty.average_certified_radius([]))
    with pytest.raises(ValueError, match=r"^labels: "):
        empty.certified_accuracy([1], 0.0)


def test_tsv(certificates, tmp_path):
    certificates.to_tsv(tmp_path / "out.tsv", LABELS)
    r0, r1, _, r3 = certificates.radius.tolist()
    assert (tmp_path / "out.tsv").read_text() == (
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        f"20\t0\t0\t{three_digits_down(r0)}\t1\t0:00:01.500000\n"
        f"21\t1\t1\t{three_digits_down(r1)}\t1\t0:00:01.500000\n"
        "22\t0\t-1\t0.0\t0\t0:00:01.500000\n"
        f"23\t1\t2\t{three_digits_down(r3)}\t0\t0:00:01.500000\n"
    )
    certificates.to_tsv(tmp_path / "unlabelled.tsv")
    rows = [row.split("\t") for row in (tmp_path / "unlabelled.tsv").read_text().splitlines()]
    assert [(row[1], row[4]) for row in rows[1:]] == [("nan", "nan")] * 4
    assert [row[2] for row in rows[1:]] == ["0", "1", "-1", "2"]


@pytest.mark.parametrize("write", ["to_tsv", "plot"])
def test_an_existing_file_is_refused(certificates, tmp_path, write):
    path = tmp_path / "out.png"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"^path: .*out\.png exists"):
        getattr(certificates, write)(path, LABELS)
    assert path.read_text() == "precious"
    getattr(certificates, write)(path, LABELS, overwrite=True)
    assert path.read_bytes() != b"precious"
    beside = [path.with_name("out.png.json")] if write == "to_tsv" else []
    assert sorted(tmp_path.iterdir()) == [path, *beside]


def test_nothing_is_half_written(certificates, tmp_path, monkeypatch):
    path = tmp_path / "out.tsv"
    path.write_text("precious")

    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        certificates.to_tsv(path, LABELS, overwrite=True)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_plot(certificates, tmp_path, labels):
    certificates.plot(tmp_path / "out.png", labels)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    certificates.plot(tmp_path / "out.svg", labels)
    assert "<svg" in (tmp_path / "out.svg").read_text()


@pytest.mark.parametrize(
    ("labels", "right", "name"),
    [(torch.tensor(LABELS), [0, 1], "certified accuracy"), (None, [0, 1, 3], "part certified")],
)
def test_the_curve_drawn(certificates, labels, right, name):
    (axes,) = plots.accuracy_figure([(certificates, labels)]).axes
    assert axes.get_ylabel() == name
    radii, height = axes.lines[0].get_data()
    assert radii[0] == 0.0
    assert radii[-1] == pytest.approx(gaussian_radius(0.001 ** (1 / 1000), 0.5), rel=1e-14)
    reached = [sum(float(certificates.radius[b]) >= r for b in right) / 4 for r in radii]
    assert height.tolist() == reached


def test_plot_without_matplotlib(certificates, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"robustcore\[demo\]"):
        certificates.plot(tmp_path / "out.png")


def test_predictions_are_those_of_the_binomial_test():
    counts = torch.tensor([[60, 40, 0], [50, 50, 0], [0, 20, 80], [0, 0, 0], [55, 0, 25]])
    keys = {**MADE, "n": 100, "alpha": 0.01}
    result = Predictions.from_counts(counts, **keys)
    expected = [
        stats.binomtest(60, 100).pvalue,
        1.0,
        stats.binomtest(80, 100).pvalue,
        1.0,
        stats.binomtest(55, 80).pvalue,
    ]
    assert result.p_value.tolist() == pytest.approx(expected, rel=1e-12)
    assert result.prediction.tolist() == [ABSTAIN, ABSTAIN, 2, ABSTAIN, 0]
    assert repr(result).startswith("Predictions(5 images, 3 abstained")
    # At a level of the p-value itself it answers, as published.
    at_level = Predictions.from_counts(counts[:1], **{**keys, "alpha": float(result.p_value[0])})
    assert at_level.prediction.tolist() == [0]
