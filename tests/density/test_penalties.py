"""The penalties: published forms, modes, conventions, models of every kind, errors."""

import copy
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from robustcore import density
from testing import assert_same

PENALTIES = [
    density.marginal_density_penalty,
    density.input_gradient_penalty,
    functools.partial(density.input_gradient_penalty, of="logit"),
    density.score_matching_penalty,
    functools.partial(density.curvature_penalty, loss_reduction="sum"),
    functools.partial(density.attribution_penalty, steps=4),
]
NAMES = ["density", "input gradient", "logit gradient", "score", "curvature", "attribution"]
P = [1.0, 2.0, 3.0, float("inf")]
every = pytest.mark.parametrize("penalty", PENALTIES, ids=NAMES)


def mlp(dtype=torch.float64, activation=nn.Softplus, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), activation(), nn.Linear(16, 4)).to(dtype)


def conv(norm=nn.BatchNorm2d, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    ).to(dtype)


def batch(n=5, side=2, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(n, 3, side, side, dtype=dtype), torch.randint(4, (n,))


def run(penalty, model, x, **kwargs):
    """The penalty, and its gradient in all parameters as one vector."""
    torch.manual_seed(2)
    value = penalty(model, x, **kwargs)
    grads = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    return value.detach(), torch.cat([g.flatten() for g in grads])


def gradient(values, x):
    return torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def test_the_published_forms_are_one():
    model, (x, _) = mlp(), batch()
    x = x.requires_grad_()
    f = model(x)
    j = torch.arange(len(x)) % 4
    f_j, log_p_j = (t.gather(1, j[:, None]).squeeze(1) for t in (f, f.log_softmax(1)))
    plain = gradient(f.exp().sum(1).log(), x)
    stable = gradient(f_j, x) - gradient(log_p_j, x)
    efficient = gradient(f_j - log_p_j, x)
    ours = density.marginal_density_penalty(model, x, logits=f, reduction="none")
    for form in (plain, stable, efficient):
        torch.testing.assert_close(ours, form.flatten(1).norm(dim=1), rtol=1e-13, atol=1e-15)
    grads = [
        torch.autograd.grad(value.mean(), model[1].weight, retain_graph=True)[0]
        for value in (ours, plain.flatten(1).norm(dim=1))
    ]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


def test_the_relatives_are_as_published():
    model, (x, y) = mlp(), batch()
    leaf = x.clone().requires_grad_()
    loss = lambda at: cross_entropy(model(at), y, reduction="none")  # noqa: E731
    g = gradient(loss(leaf), leaf)
    rows = lambda t: t.flatten(1)  # noqa: E731
    got = density.input_gradient_penalty(model, x, target=y, reduction="none")
    torch.testing.assert_close(got, rows(g).norm(dim=1))
    logit = model(leaf).gather(1, y[:, None]).squeeze(1)
    got = density.input_gradient_penalty(model, x, target=y, reduction="none", of="logit", p=1)
    torch.testing.assert_close(got, rows(gradient(logit, leaf)).norm(p=1, dim=1))
    sign = g.sign()
    z = 3 * sign / rows(sign).norm(dim=1).view(-1, 1, 1, 1)
    moved = (x + z).requires_grad_()
    change = rows(gradient(loss(moved), moved) - g).norm(dim=1)
    for loss_reduction, factor in (("sum", 1), ("mean", 1 / len(x))):  # of the loss, not the norms
        got = density.curvature_penalty(
            model, x, target=y, reduction="none", loss_reduction=loss_reduction
        )
        torch.testing.assert_close(got, change * factor)
    mean = lambda at: gradient(cross_entropy(model(at), y), at)  # noqa: E731
    got = density.curvature_penalty(model, x, target=y, reduction="none")
    torch.testing.assert_close(got, rows(mean(moved) - mean(leaf)).norm(dim=1))
    path = [(x * k / 50).requires_grad_() for k in range(1, 51)]
    ig = x * sum(gradient(loss(at), at) for at in path) / 50
    got = density.attribution_penalty(model, x, target=y, p=1, reduction="none")
    torch.testing.assert_close(got, rows(ig).norm(p=1, dim=1))
    torch.manual_seed(3)
    v = 0.01 * torch.randn_like(x)
    trace = 2 / 0.01**2 * (model(x + v).gather(1, y[:, None]).squeeze(1) - logit)
    torch.manual_seed(3)
    got = density.score_matching_penalty(model, x, target=y, reduction="none")
    norm = rows(gradient(logit, leaf)).square().sum(1)
    torch.testing.assert_close(got, trace + norm / 2 + 1e-3 * trace**2)


@every
@pytest.mark.parametrize("p", P)
def test_gradcheck(penalty, p):
    model, (x, y) = mlp(), batch(2)
    weight = model[1].weight.detach().clone().requires_grad_()

    def fn(weight):
        torch.manual_seed(0)
        call = lambda at: torch.func.functional_call(model, {"1.weight": weight}, at)  # noqa: E731
        return penalty(call, x, p=p, target=y)

    assert torch.autograd.gradcheck(fn, (weight,), fast_mode=True)


@every
@pytest.mark.parametrize("p", P)
def test_finite_differences_of_a_smooth_model(penalty, p):
    # The value is exact; the derivative's error falls with the square of the step.
    model, (x, y) = mlp(), batch()
    value, exact = run(penalty, model, x, p=p, target=y, mode="double_backward")
    errors = []
    for step in (1e-1, 1e-2):
        near, grads = run(penalty, model, x, p=p, target=y, mode="finite_difference", step=step)
        torch.testing.assert_close(near, value)
        errors.append((grads - exact).norm() / exact.norm())
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] / 50


