"""``robustcore demo``: an option of one family's demo is refused by the others."""

import itertools

import pytest

from robustcore.command import main as cli

OWN = {
    "smoothing": [["--sigma", "0.5", "1.0"], ["--noise", "uniform"]],
    "lipschitz": [["--gamma", "0.25"]],
    "masking": [],
    "density": [],
}


@pytest.fixture
def demos(monkeypatch):
    """What the demos were run with, without running them."""
    runs = []
    for family, module in cli.DEMOS.items():
        monkeypatch.setattr(module, "run", lambda args, family=family: runs.append((family, args)))
    return runs


def test_every_family_is_here():
    assert OWN.keys() == cli.DEMOS.keys()


@pytest.mark.parametrize("family", OWN)
def test_own_and_shared_options(family, demos, tmp_path):
    shared = ["--fast", "--seed", "3", "--out", str(tmp_path), "--device", "cpu", "--overwrite"]
    for own in ([], *OWN[family]):
        # The family's name last: what belongs to it is only known at the end.
        assert cli.main(["demo", *shared, *own, "--family", family]) == 0
        name, args = demos.pop()
        assert (name, args.seed, args.fast, args.out) == (family, 3, True, tmp_path)
        assert list(args.given) == ["seed", "out", "device", *(o[2:] for o in own[:1]), "family"]


def test_values_and_defaults(demos):
    assert cli.main(["demo", "--sigma", "0.5", "1"]) == 0
    assert cli.main(["demo", "--family", "lipschitz"]) == 0
    assert [args.sigma for _, args in demos] == [[0.5, 1.0], [0.25]]
    assert [args.gamma for _, args in demos] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("family", "owner"), [pair for pair in itertools.permutations(OWN, 2) if OWN[pair[1]]]
)
def test_options_of_another_family(family, owner, demos, capsys):
    for option in OWN[owner]:
        assert cli.main(["demo", "--family", family, *option]) == 2
        error = f"{option[0]}: an option of --family {owner}, got --family {family}"
        assert capsys.readouterr().err == f"robustcore: error: {error}\n"
    assert demos == []


def test_even_at_its_default(demos, capsys):
    assert cli.main(["demo", "--gamma", "0.5"]) == 2
    assert "--gamma: an option of --family lipschitz" in capsys.readouterr().err
    assert demos == []
