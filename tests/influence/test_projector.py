"""influence.Projector: the projections of autograd's gradients, of any module."""

import copy

import pytest
import torch
from torch import nn

from influence import models
from influence.models import images, labels, margin, network
from robustcore import ops
from robustcore.influence import Projector, layers, projector

KINDS = [models.Convolutions, models.Tokens, models.Elsewhere, models.perceptron]


def want_of(model, x, y, k, **matrix):
    return ops.random_projection(models.gradients(model, x, y), k, **{"seed": 0, **matrix})


@pytest.mark.parametrize("method", ["layers", "func"])
@pytest.mark.parametrize("kind", KINDS)
def test_projects_the_gradients_of_each_sample(kind, method):
    model, x, y = network(kind), images(), labels()
    if kind is models.Elsewhere and method == "func":
        assert not model.unused.weight.grad
    made = Projector(model, 40, method=method)
    for some in (slice(0, 9), slice(2, 3), slice(4, 9)):
        got = made.project(x[some], margin, y[some])
        torch.testing.assert_close(got.features, want_of(model, x[some], y[some], 40))
        torch.testing.assert_close(got.values, margin(model(x[some]), y[some]).detach())


def test_which_layers_are_read_off():
    def left(kind):
        made = Projector(network(kind), 4)
        made.project(images(), margin, labels())
        return sorted(made._layers)

    assert left(models.Convolutions) == ["first", "head", "second", "twice"]
    # Shared weights, and attention's own layer, which is a subclass, are not.
    assert left(models.Tokens) == ["embed", "head"]
    # A sample is not in the first dimension; a weight is used without its layer.
    assert left(models.Elsewhere) == ["unused"]
    assert left(models.perceptron) == ["1", "3"]


def test_pieces_and_chunks_change_nothing(monkeypatch):
    model, x, y = network(models.Convolutions), images(), labels()
    want = Projector(model, 30).project(x, margin, y).features
    monkeypatch.setattr(layers, "PIECE", 20)
    monkeypatch.setattr(layers, "SAMPLES", 2)
    monkeypatch.setattr(layers, "UNFOLDED", 100)
    monkeypatch.setattr(projector, "HELD", 50)
    torch.testing.assert_close(Projector(model, 30).project(x, margin, y).features, want)


def test_no_more_than_a_piece_is_held(monkeypatch):
    monkeypatch.setattr(layers, "PIECE", 20)
    held = []
    project = projector.random_projection
    monkeypatch.setattr(
        projector,
        "random_projection",
        lambda g, *a, **b: (held.append(g.shape), project(g, *a, **b))[1],
    )
    model = network(models.perceptron)
    Projector(model, 4).project(images(70), margin, labels(70))
    assert max(rows for rows, _ in held) == layers.SAMPLES
    assert max(width for _, width in held) == 64  # one row of the weight


@pytest.mark.parametrize("matrix", [dict(seed=2**64 - 1), dict(seed=7, kind="normal")])
def test_the_matrix(matrix):
    model, x, y = network(models.perceptron), images(), labels()
    got = Projector(model, 30, **matrix).project(x, margin, y).features
    torch.testing.assert_close(got, want_of(model, x, y, 30, **matrix))


def test_frozen_parameters_have_no_rows():
    model, x, y = network(models.Convolutions), images(), labels()
    model.first.requires_grad_(False)
    model.norm.weight.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    made = Projector(model, 30)
    assert made.rows == sum(p.numel() for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(made.project(x, margin, y).features, want_of(model, x, y, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    model, x, y = network(models.Convolutions), images(), labels()
    want = want_of(model, x, y, 30)
    got = Projector(model.to(dtype), 30).project(x.to(dtype), margin, y).features
    assert got.dtype == torch.float32
    error = (got.double() - want).norm() / want.norm()
    assert error < (1e-4 if dtype == torch.float32 else 0.2)


def test_without_targets_and_without_samples():
    model, x = network(models.perceptron), images()
    got = Projector(model, 30).project(x, lambda logits: logits.square().sum(1))
    want = models.gradients(model, x, labels(), lambda z, y: z.square().sum(1))
    torch.testing.assert_close(got.features, ops.random_projection(want, 30, seed=0))
    none = Projector(model, 30).project(x[:0], margin, labels(0))
    assert none.features.shape == (0, 30)
    assert none.values.shape == (0,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_surroundings_do_not_matter(mode):
    model, x, y = network(models.Convolutions), images(), labels()
    want = want_of(model, x, y, 30)
    before = copy.deepcopy(model.state_dict())
    with mode():
        torch.testing.assert_close(Projector(model, 30).project(x, margin, y).features, want)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_on_a_device(device):
    model, x, y = network(models.Convolutions), images(), labels()
    want = Projector(model, 30).project(x, margin, y).features
    moved = copy.deepcopy(model).to(device)
    got = Projector(moved, 30).project(x.to(device), margin, y.to(device)).features
    torch.testing.assert_close(got.cpu(), want)


MODEL = network(models.perceptron)
X = images(2)
BAD = [
    (lambda: Projector(lambda x: x, 4), TypeError, "model: got function"),
    (lambda: Projector(nn.ReLU(), 4), ValueError, "model: has no parameter that wants"),
    (lambda: Projector(MODEL, 0), ValueError, "k: got 0"),
    (lambda: Projector(MODEL, 4, kind="sparse"), ValueError, "kind: got 'sparse'"),
    (lambda: Projector(MODEL, 4, method="hooks"), ValueError, "method: got 'hooks'"),
    (
        lambda: Projector(models.perceptron(), 4).project(X, margin),
        ValueError,
        "model: is in train",
    ),
    (lambda: Projector(MODEL, 4).project(X, margin, labels(3)), ValueError, "targets: got shape"),
    (
        lambda: Projector(MODEL, 4).project(X, lambda z: z),
        ValueError,
        r"scalar: gave shape \[2, 5\]",
    ),
    (lambda: Projector(MODEL, 4).project(X, lambda z: None), TypeError, "scalar: gave NoneType"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
