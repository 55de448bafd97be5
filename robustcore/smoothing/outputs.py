"""Where the logits are in what a base classifier returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

OUTPUTS = ("logits", "binary")
Output: TypeAlias = str | Callable[[Any], Tensor]
"""``"logits"``, ``"binary"``, or a function that picks the logits out of what the model returns."""


def require_output(output: Any, num_classes: int | None = None) -> Output:
    """One of OUTPUTS or a function; ValueError for a binary model of more than two classes."""
    wanted = "'logits', 'binary' or a function that picks the logits"
    if not isinstance(output, str) and not callable(output):
        raise TypeError(f"output: got {output!r} of type {type(output).__name__}, want {wanted}")
    if isinstance(output, str) and output not in OUTPUTS:
        raise ValueError(f"output: got {output!r}, want {wanted}")
    if output == "binary" and num_classes not in (None, 2):
        raise ValueError(f"num_classes: got {num_classes}, want 2 with output='binary'")
    return output  # type: ignore[no-any-return]


def checked_logits(
    model: Callable[[Tensor], Any],
    num_classes: int | None,
    batch: Tensor,
    *,
    output: Output = "logits",
) -> Tensor:
    """The model's logits of a batch, floating ``[N, num_classes]`` (None: as many as it has).

    They are the result itself, what it calls ``logits`` (a dict or an object), or the only tensor
    in it that can be them; or what a function ``output`` picks. With ``"binary"`` they are one a
    row, ``[N]`` or ``[N, 1]``: class 1 where it is above 0.

    Raises TypeError or ValueError, naming the base classifier.
    """
    made = model(batch)
    binary = output == "binary"
    found = output(made) if callable(output) else _find(made, len(batch), num_classes, binary)
    if isinstance(found, Tensor) and _fits(found, len(batch), num_classes, binary):
        if not binary:
            return found
        logit = found.reshape(len(batch))
        return torch.stack([torch.zeros_like(logit), logit], 1)
    rows, columns = len(batch), "K" if num_classes is None else num_classes
    wanted = (
        f"[{rows}, {columns}], one column a class" if not binary else f"[{rows}] or [{rows}, 1]"
    )
    if isinstance(found, Tensor):
        got = f"{found.dtype} of shape {list(found.shape)}"
        raise ValueError(
            f"base_classifier: gave {got} for a batch of {rows}, want floating logits {wanted}"
        )
    raise TypeError(
        f"base_classifier: gave {_shown(found)} for a batch of {rows}, want floating logits "
        f"{wanted}; output= takes a function that picks them"
    )


def _find(made: Any, rows: int, num_classes: int | None, binary: bool) -> Any:
    """The logits in what a model returned, or that itself where it is not clear which they are."""
    if isinstance(made, Tensor):
        return made
    if isinstance(made, Mapping):
        if "logits" in made:
            return made["logits"]
        parts = list(made.values())
    elif isinstance(made, Sequence) and not isinstance(made, str):
        parts = list(made)
    else:
        return getattr(made, "logits", made)
    fitting = [
        part
        for part in parts
        if isinstance(part, Tensor) and _fits(part, rows, num_classes, binary)
    ]
    return fitting[0] if len(fitting) == 1 else made


def _fits(found: Tensor, rows: int, num_classes: int | None, binary: bool) -> bool:
    if not found.is_floating_point():
        return False
    if binary:
        return found.shape in ((rows,), (rows, 1))
    return found.dim() == 2 and len(found) == rows and num_classes in (None, found.shape[1])


def _shown(made: Any) -> str:
    """Type and contents of what holds no logits, in a few words."""
    if isinstance(made, Mapping):
        return f"{type(made).__name__} of {', '.join(map(str, made))}"
    if isinstance(made, (tuple, list)):
        parts = [list(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in made]
        return f"{type(made).__name__} of {', '.join(map(str, parts))}"
    return type(made).__name__
