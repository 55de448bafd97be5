"""Normal equations that say when they have no one solution."""

from __future__ import annotations

import torch
from torch import Tensor


def solve(gram: Tensor, right: Tensor) -> Tensor | None:
    """Solves for one right side ``[S]``; None where the matrix is singular, rounding aside."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    diagonal = factor.diagonal()
    # Rounding makes a singular matrix regular, with a pivot of about this size.
    rounding = len(gram) * torch.finfo(gram.dtype).eps
    if int(failed) or float(diagonal.min() / diagonal.max()) ** 2 <= rounding:
        return None
    return torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
