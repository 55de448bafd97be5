"""What a captured step depends on of a model, and which models are captured unasked."""

import pytest
import torch
from torch import nn

from robustcore.common.fingerprint import fingerprint, surprising
from smoothing.captures import SURPRISES, Head


def test_a_function_in_a_model_is_compared_by_itself():
    model = Head()
    model.scale = lambda x: 2 * x
    before = fingerprint(model)
    assert fingerprint(model) == before
    for _ in range(10):  # one of them may lie where another was
        model.scale = eval("lambda x: 3 * x")
        assert fingerprint(model) != before
    model.scale = model.me = None
    model.me = model  # and a cycle has an end
    assert fingerprint(model) == fingerprint(model)
    del model.me


def test_models_that_may_surprise_are_not_captured_unasked():
    assert not surprising(Head())
    assert surprising(Head().train())
    assert all(surprising(make()) for make in SURPRISES.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nor_compiled_ones():
    assert surprising(torch.compile(Head()))
    model = nn.Sequential(Head())
    model[0].compile()
    assert surprising(model)
