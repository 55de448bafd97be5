"""What a user brings to the command line: a model, its weights and a data set."""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from robustcore.common.errors import UsageError


@contextmanager
def as_usage_error(prefix: str = "") -> Iterator[None]:
    """The API's complaints about arguments, which are the user's options here, in one line."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{prefix}{error}") from error


def load_function(option: str, spec: str) -> Callable[..., Any]:
    """A user's function by its name, ``PKG.MODULE:FUNCTION``."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UsageError(f"{option}: got {spec!r}, want PKG.MODULE:FUNCTION")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{option} {spec}: {error}") from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise UsageError(f"{option} {spec}: raised {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise UsageError(f"{option} {spec}: got a {type(factory).__name__}, want a function")
    return factory  # type: ignore[no-any-return]


def load_dataset(spec: str) -> Any:
    data = _made("--data", spec)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UsageError(
            f"--data {spec}: gave a {type(data).__name__}, "
            "want a dataset with a length and (image, label) items"
        )
    return data


def _made(option: str, spec: str) -> Any:
    """What the user's factory returns."""
    factory = load_function(option, spec)
    try:
        return factory()
    except Exception as error:
        raise UsageError(f"{option} {spec}: raised {type(error).__name__}: {error}") from error


def load_item(data: Any, idx: int) -> tuple[Tensor, int]:
    try:
        item = data[idx]
    except Exception as error:
        raise UsageError(f"--data: item {idx} raised {type(error).__name__}: {error}") from error
    try:
        image, label = item
        return torch.as_tensor(image), int(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--data: item {idx} is no (image tensor, integer label): {error}"
        ) from error


def load_model(spec: str, checkpoint: Path | None, device: str) -> nn.Module:
    model = _made("--model", spec)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {spec}: gave a {type(model).__name__}, want a torch.nn.Module")
    if checkpoint is not None:
        _load_weights(model, checkpoint)
    try:
        return model.to(device).eval()
    except RuntimeError as error:
        raise UsageError(f"--device {device}: {error}") from error


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UsageError(f"--checkpoint {checkpoint}: holds no plain weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UsageError(
            f"--checkpoint {checkpoint}: got a {type(state).__name__}, want a state_dict"
        )
    consume_prefix_in_state_dict_if_present(state, "module.")  # of DataParallel
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"--checkpoint {checkpoint}: {error}") from error


def file_sha256(checkpoint: Path | None) -> str | None:
    return None if checkpoint is None else hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def model_sha256(model: nn.Module) -> str:
    """Of the names, dtypes, shapes and values of the model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):  # a module may keep other things there
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
