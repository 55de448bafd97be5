"""The calls of the influence family and its ops."""

import functools

from bad_input.inputs import CLASSES, call, images, labels, method, network, rand
from robustcore import influence, ops


def projector():
    return influence.Projector(network(), 4)


def scalar(logits, targets=None):
    return logits.square().sum(1)


def batches():
    return [(images(), labels()), (images(1), labels(1))]


def trak():
    return influence.TRAK(network(), CLASSES, 4)


@functools.cache
def fitted():
    return trak().fit(batches())


EXAMPLES = {
    "ops.random_projection": call(
        ops.random_projection, x=lambda: rand(2, 5), k=4, seed=0, row_offset=0, kind="rademacher",
        dtype=None,
    ),
    "ops.random_projection_transposed": call(
        ops.random_projection_transposed, y=lambda: rand(2, 5), rows=4, seed=0, row_offset=0,
        kind="rademacher", dtype=None,
    ),
    "influence.Projector": call(
        influence.Projector, model=network, k=4, seed=0, kind="rademacher", method="layers"
    ),
    "influence.Projector.project": method(
        projector, "project", x=images, scalar=lambda: scalar, targets=labels
    ),
    "influence.TRAK": call(
        influence.TRAK, model=network, num_classes=CLASSES, k=4, seed=0, ridge=0.1,
        kind="rademacher",
    ),
    "influence.TRAK.fit": method(
        trak, "fit", loader=batches, checkpoints=lambda: [network().state_dict()], folder=None,
        progress=False,
    ),
    "influence.TRAK.score": method(fitted, "score", x=images, y=labels),
    "influence.TRAK.top": method(fitted, "top", x=images, n=2, y=labels, largest=True),
    "influence.exact_linear": call(
        influence.exact_linear, x=lambda: rand(6, 2), y=lambda: rand(6), test=lambda: rand(3, 2),
        loss="ridge", ridge=1.0,
    ),
    "influence.lds": call(
        influence.lds, scores=lambda: rand(2, 6), subsets=lambda: rand(4, 6) > 0.5,
        outputs=lambda: rand(4, 2),
    ),
}  # fmt: skip
