"""Rules of products that mix elements, and of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, fx

from robustcore.common import graph as traced
from robustcore.masking import calls
from robustcore.masking.masks import Mask
from robustcore.masking.rules.call import Call, Row, Then, Value
from robustcore.masking.rules.pixels import aligned, dense, pointwise, vector


def linear(call: Call) -> Row:
    """Of channels, unchanged; of tokens or of a vector, a vector | zeros where it mixes tokens; the
    last dense layer: a sample that shows nothing enters as 0"""
    if call.value(call.args["weight"]).kind in ("map", "vector"):
        raise call.refuse("its weights depend on the image; want constants")
    if call.x.kind == "vector":
        return dense(call)
    last = len(call.sizes) - 1
    call.want_apart(call.mask, last)
    if not call.mask.varies(last):
        return call.row(Value("map", call.mask), "pointwise", inputs=call.maps)
    return call.row(call.value_of(call.masks.any(call.mask, (last,))), "clean", inputs=call.maps)


def matmul(call: Call) -> Row:
    """What is visible of rows and of columns | zeros in one of the two where it sums over what is
    hidden"""
    operands = [a for a in call.args.values() if isinstance(a, fx.Node)][-2:]
    if not call.maps:
        return vector(call)
    if any(n not in operands for n in call.maps):
        raise call.refuse("adds to what is partly hidden; add it apart")
    a, b = operands
    rank = max(len(traced.sizes(a)), len(traced.sizes(b)))
    return _product(call, [(a, len(traced.sizes(a)) - 1, rank - 1),
                           (b, len(traced.sizes(b)) - 2, rank - 2)])  # fmt: skip


def _product(call: Call, operands: list[tuple[fx.Node, int, int]]) -> Row:
    """``operands``: each with the dimension that is summed over, its own and the result's."""
    masks: list[Mask] = []
    summed: list[fx.Node] = []
    for node, own, dim in operands:
        value = call.value(node)
        if value.kind != "map":
            continue
        assert value.mask is not None
        call.want_apart(value.mask, own)
        if value.mask.varies(own):
            summed.append(node)
        masks.append(call.masks.any(aligned(call, node), (dim,)))
    zero = [n for n in summed if call.value(n).zero]
    same = len({_along(call, n, own) for n, own, _ in operands if n in summed}) == 1
    # If both hide the same, one of them is enough; a softmax has its zeros already.
    cleans = [] if zero and same else summed[:1] if same else summed
    try:
        mask = call.masks.all_of(masks)
    except ValueError:
        raise call.refuse(
            "the batches of its inputs lie in different dimensions; keep them in one"
        ) from None
    return call.row(call.value_of(mask), "mix", inputs=call.maps, cleans=cleans)


def _along(call: Call, node: fx.Node, dim: int) -> Mask:
    """The mask along one dimension, put last, so that two inputs' can be compared."""
    mask = call.value(node).mask
    assert mask is not None
    others = [d for d in range(len(mask.shape)) if d != dim]
    line = call.masks.any(mask, others)
    sizes = [own * traced.BATCH if d == line.axis else own for d, own in enumerate(line.shape)]
    found = call.moved(line, sizes, lambda numbers: numbers.movedim(dim, -1))[0]
    return line if found is None else found


def einsum(call: Call) -> Row:
    """As `matmul` | as `matmul`"""
    if not call.maps:
        return vector(call)
    given, result = letters_of(call)
    masks, cleans = [], []
    for letters, node in zip(given, call.args["tensors"], strict=True):
        mask = call.value(node).mask if call.value(node).kind == "map" else None
        if mask is None:
            continue
        gone = [d for d, letter in enumerate(letters) if letter not in result]
        call.want_apart(mask, *gone)
        if any(mask.varies(d) for d in gone) and not call.value(node).zero:
            cleans.append(node)
        kept = [letters.index(letter) for letter in result if letter in letters]
        left = call.masks.any(mask, gone)
        sizes = [own * traced.BATCH if d == left.axis else own for d, own in enumerate(left.shape)]
        new = [i for i, letter in enumerate(result) if letter not in letters]

        order = (*kept, *gone)
        found = call.moved(left, sizes, _turn(order, len(gone), new))[0]
        if found is not None:
            masks.append(found)
    value = call.value_of(call.masks.all_of(masks) if masks else None)
    return call.row(value, "mix", inputs=call.maps, cleans=cleans)


def letters_of(call: Call) -> tuple[list[str], str]:
    """An einsum's letters, of each operand and of the result, with all that it leaves unsaid."""
    left, arrow, right = str(call.args["equation"]).replace(" ", "").partition("->")
    given = left.split(",")
    free = [c for c in map(chr, range(ord("A"), ord("z"))) if c.isalpha() and c not in left]
    ranks = [len(traced.sizes(node)) for node in call.args["tensors"]]
    most = max(r - len(g) + 3 if "..." in g else 0 for g, r in zip(given, ranks, strict=True))
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = "..." * (most > 0) + "".join(once)
    dots = free[:most]
    wide = [g.replace("...", "".join(dots[most - (r - len(g) + 3):]) if "..." in g else "")
            for g, r in zip(given, ranks, strict=True)]  # fmt: skip
    return wide, right.replace("...", "".join(dots))


def _turn(order: Sequence[int], gone: int, new: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Dimensions in another order, without the last ``gone`` (of size 1), and with new ones."""

    def operation(numbers: Tensor) -> Tensor:
        numbers = numbers.permute(*order)
        for _ in range(gone):
            numbers = numbers.squeeze(-1)
        for at in new:
            numbers = numbers.unsqueeze(at)
        return numbers

    return operation


def softmax(call: Call) -> Row:
    """Unchanged | along what is hidden (attention): it does not occur; a mask's values weigh"""
    if call.x.kind != "map":
        return vector(call)
    (dim,) = call.dims(call.args["dim"])
    call.want_apart(call.mask, dim)
    if not call.mask.varies(dim):
        return pointwise(call)
    if "log" in call.op:
        raise call.refuse(f"dim {dim} mixes pixels; want softmax, or channels")
    arguments = (call.source, call.mask, dim, call.args.get("dtype"))
    then = Then("of what is visible", calls.visible_softmax, arguments, instead=True)
    return call.row(Value("map", call.mask, zero=True), "mix", then=then)


def attention(call: Call) -> Row:
    """The queries' | keys that are hidden do not occur; a mask's values weigh"""
    if not call.maps:
        return vector(call)
    query, key, value = (call.args[name] for name in ("query", "key", "value"))
    if call.args["attn_mask"] in call.tensors:
        raise call.refuse("its attn_mask depends on the image; want a constant")
    keys = [call.value(n).mask for n in (key, value) if call.value(n).kind == "map"]
    queries = call.value(query).mask if call.value(query).kind == "map" else None
    for mask in (*keys, queries):
        if mask is not None:
            call.want_apart(mask, len(mask.shape) - 2, len(mask.shape) - 1)
    if any(m is not None and m.varies(len(m.shape) - 1) for m in (*keys, queries)):
        raise call.refuse(
            "features of a token are hidden one by one; want tokens that are hidden whole"
        )
    shown = call.masks.all_of([m for m in keys if m is not None]) if keys else None
    then = None
    if shown is not None and shown.varies(len(shown.shape) - 2):
        options = [call.args[n] for n in ("dropout_p", "is_causal", "scale", "enable_gqa")]
        arguments = (query, key, value, call.args["attn_mask"], shown, *options)
        then = Then("to visible keys", calls.visible_attention, arguments, instead=True)
    return call.row(call.value_of(queries), "mix", inputs=call.maps, then=then)
