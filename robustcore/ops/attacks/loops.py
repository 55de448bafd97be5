"""The ops of a step as the loops of attacks call them, hundreds of times with tensors of their own.

What Python would look at again at every step, of arguments that no user gives, takes as long as the
kernels on a small batch; the kernels' own checks of devices, dtypes and shapes remain.
"""

from __future__ import annotations

from torch import Tensor

from robustcore.ops.attacks.norms import NORMS
from robustcore.ops.autograd import raw

watch = raw.attack_watch.default
"""As :func:`robustcore.ops.attack_watch`."""

apgd_update = raw.apgd_update.default
"""As :func:`robustcore.ops.apgd_update`, with rho as the last argument."""

_step_out = raw.attack_step_out.default


def momentum_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    norm: str,
    eps: float,
    step_size: Tensor,
    momentum: Tensor,
    previous: Tensor,
) -> Tensor:
    """:func:`robustcore.ops.attack_step` with momentum, written over ``previous``."""
    _step_out(x, grad, x0, previous, NORMS.index(norm), False, eps, None, 1.0, step_size, 1.0, None,
              1.0, momentum, 0.0, 1.0, previous)  # fmt: skip
    return previous
