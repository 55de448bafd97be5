"""Results as containers: indexed, iterated, joined, saved and loaded."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from robustcore import smoothing as rs
from robustcore.common.table import read_certificates
from robustcore.smoothing import (
    ABSTAIN,
    Certificates,
    Predictions,
    RadiusTests,
    Smooth,
    StoppedCertificates,
)
from smoothing.models import Pixels
from testing import assert_same

X = torch.rand(8, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def smooth(**options):
    return Smooth(Pixels(3), 3, **{"sigma": 0.25, "seed": 7, **options})


def make(kind, x=X, offset=0, **options):
    made = smooth(**options)
    return {
        Certificates: lambda: made.certify(x, 20, 400, image_offset=offset),
        StoppedCertificates: lambda: made.certify(x, 20, 400, image_offset=offset, early_stop=True),
        RadiusTests: lambda: made.certify_at(x, 0.05, max_n=400, image_offset=offset),
        Predictions: lambda: made.predict(x, 400, image_offset=offset),
    }[kind]()


KINDS = [Certificates, StoppedCertificates, RadiusTests, Predictions]


def assert_equal(a, b, but=("seconds",)):
    assert type(a) is type(b)
    for f in fields(a):
        one, other = getattr(a, f.name), getattr(b, f.name)
        if f.name in but:
            continue
        if isinstance(one, torch.Tensor):
            assert_same(one, other)
        else:
            assert one == other, f.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_smooth_gives_for_one_image(kind):
    result = make(kind)
    assert len(result) == len(list(result)) == 8
    for b, row in enumerate(result):
        assert row == result[b] == result[b - 8] == make(kind, X[b], b)
    for b in (8, -9):
        with pytest.raises(IndexError, match=f"^index: got {b} for 8 images"):
            result[b]


def test_a_certified_row_has_names():
    row = smooth().certify(X[0], 20, 400)
    label, radius = row
    assert (row.prediction, row.radius) == (label, radius) == row
    assert [type(v) for v in row] == [int, float]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "index",
    [
        slice(2, 7, 2), slice(None, None, 3), slice(3, 3), [5, 0, 0], (1, 2), range(4), [],
        np.array([7, 1]), torch.tensor([3]), np.arange(8) % 2 == 1, torch.arange(8) > 4,
        [True, False] * 4,
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_are_picked(kind, index):
    result = make(kind)
    numbers = np.arange(8)[
        list(index)
        if isinstance(index, (tuple, range))
        else np.asarray(index, int if isinstance(index, list) and not index else None)
        if not isinstance(index, slice)
        else index
    ].tolist()
    got = result[index]
    assert type(got) is kind
    assert got.indices.tolist() == numbers
    assert list(got) == [result[b] for b in numbers]
    assert_same(got.counts, result.counts[numbers])
    assert (got.n, got.alpha, got.seed) == (result.n, result.alpha, result.seed)
    # A part of a part.
    if len(numbers) > 1:
        assert got[1:].indices.tolist() == numbers[1:]


@pytest.mark.parametrize("index", ["a", 1.5, None, [[1, 2]], torch.zeros(2, 2).long(), [0.5]])
def test_indices_that_are_none(index):
    with pytest.raises((IndexError, TypeError)):
        make(Certificates)[index]


@pytest.mark.parametrize("kind", KINDS)
def test_joined_parts_are_the_whole(kind):
    whole = make(kind)
    parts = [
        make(kind, X[:3], 0),
        make(kind, X[3:4], 3),
        make(kind, X[4:4], 4),
        make(kind, X[4:], 4),
    ]
    joined = kind.cat(parts)
    assert_equal(joined, whole, but=("seconds", "chosen"))
    assert_same(joined.indices, whole.indices)
    assert_equal(
        kind.cat([whole[4:], whole[:4]])[[4, 5, 6, 7, 0, 1, 2, 3]],
        whole[:],
    )


def test_batches_of_a_loader_are_numbered_on_and_keep_their_seeds_apart(tmp_path):
    parts = [make(Certificates, x, seed=None) for x in X.split(3)]
    joined = Certificates.cat(parts)
    assert joined.indices.tolist() == list(range(8))
    assert joined.seed is None
    labels = joined.prediction.clamp(min=0)
    joined.to_tsv(tmp_path / "t.tsv", labels)
    assert [row.idx for row in read_certificates(tmp_path / "t.tsv")] == list(range(8))
    assert joined.certified_accuracy(labels, 0.0) == (joined.prediction != ABSTAIN).double().mean()


def test_what_does_not_go_together():
    first = make(Certificates)
    for other, message in [
        (make(Certificates, sigma=0.5), "parts: got sigma 0.25 and 0.5"),
        (smooth().certify(X, 20, 300), "parts: got n 400 and 300"),
        (smooth().certify(X, 20, 400, 0.01), "parts: got alpha 0.001 and 0.01"),
        (Smooth(Pixels(2), 2, 0.25).certify(X, 20, 400), r"parts: got \[2, 3\] classes"),
        (make(StoppedCertificates), "parts: got Certificates and StoppedCertificates"),
        (make(Predictions), "parts: got Certificates and Predictions"),
        (3, "parts: got Certificates and int"),
    ]:
        with pytest.raises((ValueError, TypeError), match=f"^{message}"):
            Certificates.cat([first, other])
    with pytest.raises(ValueError, match=r"^parts: got none"):
        Certificates.cat([])
    with pytest.raises(TypeError, match=r"^parts: got .*Certificates"):
        Certificates.cat(first)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    path = tmp_path / "result.pt"
    result = make(kind)[1:]
    result.save(path)
    torch.load(path, weights_only=True)
    assert_equal(kind.load(path), result, but=())
    with pytest.raises(FileExistsError, match=r"^path: "):
        result.save(path)
    result.save(path, overwrite=True)
    if kind is StoppedCertificates:
        assert type(Certificates.load(path)) is kind
    others = {Certificates: Predictions, Predictions: Certificates, RadiusTests: Predictions}
    with pytest.raises(ValueError, match=f"^path: .*holds {kind.__name__}, want"):
        others.get(kind, RadiusTests).load(path)


@pytest.mark.parametrize("noise", [
    rs.Uniform(0.5, "linf"), rs.Laplace(0.5), rs.Splitting(0.5, derandomized=True, seed=3),
    rs.PixelAblation(2, fill=(0.5, 0.25)), rs.BandAblation(1), rs.BlockAblation(2, threshold=None),
    rs.Dual(rs.Gaussian(0.5)),
], ids=repr)  # fmt: skip
def test_noise_of_every_kind_is_loaded(noise, tmp_path):
    x = torch.round(X[:2] * 255) / 255
    model = Pixels(2)
    result = Smooth(model, 2, noise=noise, seed=1).certify(x, n=100)
    result.save(tmp_path / "r.pt")
    assert_equal(Certificates.load(tmp_path / "r.pt"), result, but=("sigma",))
    assert_equal(Certificates.cat([result[:1], result[1:]])[:], result[:], but=("sigma",))


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda p: p.write_bytes(b"PK"), "holds no result"),
        (lambda p: p.write_bytes(b""), "holds no result"),
        (lambda p: torch.save(Evil(), p), "holds no result"),
        (lambda p: torch.save({"weight": torch.ones(2)}, p), "holds no result, want Certificates"),
        (lambda p: torch.save({"robustcore": "Certificates", "n": 3}, p), "another version"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message, capsys):
    path = tmp_path / "r.pt"
    content(path)
    with pytest.raises(ValueError, match=f"^path: .*{message}"):
        Certificates.load(path)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"^path: .*No such file"):
        Certificates.load(tmp_path / "none.pt")
    with pytest.raises(TypeError, match=r"^path: "):
        Certificates.load(3)


def test_a_users_noise_is_not_saved(tmp_path):
    class Mine(rs.Gaussian):
        pass

    result = Smooth(Pixels(2), 2, noise=Mine(0.5)).certify(X, n=100)
    with pytest.raises(ValueError, match=r"^noise: "):
        result.save(tmp_path / "r.pt")


def test_top_k_radii_are_for_a_fixed_number_of_samples():
    with pytest.raises(TypeError, match=r"^early_stop: "):
        make(StoppedCertificates).top_k_radius([0] * 8, 2)
    dual = Smooth(Pixels(2), 2, noise=rs.Dual(rs.Gaussian(0.5)), seed=1).certify(X, n=100)
    with pytest.raises(TypeError, match=r"^noise: Dual.* has no top-k certificate$"):
        dual.top_k_radius([0] * 8, 1)