@every
def test_finite_differences_in_float32(penalty):
    model, (x, y) = mlp(torch.float32), batch(dtype=torch.float32)
    _, exact = run(penalty, model, x, target=y, mode="double_backward")
    _, grads = run(penalty, model, x, target=y, mode="finite_difference")
    assert (grads - exact).norm() < 2e-3 * exact.norm()


@every
def test_logits_that_are_there_are_used(penalty):
    model, (x, y) = mlp(), batch()
    expected = run(penalty, model, x, target=y)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    x.requires_grad_()
    logits = model(x)
    got = run(penalty, model, x, target=y, logits=logits)
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)
    extra = {density.marginal_density_penalty: 0, density.input_gradient_penalty: 0}
    assert len(calls) - 1 == extra.get(penalty, len(calls) - 1)


@every
@pytest.mark.parametrize("mode", ["double_backward", "finite_difference"])
def test_reductions_accumulation_and_no_grad(penalty, mode):
    model, (x, y) = mlp(), batch(6)
    torch.manual_seed(0)
    each = penalty(model, x, target=y, reduction="none", mode=mode)
    assert each.shape == (6,)
    assert each.dtype == torch.float64
    if "score" not in str(penalty):  # which draws noise
        mean, whole = run(penalty, model, x, target=y, mode=mode)
        torch.testing.assert_close(mean, each.mean())
        total = penalty(model, x, target=y, reduction="sum", mode=mode)
        torch.testing.assert_close(total, each.sum())
        parts = [run(penalty, model, x[i : i + 3], target=y[i : i + 3], mode=mode) for i in (0, 3)]
        torch.testing.assert_close((parts[0][1] + parts[1][1]) / 2, whole)
        with torch.no_grad():
            value = penalty(model, x, target=y, mode=mode)
        assert not value.requires_grad
        torch.testing.assert_close(value, mean)


def test_the_default_target_is_the_models_answer():
    model, (x, _) = mlp(), batch()
    assert_same(
        density.input_gradient_penalty(model, x),
        density.input_gradient_penalty(model, x, target=model(x).argmax(1)),
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)], ids=["half", "bfloat"]
)
def test_logits_of_ten_thousand_in_low_precision(dtype, tolerance):
    model, (x, _) = mlp(torch.float32, nn.Tanh), batch(dtype=torch.float32)
    with torch.no_grad():
        model[3].bias.zero_()
        model[3].weight.mul_(1e4 / model(x).abs().max())
    low, x = model.to(dtype), x.to(dtype)
    assert 9e3 < low(x).abs().max() < 1.1e4
    value, grads = run(density.marginal_density_penalty, low, x)
    exact, wanted = run(density.marginal_density_penalty, copy.deepcopy(low).double(), x.double())
    assert value.dtype == torch.float32
    assert abs(value - exact) < tolerance * exact
    assert (grads - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["double_backward", "finite_difference"])
def test_one_hot_saturation(dtype, mode):
    # One class is certain, to the bit: the log density is that class's logit.
    model, (x, _) = mlp(dtype, nn.Tanh), batch(dtype=dtype)
    with torch.no_grad():
        model[3].bias[2] += 1e4
    assert set(model(x).softmax(1).flatten().tolist()) == {0.0, 1.0}
    target = torch.full((len(x),), 2)
    got = run(density.marginal_density_penalty, model, x, mode=mode)
    logit = functools.partial(density.input_gradient_penalty, of="logit", target=target)
    want = run(logit, model, x, mode="double_backward")
    tolerance = 1e-5 if mode == "double_backward" else 0.05  # differences of 1e4 in float32
    if dtype == torch.float64 and mode == "finite_difference":
        tolerance = 1e-3
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
    # The gradient of the loss at that class is 0, and so is every derivative of its norm.
    loss = functools.partial(density.input_gradient_penalty, target=target)
    value, grads = run(loss, model, x, mode=mode)
    assert value == 0
    assert (grads == 0).all()


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("mode", ["double_backward", "finite_difference"])
def test_zero_gradients(p, mode):
    # Of some samples: dead ReLUs. Of those the norm is 0, and adds nothing to any derivative.
    model, (x, _) = mlp(activation=nn.ReLU), batch()
    with torch.no_grad():
        model[1].bias.fill_(-0.1)
        x[[0, 3]] = 0
    each = density.marginal_density_penalty(model, x, p=p, mode=mode, reduction="none")
    assert (each == 0).tolist() == [True, False, False, True, False]
    value, grads = run(density.marginal_density_penalty, model, x, p=p, mode=mode, reduction="sum")
    rest, wanted = run(
        density.marginal_density_penalty, model, x[[1, 2, 4]], p=p, mode=mode, reduction="sum"
    )
    torch.testing.assert_close(value, rest)
    torch.testing.assert_close(grads, wanted)


