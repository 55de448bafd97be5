"""``robustcore demo``: an option of one family's demo is refused by the others."""

import functools
import itertools

import pytest

from robustcore.command.demo import DEMOS
from robustcore.command.main import main

OWN = {
    "smoothing": [["--sigma", "0.5", "1.0"], ["--noise", "uniform"]],
    "lipschitz": [["--gamma", "0.25"]],
    "masking": [],
    "density": [],
    "influence": [],
    "attacks": [],
}


@pytest.fixture
def demos(monkeypatch):
    """What the demos were run with, without running them."""
    runs = []
    for family, module in DEMOS.items():
        record = functools.partial(lambda family, args, *_: runs.append((family, args)), family)
        monkeypatch.setattr(module, "run", record)
    return runs


def test_every_family_is_here():
    assert OWN.keys() == DEMOS.keys()


@pytest.mark.parametrize("family", OWN)
def test_own_and_shared_options(family, demos, tmp_path):
    shared = ["--fast", "--seed", "3", "--out", str(tmp_path), "--device", "cpu", "--overwrite"]
    for own in ([], *OWN[family]):
        # The family's name last, and the options that belong to it before.
        assert main(["demo", *shared, *own, "--family", family]) == 0
        name, args = demos.pop()
        assert (name, args.seed, args.fast, args.out) == (family, 3, True, tmp_path)


def test_values_and_defaults(demos):
    for own in ([], ["--family", "lipschitz", "--gamma=0.25"], ["--sigma", "0.5", "1"]):
        assert main(["demo", *own]) == 0
    (_, plain), (_, lipschitz), (_, smoothing) = demos
    assert (plain.family, plain.sigma, plain.noise) == ("smoothing", None, "gaussian")
    assert lipschitz.gamma == 0.25
    assert smoothing.sigma == [0.5, 1.0]


@pytest.mark.parametrize(
    ("family", "owner"), [pair for pair in itertools.permutations(OWN, 2) if OWN[pair[1]]]
)
def test_options_of_another_family(family, owner, demos, capsys):
    for option in OWN[owner]:
        assert main(["demo", *option, "--family", family]) == 2
        error = f"{option[0]}: an option of --family {owner}, got --family {family}"
        assert capsys.readouterr().err == f"robustcore: error: {error}\n"
    assert demos == []


def test_even_at_its_default(demos, capsys):
    for option in (["--gamma", "0.5"], ["--gamma=0.5"]):
        assert main(["demo", *option]) == 2
        assert "--gamma: an option of --family lipschitz" in capsys.readouterr().err
    assert demos == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "--family", "nobody"], "invalid choice: 'nobody'"),
        (["demo", "--family"], "expected one argument"),
        (["demo", "--nothing"], "unrecognized arguments: --nothing"),
        (["doctor", "--family", "lipschitz"], "unrecognized arguments: --family lipschitz"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_no_command_knows(argv, message, demos, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert message in capsys.readouterr().err
    assert demos == []


@pytest.mark.parametrize("family", OWN)
def test_help_shows_the_options_of_the_family(family, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--family", family, "--help"])
    shown = capsys.readouterr().out
    for owner, options in OWN.items():
        for option in options:
            assert (option[0] in shown) == (owner == family)
    assert "--overwrite" in shown
