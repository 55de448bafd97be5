"""The plan: every (image, sample) once, every batch but the last full."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustcore.smoothing.plan import Block, cut_runs, plan_batches


@given(st.integers(0, 7), st.integers(1, 40), st.integers(1, 50))
def test_covers_everything_once_in_full_batches(images, samples, batch_size):
    batches = list(plan_batches(images, samples, batch_size))
    covered = [pair for blocks in batches for pair in pairs(blocks)]
    assert covered == [(image, sample) for image in range(images) for sample in range(samples)]
    sizes = [sum(block.size for block in blocks) for blocks in batches]
    assert all(size == batch_size for size in sizes[:-1])
    assert all(0 < size <= batch_size for size in sizes)
    assert all(len(blocks) <= 3 for blocks in batches)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Many samples: whole batches of one image.
        ((1, 4, 2), [[Block(0, 1, 0, 2)], [Block(0, 1, 2, 2)]]),
        # Few samples: many images in one batch.
        ((5, 2, 4), [[Block(0, 2, 0, 2)], [Block(2, 2, 0, 2)], [Block(4, 1, 0, 2)]]),
        # A tail, whole images, and a head.
        (
            (4, 3, 8),
            [[Block(0, 2, 0, 3), Block(2, 1, 0, 2)], [Block(2, 1, 2, 1), Block(3, 1, 0, 3)]],
        ),
    ],
)
def test_examples(arguments, expected):
    assert list(plan_batches(*arguments)) == expected


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 9), st.integers(1, 40))
def test_runs_cover_the_same_pairs_with_consecutive_indices(chosen, samples, batch_size):
    indices = sorted(chosen)
    for blocks in plan_batches(len(indices), samples, batch_size):
        runs = cut_runs(blocks, indices)
        assert pairs(runs) == pairs(blocks)
        for run in runs:
            of_run = indices[run.first_image : run.first_image + run.images]
            assert of_run == list(range(of_run[0], of_run[0] + run.images))


def pairs(blocks):
    """(image, sample) in the order of the rows."""
    return [
        (block.first_image + i, block.first_sample + s)
        for block in blocks
        for i in range(block.images)
        for s in range(block.samples)
    ]