def test_a_flat_model_is_no_trouble():
    model = mlp()
    nn.init.zeros_(model[3].weight)
    for penalty in PENALTIES:
        for mode in ("double_backward", "finite_difference"):
            for p in P:
                value, grads = run(penalty, model, batch()[0], mode=mode, p=p)
                assert value == 0
                assert grads.isfinite().all()


def test_large_logits():
    # The plain form overflows at logits of 90.
    model, (x, _) = mlp(torch.float32, nn.Tanh), batch(dtype=torch.float32)
    for scale in (100.0, 1e4):
        scaled, wide = copy.deepcopy(model), copy.deepcopy(model).double()
        for m in (scaled, wide):
            with torch.no_grad():
                m[3].weight.mul_(scale)
        value, grads = run(density.marginal_density_penalty, scaled, x)
        exact, wanted = run(density.marginal_density_penalty, wide, x.double())
        assert abs(value - exact) < 1e-3 * exact
        assert (grads - wanted).norm() < 5e-3 * wanted.norm()


@pytest.mark.parametrize("mode", ["double_backward", "finite_difference"])
def test_autocast(mode):
    model, (x, _) = conv(nn.Identity), batch(side=4, dtype=torch.float32)
    exact, wanted = run(density.marginal_density_penalty, model, x, mode=mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # A longer step: the score has three digits only.
        value, grads = run(density.marginal_density_penalty, model, x, mode=mode, step=1.0)
    assert value.dtype == torch.float32
    assert abs(value - exact) < 0.05 * exact
    assert torch.nn.functional.cosine_similarity(grads, wanted, dim=0) > 0.9


def test_batch_norm_in_training_and_evaluation():
    model, (x, _) = conv(dtype=torch.float64), batch(side=4)
    x.requires_grad_()
    logits = model(x)
    g = gradient(logits.logsumexp(1), x)  # through the batch's own statistics
    got = density.marginal_density_penalty(model, x, logits=logits, reduction="none")
    torch.testing.assert_close(got, g.flatten(1).norm(dim=1))
    model.eval()
    got = density.marginal_density_penalty(model, x, reduction="none")
    alone = [density.marginal_density_penalty(model, row) for row in x.split(1)]
    torch.testing.assert_close(got, torch.stack(alone))


def test_finite_differences_through_checkpointing():
    model, (x, _) = mlp(), batch()
    for reentrant in (True, False):
        wrapped = lambda at, r=reentrant: checkpoint(model, at, use_reentrant=r)  # noqa: E731
        values = []
        for m in (model, wrapped):
            model.zero_grad()
            leaf = x.clone().requires_grad_()
            kwargs = dict(mode="finite_difference")
            if m is wrapped and reentrant:
                # This kind gives no gradient by torch.autograd.grad at all.
                continue
            density.marginal_density_penalty(m, leaf, **kwargs).backward()
            values.append(model[1].weight.grad.clone())
        for other in values[1:]:
            torch.testing.assert_close(other, values[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_and_compiled_model():
    # With a BatchNorm in training mode, whose buffers the step writes.
    for model, (x, y) in (
        (mlp(torch.float32), batch(dtype=torch.float32)),
        (conv(), batch(side=4, dtype=torch.float32)),
    ):

        def step(x, y, model=model):
            return cross_entropy(model(x), y) + density.marginal_density_penalty(model, x)

        grads = []
        for fn in (torch.compile(step, fullgraph=True), step):
            model.zero_grad()
            fn(x, y).backward()
            grads.append(model[-1].weight.grad.clone())
        assert (grads[0] - grads[1]).norm() < 2e-3 * grads[1].norm()
    model, (x, y) = conv(), batch(side=4, dtype=torch.float32)
    grads = []
    for m in (torch.compile(model), model):
        model.zero_grad()
        density.marginal_density_penalty(m, x, mode="finite_difference").backward()
        grads.append(model[0].weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-4)
    density.marginal_density_penalty(torch.compile(model), x).backward()  # auto: no double backward


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    worker = Path(__file__).parent / "ddp_worker.py"
    workers = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(tmp_path / "store"), tmp_path / "out"]
        )
        for rank in range(2)
    ]
    try:
        assert [w.wait(timeout=120) for w in workers] == [0, 0]
    finally:
        for w in workers:
            w.kill()
    alone, shared = torch.load(tmp_path / "out")
    for got, want in zip(shared, alone, strict=True):
        torch.testing.assert_close(got, want)
