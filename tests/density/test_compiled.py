"""Compiled models, parts of models and steps: the exact penalty unless told otherwise."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustcore import density

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, imported
BACKEND = "aot_eager"


class Network(nn.Module):
    """Piecewise linear but for its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(96, 4)

    def forward(self, x):
        return self.head(self.body(x))


def network():
    torch.manual_seed(0)
    return Network().double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (5,), generator=generator)


def in_place(model):
    model.compile(backend=BACKEND)
    return model


def a_part(model):
    model.body = torch.compile(model.body, backend=BACKEND)
    return model


def a_part_in_place(model):
    model.body.forward = torch.compile(model.body.forward, backend=BACKEND)
    return model


def behind_a_function(model):
    compiled = torch.compile(model, backend=BACKEND)
    return lambda x: compiled(x)


WAYS = {
    "compiled": lambda model: torch.compile(model, backend=BACKEND),
    "in place": in_place,
    "a part": a_part,
    "a part's forward": a_part_in_place,
    "behind a function": behind_a_function,
}


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_compiled_models_are_exact(way, given):
    (x, y), model = batch(), network()
    twin = copy.deepcopy(model)
    want = gradients(twin, density.input_gradient_penalty(twin, x, target=y))
    call = WAYS[way](model)
    x.requires_grad_()
    logits = call(x) if given else None
    got = gradients(model, density.input_gradient_penalty(call, x, target=y, logits=logits))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "penalty",
    [density.marginal_density_penalty, density.curvature_penalty, density.score_matching_penalty],
)
def test_finite_differences_of_compiled_models(way, penalty):
    # What is compiled may overwrite its buffers in a backward pass, and then serves no second.
    (x, y), model = batch(), network()
    if penalty is density.score_matching_penalty:
        model.eval()  # one call more: torch's compiled BatchNorms in training mode do not bear it
    twin = copy.deepcopy(model)
    call, x = WAYS[way](model), x.requires_grad_()
    for given in (False, True):
        results = []
        for m, base in ((call, model), (twin, twin)):
            torch.manual_seed(0)  # of score matching's noise
            logits = m(x)
            options = dict(logits=logits) if given else {}
            value = penalty(m, x, target=y, mode="finite_difference", **options)
            results.append(gradients(base, value + cross_entropy(logits, y)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("penalty", [density.marginal_density_penalty, density.curvature_penalty])
def test_a_compiled_step_is_exact(penalty):
    (x, y), model = batch(), network()

    def step(x, y):
        return cross_entropy(model(x), y) + penalty(model, x, target=y, p=1.0, reduction="sum")

    got = gradients(model, torch.compile(step, fullgraph=True, backend=BACKEND)(x, y))
    twin = network()
    want = gradients(twin, cross_entropy(twin(x), y))
    other = network()
    more = gradients(other, penalty(other, x, target=y, p=1.0, reduction="sum"))
    for a, b, c in zip(got, want, more, strict=True):
        torch.testing.assert_close(a, b + c)
    assert model.body[1].num_batches_tracked == 1


def test_what_a_compiled_step_cannot_do_is_said():
    x, _ = batch()
    model = network()

    def compiled(call, **options):
        step = lambda x: density.marginal_density_penalty(call, x, **options).sum()  # noqa: E731
        return torch.compile(step, fullgraph=True, backend=BACKEND)(x)

    with pytest.raises(Exception, match=r'mode: "auto" inside torch\.compile wants'):
        compiled(lambda x: model(x))
    with pytest.raises(Exception, match='reduction: got "none"; inside'):
        compiled(model, reduction="none")
    value = compiled(model, mode="finite_difference")
    torch.testing.assert_close(value, density.marginal_density_penalty(network(), x))


class Penalised(nn.Module):
    """Whose logits are scaled by a penalty of a part."""

    def __init__(self):
        super().__init__()
        self.part = network()
        self.penalty = density.PenaltyOp(density.marginal_density_penalty, self.part)

    def forward(self, x):
        return self.part(x) * (1 + self.penalty(x).detach())


def test_an_op_in_an_op_comes_to_an_end():
    x, _ = batch()
    model = Penalised().eval()
    value = density.PenaltyOp(density.marginal_density_penalty, model)(x)
    value.backward()
    part = network().eval()
    scale = 1 + density.marginal_density_penalty(part, x).detach()
    want = density.marginal_density_penalty(lambda x: part(x) * scale, x)
    torch.testing.assert_close(value.detach(), want.detach())
