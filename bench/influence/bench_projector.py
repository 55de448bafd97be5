"""influence.Projector: per-sample gradients of a CNN, projected, against torch.func and traker."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from robustcore import ops
from robustcore.influence import Projector

SAMPLES, K = 32, 512


def network():
    """0.6 million parameters, images 3 x 32 x 32."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10),
    ).eval()  # fmt: skip


def scalar(logits, y):
    chosen = torch.arange(10, device=logits.device) == y[:, None]
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(1)
    return logits.masked_fill(~chosen, 0).sum(1) - others


def gradients(model, x, y):
    """All of them, ``[N, D]``, as a user would write it."""
    state = {name: p.detach() for name, p in model.named_parameters()}

    def one(state, x, y):
        return scalar(functional_call(model, state, (x[None],)), y[None])[0]

    grads = vmap(grad(one), (None, 0, 0))(state, x, y)
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "impl", ["robustcore", "robustcore, torch.func", "gradients alone", "traker"]
)
def test_projected_gradients(impl, measure, device):
    model = network().to(device)
    x = torch.randn(SAMPLES, 3, 32, 32, device=device)
    y = torch.randint(10, (SAMPLES,), device=device)
    made = Projector(model, K, method="func" if "func" in impl else "layers")
    want = ops.random_projection(gradients(model, x, y), K, seed=0)
    got = made.project(x, scalar, y).features
    assert (got - want).norm() < 1e-4 * want.norm()

    def ours():
        return made.project(x, scalar, y)

    fn = ours
    if impl == "gradients alone":
        fn = lambda: gradients(model, x, y)  # noqa: E731
    elif impl == "traker":
        projectors = pytest.importorskip("trak.projectors", reason="traker is not installed")
        theirs = projectors.BasicProjector(
            made.rows, K, 0, projectors.ProjectionType.rademacher, x.device
        )
        fn = lambda: theirs.project(gradients(model, x, y), 0)  # noqa: E731
    against = None if impl.startswith("robustcore") else ("robustcore", ours)
    measure(f"projected gradients of {SAMPLES} images", impl, fn, against=against, rounds=3)
