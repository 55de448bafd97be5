"""ops.count_votes against argmax and bincount for each image, and against the published loop."""

import numpy as np
import pytest
import torch

from robustcore import ops

CASES = {  # name: images, samples, classes
    "10 images, 1000 samples, 10 classes": (10, 1000, 10),
    "1 image, 1000 samples, 1000 classes": (1, 1000, 1000),
    "100 images, 100 samples, 10 classes": (100, 100, 10),
    "1 image, 1000 samples, 10 classes": (1, 1000, 10),
}


def implementation(impl, logits, out):
    classes = logits.shape[2]
    if impl == "robustcore":
        return lambda: ops.count_votes(logits, out=out)

    def eager():
        return torch.stack([torch.bincount(rows.argmax(1), minlength=classes) for rows in logits])

    if impl == "eager":
        return eager

    def published():
        # Cohen et al.: predictions to the host, then a Python loop over every one of them.
        counts = np.zeros((len(logits), classes), dtype=int)
        for image, rows in enumerate(logits):
            for index in rows.argmax(1).cpu().numpy():
                counts[image, index] += 1
        return torch.from_numpy(counts)

    return published


@pytest.mark.parametrize("impl", ["robustcore", "eager", "published"])
@pytest.mark.parametrize("case", CASES)
def test_count_votes(case, impl, measure, device):
    images, samples, classes = CASES[case]
    logits = torch.randn(images, samples, classes, device=device)
    out = torch.empty(images, classes, dtype=torch.int64, device=device)
    fn = implementation(impl, logits, out)
    expected = torch.zeros(images, classes, dtype=torch.int64)
    votes = logits.argmax(2).cpu()
    expected.scatter_add_(1, votes, torch.ones_like(votes))
    assert torch.equal(torch.as_tensor(fn()).cpu(), expected)
    measure(f"count_votes: {case}", impl, fn, launches=20)
