"""density.PenaltyOp: a whole penalty as one op, inside torch.compile and outside."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustcore import density

PENALTIES = [
    density.marginal_density_penalty,
    density.input_gradient_penalty,
    density.score_matching_penalty,
    density.curvature_penalty,
    density.attribution_penalty,
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 8, 3, 2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5),
    ).double()  # fmt: skip


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (4,), generator=generator)


def expected(penalty, x, y, **options):
    model = network()
    torch.manual_seed(3)  # score matching draws noise
    value = penalty(copy.deepcopy(model), x, target=y, **options)
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    penalty(twin, x, target=y, **options).backward()
    return value.detach(), [p.grad for p in twin.parameters()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_same_as_the_function(penalty, reduction):
    (x, y), model = batch(), network()
    op = density.PenaltyOp(penalty, model, reduction=reduction)
    torch.manual_seed(3)
    value = op(x, y)
    (2 * value).backward()
    want, gradients = expected(penalty, x, y, reduction=reduction)
    torch.testing.assert_close(value.detach(), want)
    for p, want in zip(model.parameters(), gradients, strict=True):
        want = torch.zeros_like(p) if want is None else 2 * want
        torch.testing.assert_close(p.grad, want)
    for name, buffer in model.named_buffers():  # untouched
        torch.testing.assert_close(buffer, network().get_buffer(name))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, importing its compiler
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_training_step(backend):
    (x, y), model = batch(), network()
    penalty = density.PenaltyOp(density.marginal_density_penalty, model, p=1.0)

    def step(x, y):
        return cross_entropy(model(x), y) + 0.1 * penalty(x)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    compiled(x, y).backward()
    got = [p.grad.clone() for p in model.parameters()]
    assert model[1].num_batches_tracked == 1
    model = network()
    (cross_entropy(model(x), y)).backward()
    _, gradients = expected(density.marginal_density_penalty, x, y, p=1.0)
    for a, p, b in zip(got, model.parameters(), gradients, strict=True):
        torch.testing.assert_close(a, p.grad if b is None else p.grad + 0.1 * b)


def test_a_compiled_model():
    (x, _), model = batch(), network()
    compiled = torch.compile(model, backend="aot_eager")
    penalty = density.PenaltyOp(density.marginal_density_penalty, compiled)
    torch.testing.assert_close(
        penalty(x).detach(), density.marginal_density_penalty(network(), x).detach()
    )


def test_frozen_parameters_and_no_gradients():
    (x, _), model = batch(), network()
    penalty = density.PenaltyOp(density.marginal_density_penalty, model)
    with torch.no_grad():
        value = penalty(x)
    assert not value.requires_grad
    model[0].requires_grad_(False)
    penalty(x).backward()
    assert model[0].weight.grad is None
    twin = network()
    density.marginal_density_penalty(twin, x).backward()
    torch.testing.assert_close(model[3].weight.grad, twin[3].weight.grad)
    model.requires_grad_(False)
    assert not penalty(x).requires_grad
    torch.testing.assert_close(penalty(x), value)


def test_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6, dtype=torch.float64)
            self.b = nn.Linear(6, 6, dtype=torch.float64)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model, x = Tied(), torch.rand(3, 6, dtype=torch.float64)
    twin = copy.deepcopy(model)
    density.PenaltyOp(density.marginal_density_penalty, model)(x).backward()
    density.marginal_density_penalty(twin, x).backward()
    torch.testing.assert_close(model.a.weight.grad, twin.a.weight.grad)


def test_a_copy_has_a_model_of_its_own():
    (x, _), model = batch(), network()
    penalty = density.PenaltyOp(density.marginal_density_penalty, model)
    twin = copy.deepcopy(penalty)
    del penalty
    gc.collect()
    twin(x).backward()
    assert model[0].weight.grad is None
    assert twin.model[0].weight.grad is not None


def test_opcheck():
    (x, y), model = batch(), network()
    op = density.PenaltyOp(density.marginal_density_penalty, model)
    parameters = list(model.parameters())
    for wanted in (True, False):
        torch.library.opcheck(
            torch.ops.robustcore.penalty.default,
            (x, y, [p.detach() for p in parameters], wanted, op._number),
        )


def test_errors():
    (x, y), model = batch(), network()
    penalty = density.marginal_density_penalty
    with pytest.raises(TypeError, match="penalty: got str"):
        density.PenaltyOp("density", model)
    with pytest.raises(TypeError, match=r"model: got function, want a torch\.nn\.Module"):
        density.PenaltyOp(penalty, lambda x: x)
    with pytest.raises(ValueError, match="reduction: got 'none'"):
        density.PenaltyOp(penalty, model, reduction="none")
    with pytest.raises(ValueError, match="mode: the op sets it"):
        density.PenaltyOp(penalty, model, mode="auto")
    op = density.PenaltyOp(penalty, model)
    with pytest.raises(ValueError, match=r"x: got shape \[8\]"):
        op(x[0, 0, 0])
    with pytest.raises(ValueError, match="p: got 0"):
        density.PenaltyOp(penalty, model, p=0.5 - 0.5)(x)
    with pytest.raises(ValueError, match="NaN in rows"):
        op(x * float("nan"))
    number = op._number
    del op
    gc.collect()
    with pytest.raises(RuntimeError, match="is gone"):
        torch.ops.robustcore.penalty(x, y, list(model.parameters()), True, number)
