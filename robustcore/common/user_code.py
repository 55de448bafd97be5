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


def load_model(
    spec: str,
    checkpoint: Path | None,
    device: str,
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> nn.Module:
    """The user's model in eval mode, with the weights that are under ``key`` of a checkpoint."""
    model = _made("--model", spec)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {spec}: gave a {type(model).__name__}, want a torch.nn.Module")
    if checkpoint is not None:
        _load_weights(model, checkpoint, key, prefix)
    elif key is not None or prefix is not None:
        raise UsageError("--checkpoint-key, --strip-prefix: go with --checkpoint")
    try:
        return model.to(device).eval()
    except RuntimeError as error:
        raise UsageError(f"--device {device}: {error}") from error


def _load_weights(model: nn.Module, checkpoint: Path, key: str | None, prefix: str | None) -> None:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UsageError(f"--checkpoint {checkpoint}: holds no plain weights: {error}") from error
    state = _state_dict(content, checkpoint, key)
    if prefix is not None:
        kept = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        if not kept:
            first = next(iter(state), "nothing")
            raise UsageError(f"--strip-prefix {prefix}: no name begins so ({first} is the first)")
        state = kept
    state = _unwrapped(state, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        hint = _prefix_hint(state, model)
        raise UsageError(f"--checkpoint {checkpoint}: {hint}{error}") from error


def _state_dict(content: Any, checkpoint: Path, key: str | None) -> dict[str, Any]:
    """The weights in a checkpoint: under ``key`` (a.b is b in a), or under a name that is usual."""
    state = content
    whole = key is not None and isinstance(content, dict) and key in content
    for part in [] if key is None else [key] if whole else key.split("."):
        if not isinstance(state, dict) or part not in state:
            held = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise UsageError(f"--checkpoint-key {key}: {checkpoint} holds {held}")
        state = state[part]
    names = WEIGHTS if key is None else ()
    while isinstance(state, dict) and (
        found := [name for name in names if isinstance(state.get(name), dict)]
    ):
        state = state[found[0]]
    if not isinstance(state, dict):
        raise UsageError(
            f"--checkpoint {checkpoint}: got a {type(state).__name__}, want a state_dict"
        )
    if not any(isinstance(value, Tensor) for value in state.values()):
        held = ", ".join(map(str, state)) or "nothing"
        raise UsageError(
            f"--checkpoint {checkpoint}: holds {held}, no weights; --checkpoint-key says where"
        )
    return state


WEIGHTS = ("state_dict", "model_state_dict", "model", "net")


def _unwrapped(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The weights by the names of the model's own.

    DataParallel and torch.compile each put a module into one of theirs, at any depth, and of the
    model or of the one that was saved: names are matched without these.
    """
    wanted = model.state_dict()
    if set(state) == set(wanted):
        return state

    def bare(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))

    own = {bare(name): name for name in wanted}
    named = {own.get(bare(name), name): value for name, value in state.items()}
    unique = len(own) == len(wanted) and len(named) == len(state)
    return named if unique else state


def _prefix_hint(state: dict[str, Any], model: nn.Module) -> str:
    """What to take off the names, where one beginning makes the difference."""
    own = list(model.state_dict())
    for beginning in [name.removesuffix(own[0]) for name in state if name.endswith(own[0])]:
        if beginning and all(beginning + name in state for name in own):
            return f"try --strip-prefix {beginning}: "
    return ""


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
