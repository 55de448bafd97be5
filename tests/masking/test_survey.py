"""Ten of the survey's models, of every kind of network: ones and NaN, as the survey has them."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "bench" / "masking" / "survey.py"
TEN = (
    "test_resnet", "test_convnext", "test_efficientnet", "densenet121", "test_vit", "levit_128s",
    "efficientvit_m0", "xcit_nano_12_p8_224", "gmlp_ti16_224", "test_coatnet",
)  # fmt: skip
pytestmark = [
    pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
]  # fmt: skip


def survey():
    spec = importlib.util.spec_from_file_location("survey", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TEN)
def test_ones_and_nan(name):
    result = survey().survey(name)
    assert result.holds, result


def test_ten_are_of_the_survey():
    assert set(TEN) <= set(survey().NAMES)
