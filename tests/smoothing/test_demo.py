"""``robustcore demo --fast``: the numbers make sense and the files are there."""

import sys

import pytest
import torch

from robustcore.command.main import main
from robustcore.smoothing import ABSTAIN, demo
from robustcore.smoothing.demo_training import ATTACK_RADIUS, attack


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of one run."""
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--fast", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def table(out):
    lines = (out / "digits_sigma0.25.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["idx", "label", "predict", "radius", "correct", "time"]
    return [line.split("\t") for line in lines[1:]]


def test_certificates(table):
    assert [int(row[0]) for row in table] == list(range(demo.FAST.test_images))
    radius = torch.tensor([float(row[3]) for row in table])
    correct = torch.tensor([row[4] == "1" for row in table])
    assert correct.double().mean() > 0.8
    curve = [float((correct & (radius >= r)).double().mean()) for r in (0.0, 0.2, 0.4, 0.6)]
    assert curve == sorted(curve, reverse=True)
    assert curve[2] > 0.25
    assert curve[3] < curve[0]
    assert all(float(row[3]) == 0 for row in table if int(row[2]) == ABSTAIN)


def test_picture(out):
    assert (out / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == [
        *("digits.png", "digits_sigma0.25.tsv", "digits_sigma0.25.tsv.json")
    ]


def test_refuses_to_overwrite(out, capsys):
    before = (out / "digits.png").read_bytes()
    assert main(["demo", "--fast", "--out", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert (out / "digits.png").read_bytes() == before


def test_several_levels_and_what_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "FAST", demo.Settings(epochs=2, test_images=20, n=100))
    assert main(["demo", "--fast", "--sigma", "0.1", "0.5", "--out", str(tmp_path / "new")]) == 0
    names = sorted(p.name for p in (tmp_path / "new").iterdir() if p.suffix != ".json")
    assert names == ["digits.png", "digits_sigma0.1.tsv", "digits_sigma0.5.tsv"]
    captured = capsys.readouterr()
    for line in ("certified accuracy", "average certified radius", "abstained", "a second"):
        assert captured.out.count(f"  {line}") == 2 or line == "a second"
    assert "digits, sigma 0.5: 20 test images, n = 100 samples each" in captured.out
    assert captured.err == ""  # no bars in a pipe


def test_bars_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "FAST", demo.Settings(epochs=2, test_images=20, n=100))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["demo", "--fast", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().err
    assert "train with sigma 0.25: 100%" in shown
    assert "certify: 100%" in shown


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "nowhere"], "--device nowhere: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
    ],
)
def test_bad_device(option, message, tmp_path, capsys):
    assert main(["demo", "--fast", *option, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("sigma", ["0", "-1", "nan", "inf"])
def test_bad_sigma(tmp_path, capsys, sigma):
    assert main(["demo", "--fast", "--sigma", sigma, "--out", str(tmp_path)]) == 2
    assert "--sigma: got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_seed_repeats_the_run_and_leaves_torch_alone():
    data = demo.load_digits(20)
    settings = demo.Settings(epochs=1, test_images=20, n=100)
    state = torch.get_rng_state()
    first, _ = demo.certify_digits(data, 0.25, settings, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = demo.certify_digits(data, 0.25, settings, seed=1)
    other, _ = demo.certify_digits(data, 0.25, settings, seed=2)
    assert torch.equal(first.counts, again.counts)
    assert not torch.equal(first.counts, other.counts)


def test_the_split():
    data = demo.load_digits(500)
    assert (len(data.train_images), len(data.test_images)) == (1297, 500)
    pixels = torch.cat([data.train_images, data.test_images])
    assert pixels.dtype == torch.float32
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    # No test image was trained on.
    assert len(torch.unique(pixels.flatten(1), dim=0)) == 1797


@pytest.mark.parametrize("noise", [*demo.demo_noises.NOISES, "dpa"])
def test_every_noise(noise, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "FAST", demo.Settings(epochs=8, test_images=30, n=200))
    assert main(["demo", "--fast", "--noise", noise, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "certified accuracy" in printed
    lines = (tmp_path / f"digits_{noise}.tsv").read_text().splitlines()
    assert len(lines) == 31
    correct = [line.split("\t")[4] == "1" for line in lines[1:]]
    assert sum(correct) > 10  # far more than by chance
    assert main(["demo", "--fast", "--noise", noise, "--out", str(tmp_path)]) == 2


def test_a_noise_level_is_of_gaussian_noise(tmp_path, capsys):
    command = ["demo", "--fast", "--noise", "uniform", "--sigma", "0.25", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "--sigma: --noise uniform has none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_methods_of_training(tmp_path, capsys, monkeypatch):
    """A model and a table each, and the mean radii side by side; each has learnt something."""
    monkeypatch.setattr(demo, "FAST", demo.Settings(epochs=8, test_images=50, n=100))
    methods = ["gaussian", "smooth-adv", "macer", "consistency"]
    assert main(["demo", "--fast", "--train", *methods, "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.glob("*.tsv"))
    assert names == sorted(
        ["digits_sigma0.25.tsv", *(f"digits_{m}_sigma0.25.tsv" for m in methods[1:])]
    )
    rows = capsys.readouterr().out.split("average certified radius, sigma")[1].splitlines()
    assert rows[0].split() == ["0.25"]
    radii = {row.split()[0]: float(row.split()[1]) for row in rows[1:5]}
    assert list(radii) == methods
    assert all(radius > 0.1 for radius in radii.values())


def test_smoothadv_finds_images_of_larger_loss():
    x = torch.rand(4, 1, 8, 8)
    weight = torch.randn(1, 1, 8, 8)

    def loss(x):
        return (x * weight).sum((1, 2, 3)).mean()

    moved = attack(loss, x) - x
    lengths = moved.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((4,), ATTACK_RADIUS))
    direction = (moved * weight).flatten(1).sum(1) / (lengths * weight.norm())
    torch.testing.assert_close(direction, torch.ones(4))
