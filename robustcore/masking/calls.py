"""What a masked graph calls beside the ops; masks are floating, 1 = visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from robustcore.ops.masking.epilogue import consume_multiply, mask_multiply
from robustcore.ops.masking.pools import mask_pool

Place: TypeAlias = tuple[int, int, bool]
"""Of a mask, its batch's dimension, how often each sample is there, and whether samples lie inside
of that."""

# ---- Tensors under masks -------------------------------------------------------------------------


def times(x: Tensor, mask: Tensor) -> Tensor:
    """``x * mask``, 0 where the mask is 0 whatever x is there."""
    if _is_image(x, mask):
        return mask_multiply(x, mask)
    y = torch.where(mask > 0, x * mask.to(x.dtype), 0)
    if y.stride() == x.stride() or 0 in x.stride() or y.shape != x.shape or _is_mapped(x, mask):
        return y
    # A layer may round in another order for another layout.
    return torch.empty_strided(x.shape, x.stride(), dtype=y.dtype, device=y.device).copy_(y)


def _is_mapped(*tensors: Tensor) -> bool:
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def consume_times(x: Tensor, mask: Tensor) -> Tensor:
    """:func:`times` of an x that nobody else reads."""
    return consume_multiply(x, mask) if _is_image(x, mask) else times(x, mask)


def _is_image(x: Tensor, mask: Tensor) -> bool:
    return x.dim() == 4 and mask.shape[1:] == (1, *x.shape[2:]) and x.numel() > 0


def soft_fill(x: Tensor, mask: Tensor, iters: int) -> Tensor:
    """:func:`robustcore.ops.neighbor_fill` for masks in [0, 1], equal to it for zeros and ones.

    The recurrence divides by the sum of the mask; values that are already filled weigh as their
    mask here, so that each result is a mean of visible values and stays within their range.
    """
    weighed = filled = times(x, mask)
    mask = mask.to(x.dtype)
    for _ in range(iters):
        around = _box(mask)
        mean = _box(weighed) / (around + 1e-5 * around.clamp(max=1))
        mean = torch.where(around > 0, mean, 0)
        filled = weighed + (1 - mask) * mean.detach()
        mask = (mask + around).clamp(max=1)
        weighed = mask * filled
    return filled


def _box(x: Tensor) -> Tensor:
    """Sums of 3x3 pixels."""
    return 9 * functional.avg_pool2d(x, 3, 1, 1)


def add_in_place(a: Tensor, b: Tensor, alpha: float = 1) -> Tensor:
    """``a += alpha * b``."""
    # One image that has met no mask yet may be added to many that have, or be mapped by vmap.
    same = torch.broadcast_shapes(a.shape, b.shape) == a.shape
    return a.add_(b, alpha=alpha) if same and not _is_mapped(b) else torch.add(a, b, alpha=alpha)


def size(x: Tensor, dim: int) -> int:
    return x.shape[dim]


def paired(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As many images as masks, without a copy."""
    n = max(len(x), len(mask))
    return x.expand(n, *x.shape[1:]), mask.expand(n, *mask.shape[1:])


def alive_only(x: Tensor, alive: Tensor) -> Tensor:
    """x ``[N, ...]``, 0 for samples that are not alive."""
    return torch.where(alive.reshape(-1, *[1] * (x.dim() - 1)) > 0, x, 0)


