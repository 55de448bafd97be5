"""What the penalties refuse, and in what words."""

import pytest
import torch

from density.test_penalties import every, mlp
from robustcore import density


def nan_model(x):
    logits = x.flatten(1) * 1
    logits[[1, 3]] = float("nan")
    return logits


X = torch.rand(5, 3, 2, 2)
LEAF = X.clone().requires_grad_()
BAD = [
    (dict(p=0.5), "p: got 0.5, want at least 1"),
    (dict(x=torch.rand(4)), r"x: got shape \[4\], want a batch"),
    (dict(x=X.numpy()), "x: got ndarray"),
    (dict(x=X.to(torch.int64)), "x: got torch.int64"),
    (dict(model=lambda x: x), r"model: gave shape \[5, 3, 2, 2\], want floating logits \[5, K\]"),
    (dict(model=lambda x: x.flatten(1)[:2]), r"model: gave shape \[2, 12\]"),
    (dict(model=lambda x: [x]), "model: gave list"),
    (dict(model=nan_model), r"logits: NaN in rows \[1, 3\]"),
    (dict(model=lambda x: torch.zeros(5, 3, requires_grad=True)), "logits: do not depend on x"),
    (dict(logits=torch.zeros(5, 3)), "x: has to require grad"),
    (
        dict(x=LEAF, logits=LEAF.flatten(1)[:2]),
        r"logits: got shape \[2, 12\], want floating logits",
    ),
    (dict(x=LEAF, logits=LEAF.sum((1, 2, 3))), r"logits: got shape \[5\], want floating logits"),
    (dict(reduction="max"), "reduction: got 'max', want one of mean, sum, none"),
    (dict(mode="forward"), "mode: got 'forward'"),
    (dict(step=0.0), "step: got 0.0"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
@every
def test_bad_input(penalty, change, message):
    arguments = {"model": mlp(torch.float32), "x": X, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        penalty(arguments.pop("model"), arguments.pop("x"), **arguments)


@every
def test_no_gradients_to_take(penalty):
    model, leaf = mlp(torch.float32), X.clone().requires_grad_()
    with pytest.raises(ValueError, match="logits: are detached"):
        penalty(model, leaf, logits=model(leaf).detach())
    with torch.inference_mode():
        inference = X + 1
        with pytest.raises(ValueError, match="x: made or used in inference mode"):
            penalty(model, X)
    with pytest.raises(ValueError, match="x: made or used in inference mode"):
        penalty(model, inference)


@every
def test_bad_target(penalty):
    with pytest.raises(TypeError, match=r"target: got torch\.float32, want an int64 tensor"):
        penalty(mlp(torch.float32), X, target=torch.zeros(5))
    with pytest.raises(ValueError, match=r"target: got shape \[4\], want \[5\]"):
        penalty(mlp(torch.float32), X, target=torch.zeros(4, dtype=torch.int64))


@every
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its forward mode
def test_transforms_that_cannot_work(penalty):
    model = mlp(torch.float32)
    state = {name: p.detach() for name, p in model.named_parameters()}

    def value(state):
        return penalty(lambda at: torch.func.functional_call(model, state, at), X)

    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(ValueError, match="x: used inside forward-mode differentiation"):
            transform(value)(state)
    op = density.PenaltyOp(penalty, model)
    with pytest.raises(ValueError, match="x: a PenaltyOp is of one batch"):
        torch.func.vmap(lambda row: op(row.unsqueeze(0)))(X)
