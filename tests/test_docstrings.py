"""What users can import says what it does, and the examples in it give what they say."""

import dataclasses
import doctest
import inspect
import re

import pytest
import torch

import robustcore

MODULES = (
    robustcore,
    robustcore.ops,
    robustcore.smoothing,
    robustcore.lipschitz,
    robustcore.masking,
    robustcore.density,
    robustcore.attacks,
    robustcore.influence,
)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
ELSEWHERE = re.compile(r"as\s+in\s+:func:|are\s+those\s+of")
EXCEPTIONS = {"robustcore.masking.UnsupportedOperation"}
CALLABLES = {name: item for name, item in PUBLIC.items() if callable(item)}


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring(name):
    """One line what it is, and every argument, or where they are told."""
    text = inspect.getdoc(CALLABLES[name])
    assert text
    assert text.splitlines()[0].endswith((".", ":", "?")), "the first line is no sentence"
    item = CALLABLES[name]
    fields = dataclasses.is_dataclass(item) or hasattr(item, "_fields")  # which have theirs
    told = fields or ELSEWHERE.search(text)
    if not told and name not in EXCEPTIONS:
        names = inspect.signature(item).parameters
        assert not [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_examples():
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    for name, item in CALLABLES.items():
        names = {**vars(inspect.getmodule(item)), "torch": torch, "robustcore": robustcore}
        for test in finder.find(item, name, globs=names):
            runner.run(test)
    results = runner.summarize(verbose=False)
    assert results.attempted >= 10
    assert not results.failed