def visible_mean(mean: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """A mean over dims of ``x * mask`` as the mean over what is visible."""
    share = mask.mean(tuple(dims), keepdim=keepdim)
    share = torch.where((share == 0) | (share == 1), 1, share + 1e-8)
    return (mean / share).to(mean.dtype)


def visible_extreme(
    x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool, smallest: bool
) -> Tensor:
    """The largest (smallest) visible value over dims; 0 where nothing is."""
    sign = -1 if smallest else 1
    low = torch.where(mask > 0, x, -sign * torch.inf)
    over = tuple(dims)
    found = low.amin(over, keepdim) if smallest else low.amax(over, keepdim)
    return torch.where(found == -sign * torch.inf, 0, found)


def visible_extreme_alone(*arguments: Any) -> tuple[Tensor, None]:
    """The same of an operation that also says where; nobody asks."""
    return visible_extreme(*arguments), None


def adaptive_max(x: Tensor, mask: Tensor, size: Any) -> tuple[Tensor, Tensor]:
    """Adaptive max pooling over what is visible; 0 where nothing is. And the positions."""
    pool: Any = functional.adaptive_max_pool2d_with_indices
    found, positions = pool(torch.where(mask > 0, x, -torch.inf), size)
    return torch.where(found == -torch.inf, 0, found), positions


def visible_softmax(x: Tensor, mask: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
    """A softmax in which what is hidden does not occur; a mask's values weigh."""
    low = torch.finfo(x.dtype).min
    return torch.where(mask > 0, x + log_weights(mask, x), low).softmax(dim, dtype)


def log_weights(mask: Tensor, x: Tensor) -> Tensor:
    """What is added to scores x so that exp(x) is weighed by the mask; 0 where it is 1."""
    return mask.log().clamp(min=torch.finfo(x.dtype).min).to(x.dtype)


def visible_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor, *options: Any
) -> Tensor:
    """scaled_dot_product_attention to keys that are visible; ``mask`` is beside the keys.

    ``options``: dropout_p, is_causal, scale, enable_gqa.
    """
    dropout, causal, scale, grouped = options
    weights = log_weights(mask.transpose(-2, -1), query)
    if causal:
        shape = (query.shape[-2], key.shape[-2])
        later = torch.ones(shape, dtype=torch.bool, device=query.device).triu(1)
        weights = weights.masked_fill(later, torch.finfo(query.dtype).min)
    if bias is not None and bias.dtype == torch.bool:
        weights = weights.masked_fill(~bias, torch.finfo(query.dtype).min)
    elif bias is not None:
        weights = weights + bias
    attention: Any = functional.scaled_dot_product_attention
    found: Tensor = attention(
        query, key, value, weights, dropout, False, scale=scale, enable_gqa=grouped
    )
    return found


def visible_norm(
    plain: Tensor, x: Tensor, mask: Tensor, groups: int | None, dims: Sequence[int],
    weight: Tensor | None, bias: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """x normalised by the mean and variance of what is visible.

    ``groups``: of channels, the second dimension, or None: over ``dims``. Where all that is
    averaged is visible, the result is ``plain``, torch's own.
    """
    wide, shown = x.to(mask.dtype), mask
    if groups is not None:
        n, channels = x.shape[:2]
        wide = wide.reshape(n, groups, channels // groups, *x.shape[2:])
        shown = mask.unsqueeze(1)
        dims = range(2, wide.dim())
        weight, bias = (
            None if t is None else t.view(-1, *[1] * (x.dim() - 2)) for t in (weight, bias)
        )
    over = tuple(dims)
    total, mean, squares = _moments(wide, shown, over, eps)
    centred = torch.where(shown > 0, wide - mean, 0)
    y = (centred / (squares / total.clamp(min=eps) + eps).sqrt()).reshape(x.shape)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    whole = mask.amin(tuple(range(1, mask.dim())) if groups else over, keepdim=True) == 1
    return torch.where(whole, plain, y.to(plain.dtype))


def _moments(
    x: Tensor, mask: Tensor, over: tuple[int, ...], least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """How much is visible, its mean, and the sum of squares around that; divided by ``least``, at
    least."""
    weights = mask.expand(*[max(s) for s in zip(mask.shape, x.shape, strict=True)])
    total = weights.sum(over, keepdim=True)
    mean = times(x, mask).sum(over, keepdim=True) / total.clamp(min=least)
    centred = torch.where(mask > 0, x - mean, 0)
    return total, mean, (mask * centred.square()).sum(over, keepdim=True)


def visible_variance(
    plain: Tensor, x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool, correction: float,
    root: bool,
) -> Tensor:  # fmt: skip
    """The variance of what is visible, or its root; 0 where that is not more than ``correction``.

    ``plain``: torch's own of x without what is hidden; the result where nothing is.
    """
    over = tuple(dims)
    total, _, squares = _moments(x.to(mask.dtype), mask, over, 1e-8)
    left = total - correction
    y = torch.where(left > 0, squares / torch.where(left > 0, left, 1), 0)
    if root:  # 0 has no slope
        y = torch.where(y > 0, torch.where(y > 0, y, 1).sqrt(), 0)
    whole = mask.amin(over, keepdim=True) == 1
    if not keepdim:
        y, whole = y.squeeze(over), whole.squeeze(over)
    return torch.where(whole, plain, y.to(plain.dtype))


def visible_variance_and_mean(
    plain: tuple[Tensor, Tensor], x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool,
    *options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same, and the mean."""
    spread, mean = plain
    spread = visible_variance(spread, x, mask, dims, keepdim, *options)
    return spread, visible_mean(mean, mask, dims, keepdim)


def visible_logsumexp(x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """Of what is visible, a mask's values weigh; 0 where nothing is."""
    over = tuple(dims)
    weighed = torch.where(mask > 0, x + log_weights(mask, x), torch.finfo(x.dtype).min)
    return _or_0(weighed.logsumexp(over, keepdim), mask, over, keepdim)


def visible_product(x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """Of what is visible; 0 where nothing is."""
    (dim,) = dims
    return _or_0(torch.where(mask > 0, x, 1).prod(dim, keepdim), mask, (dim,), keepdim)


def _or_0(y: Tensor, mask: Tensor, over: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.where(mask.amax(over, keepdim) > 0, y, 0)


# ---- Tokens that are left out --------------------------------------------------------------------


class NothingShown(Exception):
    """All tokens are hidden: there are none to run on."""


def kept(mask: Tensor) -> Tensor:
    """Which tokens the samples of a batch show, all alike; ``mask``: ``[N, T]``."""
    found = mask[0].nonzero().flatten()
    if not len(found):
        raise NothingShown
    return found


def take(x: Tensor, dim: int, at: Tensor) -> Tensor:
    """The tokens ``at`` of x; x itself if those are all."""
    return x if len(at) == x.shape[dim] else x.index_select(dim, at)


def put_back(x: Tensor, at: Tensor, dim: int, size: int) -> Tensor:
    """x with ``size`` tokens along a dimension, 0 but for those that it has, which are ``at``."""
    if len(at) == size:
        return x
    whole = x.new_zeros([*x.shape[:dim], size, *x.shape[dim + 1 :]])
    return whole.index_copy(dim, at, x)


# ---- Rows that are left out ----------------------------------------------------------------------


def visible_rows(mask: Tensor, x: Tensor) -> Tensor | None:
    """Which rows of x are visible, counted over all its dimensions but the last; None for all,
    where to leave out the others would not pay or values cannot be looked at."""
    sizes = x.shape[:-1]
    if torch.compiler.is_compiling() or _is_mapped(mask, x):
        return None
    if any(own not in (1, size) for own, size in zip(mask.shape, sizes, strict=False)):
        return None  # one image that has met no mask yet
    shown = (mask > 0).expand(*sizes, 1).flatten()
    at = shown.nonzero().flatten()
    return at if len(at) <= 0.75 * len(shown) else None


def take_rows(x: Tensor, at: Tensor | None) -> Tensor:
    """``[rows, last]``; x itself if those are all."""
    return x if at is None else x.reshape(-1, x.shape[-1]).index_select(0, at)


def put_rows(x: Tensor, at: Tensor | None, like: Tensor) -> Tensor:
    """Rows where they were in a tensor with as many rows as ``like``, 0 between them."""
    if at is None:
        return x
    sizes = like.shape[:-1]
    return x.new_zeros(sizes.numel(), x.shape[-1]).index_copy_(0, at, x).view(*sizes, x.shape[-1])


# ---- Masks ---------------------------------------------------------------------------------------


def seen(mask: Tensor, *window: Any) -> Tensor:
    return mask_pool(mask, *window).gt(0).to(mask.dtype)


def largest(mask: Tensor, dims: Sequence[int]) -> Tensor:
    return mask.amax(tuple(dims), keepdim=True)


def either(masks: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*masks)).amax(0)


def majority(masks: list[Tensor]) -> Tensor:
    votes = torch.stack(torch.broadcast_tensors(*masks)).sum(0)
    return votes.gt(len(masks) / 2).to(votes.dtype)


def adaptive(mask: Tensor, size: Any) -> Tensor:
    return functional.adaptive_avg_pool2d(mask, size).gt(0).to(mask.dtype)


def resized(mask: Tensor, resize: Any, arguments: tuple[Any, ...]) -> Tensor:
    """A mask resized as its image is; where pixels are mixed, 1 where any is visible."""
    wide: Tensor = resize(mask, *arguments)
    return wide if "nearest" in str(resize) else wide.gt(0).to(mask.dtype)


def repeated(mask: Tensor, factor: int) -> Tensor:
    return mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def spread(mask: Tensor, rows: int, columns: int) -> Tensor:
    return mask.expand(-1, -1, rows, columns)


def transposed(
    mask: Tensor, kernel: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> Tensor:
    ones = mask.new_ones(1, 1, *kernel)
    reached = functional.conv_transpose2d(
        mask, ones, None, stride, padding, output_padding, 1, dilation
    )
    return reached.gt(0).to(mask.dtype)


def beside(masks: list[Tensor], places: Sequence[Place]) -> Tensor:
    """The elements of several masks in a row, ``[N, elements]``."""
    return torch.cat([_by_sample(m, p) for m, p in zip(masks, places, strict=True)], 1)


def _by_sample(mask: Tensor, place: Place) -> Tensor:
    axis, times, inner = place
    flat = mask.movedim(axis, 0)
    flat = flat.unflatten(0, (times, -1)).transpose(0, 1) if inner else flat
    return flat.reshape(mask.shape[axis] // times, -1)


def rearranged(mask: Tensor, index: Tensor, given: Place, to: Place) -> Tensor:
    """A mask's elements by number, those of number -1 visible.

    ``index``: of one sample, the batch's dimension first. ``given``, ``to``: of the mask and of the
    result.
    """
    flat = _by_sample(mask, given)
    flat = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
    found = flat[:, index.flatten()].reshape(len(flat), *index.shape)
    axis, _, inner = to
    return (found.transpose(0, 1) if inner else found).flatten(0, 1).movedim(0, axis)
