"""What a trace would lose without a word, watched while it is made."""

from __future__ import annotations

import io
import logging
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, Path(__file__).parent))


@contextmanager
def watched(model: nn.Module) -> Iterator[list[str]]:
    """Collects, while tracing, what the trace would not do as the model does."""
    seen: list[str] = []
    module_of_functions: Any = torch.autograd.function
    plain = module_of_functions._is_setup_context_defined

    def asked_by_apply(setup_context: Any) -> Any:
        # Models keep `Function.apply` under names of their own, so apply cannot be replaced; what
        # it asks first can, and its frame knows the class.
        cls: Any = sys._getframe(1).f_locals.get("cls", torch.autograd.Function)
        if not cls.__module__.startswith(("robustcore.", "torch.")):
            seen.append(
                f"model: the autograd.Function {cls.__module__}.{cls.__qualname__} would lose its "
                "backward; write it as torch operations"
            )
        return plain(setup_context)

    replaced = []
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            seen.append(
                f"model: {name or type(module).__name__!r} has a backward hook, which would not be "
                "called; remove it"
            )
        for key, hook in list(module._forward_hooks.items()):
            replaced.append((module, key, hook))
            module._forward_hooks[key] = _observed(hook, name, module, seen)
    module_of_functions._is_setup_context_defined = asked_by_apply
    try:
        yield seen
    finally:
        module_of_functions._is_setup_context_defined = plain
        for module, key, hook in replaced:
            module._forward_hooks[key] = hook


def _observed(hook: Any, name: str, module: nn.Module, seen: list[str]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = hook(*args, **kwargs)
        if result is None:
            seen.append(
                f"model: the forward hook on {name or type(module).__name__!r} returns nothing: it "
                "would be called while tracing and never after; remove it"
            )
        return result

    return call


@contextmanager
def plain_attention() -> Iterator[None]:
    """nn.MultiheadAttention as separate operations, not as the one that it takes in eval mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet() -> Iterator[None]:
    """torch.export logs, prints and warns of what it also raises, and of what does no harm."""
    loggers = [logging.getLogger(name) for name in ("torch._export", "torch.export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def plain_normalization(model: nn.Module) -> Iterator[None]:
    """torchvision's Normalize without the check of its own arguments, a branch on values."""
    found = [
        m for m in model.modules()
        if type(m).__name__ == "Normalize" and type(m).__module__.startswith("torchvision.")
    ]  # fmt: skip
    for module in found:
        module.forward = _normalization(module)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _normalization(module: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        mean, std = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1)
            for v in (module.mean, module.std)
        )
        return (x - mean) / std

    return forward


def line_of_model(error: Exception) -> str:
    """The last line that ran and is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    python = sysconfig.get_path("stdlib")
    theirs = [
        f for f in frames
        if not f.filename.startswith(_LIBRARIES)
        and ("site-packages" in f.filename or not f.filename.startswith(python))
    ]  # fmt: skip
    if not theirs:
        return ""
    return f", at line {theirs[-1].lineno} of {theirs[-1].filename}: {theirs[-1].line}"
