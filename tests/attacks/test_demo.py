"""The demo, from the command line to its files."""

import pytest
import torch

from robustcore.attacks import demo
from robustcore.command.main import main
from robustcore.common.digits import load_digits

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize("kind", demo.TRAININGS)
def test_training_leaves_the_random_state_and_starts_from_the_same_network(kind):
    data = load_digits(200)
    settings = demo.FAST._replace(epochs=1, steps=1)
    state = torch.random.get_rng_state()
    model = demo.train(data, kind, 0.1, settings, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert (model(data.test_images).argmax(1) == data.test_labels).double().mean() > 0.3
    again = demo.train(data, kind, 0.1, settings, seed=1)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["demo", "--family", "attacks", "--fast", "--out", str(out)]
    assert main(arguments) == 0
    rows = [line.split("\t") for line in (out / "digits_attacks.tsv").read_text().splitlines()]
    assert rows[0] == ["training", "clean", "pgd20", "autoattack"]
    found = {kind: list(map(float, values)) for kind, *values in rows[1:]}
    assert list(found) == list(demo.TRAININGS)
    for clean, pgd, auto in found.values():
        assert clean >= pgd >= auto
    assert found["pgd"][2] > found["plain"][2]
    lines = (out / "digits_sandwich.tsv").read_text().splitlines()
    assert lines[0] == "radius\tcertified\tattacked"
    bounds = [list(map(float, line.split("\t"))) for line in lines[1:]]
    assert len(bounds) == demo.FAST.radii + 1
    assert bounds[0][0] == 0
    assert all(certified <= attacked for _, certified, attacked in bounds)
    assert 0 < bounds[1][1] <= bounds[0][1] <= bounds[0][2]
    assert (out / "digits_attacks.png").stat().st_size > 1000
    assert "AutoAttack" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "other"), "--eps", "2"]) == 2
    assert "--eps: got 2.0" in capsys.readouterr().err
