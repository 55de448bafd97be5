"""Certificates of whole models: each way in which one was once false; layers of other libraries."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from lipschitz.bounded import Thrice, check, jacobian_norm
from robustcore import lipschitz as lip


def test_a_sequence_of_one_layer_is_certified_as_it_runs():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 9.0], [9.0, 0.0]]))
        layer.bias.zero_()
    x = torch.tensor([[1.0, 0.5]])
    certificate = lip.certify(nn.Sequential(layer).eval(), x)
    assert certificate.prediction.tolist() == [1]  # not the raw input's
    assert certificate.radius.item() == pytest.approx(0.5 / math.sqrt(2))


def test_certify_counts_each_use_and_each_hook():
    x = torch.tensor([[1.0, 0.2, 0.0]])
    assert lip.certify(Thrice().eval(), x).radius.item() == pytest.approx(0.8 / math.sqrt(2))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).eval()
    plain = lip.certify(model, x)
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    assert lip.certify(model, x).bound == pytest.approx(3 * plain.bound)
    model[1].register_forward_hook(lambda module, inputs, output: output.sin())
    whole = lip.certify(model, x)  # the last layer is no head any more
    assert whole.bound == pytest.approx(
        3 * plain.bound * torch.linalg.matrix_norm(model[1].weight, 2).item()
    )


def test_certify_wants_one_precision_and_eval_mode_everywhere():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with pytest.raises(TypeError, match=r"x: got torch\.bfloat16, want float32 or float64"):
        lip.certify(model, torch.zeros(1, 2).bfloat16())
    model[1].train()
    with pytest.raises(ValueError, match="model: '1' is in training mode"):
        lip.certify(model, torch.zeros(1, 2))


@pytest.mark.parametrize("kind", [lip.SOC, lip.OrthogonalConv2d])
def test_a_write_through_data_leaves_no_false_bound(kind):
    torch.manual_seed(0)
    layer = kind(2, 2, 3).double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    lip.certify(nn.Sequential(layer, nn.Flatten()).eval(), x)
    layer.weight.data.mul_(50).add_(torch.randn_like(layer.weight))
    for fn in (layer, lambda x: layer(x).detach() + 0 * x):
        fn(x)
    assert jacobian_norm(layer, (2, 4, 4)) <= lip.lipschitz_bound(layer, x) * (1 + 1e-9)


def test_a_write_through_data_is_seen_in_plain_layers():
    layer = nn.Linear(3, 3).eval()
    before = lip.lipschitz_bound(layer)
    layer.weight.data.mul_(3)
    assert lip.lipschitz_bound(layer) == pytest.approx(3 * before)


PRECISION = """
import torch
from torch import nn
from robustcore import lipschitz as lip

backend = torch.backends{place}
backend.fp32_precision = {value!r}
value = backend.fp32_precision  # torch reads some of them back as another one's
torch.manual_seed(0)
model, x = nn.Linear(64, 4).eval(), torch.randn(8, 64)
with lip.exact_products():
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    wanted = model(x).argmax(1)
assert (lip.certify(model, x).prediction == wanted).all()
assert backend.fp32_precision == value
"""


@pytest.mark.parametrize(
    ("place", "value"),
    [("", "tf32"), (".cudnn", "ieee"), (".mkldnn", "bf16"), (".cuda.matmul", "tf32"),
     (".cudnn.conv", "ieee")],
)  # fmt: skip
def test_any_setting_of_precision_is_kept_and_not_used(place, value, tmp_path):
    """In a process of its own: torch.export leaves such settings where nothing undoes them."""
    program = PRECISION.format(place=place, value=value)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_a_jump_of_softplus_is_taken_off():
    model = nn.Sequential(nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 2)).double().eval()
    x = torch.randn(4, 2, dtype=torch.float64)
    certificate = lip.certify(model, x)
    logits = model(x)
    apart = (model[2].weight[0] - model[2].weight[1]).norm()
    margin = (logits[:, 0] - logits[:, 1]).abs() / apart
    jump = math.sqrt(4 * 64) * math.log1p(math.exp(-20))
    wanted = (margin - jump) / certificate.bound
    torch.testing.assert_close(certificate.radius, wanted.detach(), rtol=1e-10, atol=0)


# ---- The layers of others ------------------------------------------------------------------------


def test_layers_of_torchlip():
    tl = pytest.importorskip("deel.torchlip")
    net = nn.Sequential(
        tl.SpectralConv2d(2, 4, 3, padding=1), tl.GroupSort2(), tl.ScaledL2NormPool2d(2),
        tl.SpectralConv2d(4, 4, 3, padding=1), tl.GroupSort(4), tl.ScaledAvgPool2d(2),
        nn.Flatten(), tl.FrobeniusLinear(4, 3), tl.FullSort(),
    )  # fmt: skip
    assert 0.3 < check(net, (2, 4, 4)) < 4


def test_layers_of_orthogonium():
    pytest.importorskip("orthogonium")
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
    from orthogonium.layers.custom_activations import Abs, MaxMin
    from orthogonium.layers.linear.ortho_linear import OrthoLinear

    torch.manual_seed(0)
    net = nn.Sequential(
        AdaptiveOrthoConv2d(2, 4, 3, padding=1, padding_mode="circular"), MaxMin(),
        AdaptiveOrthoConv2d(4, 8, 2, stride=2, padding=0), Abs(), nn.Flatten(), OrthoLinear(32, 3),
    )  # fmt: skip
    net.eval()  # its filters are made in float32 alone
    x = torch.randn(1, 2, 4, 4)
    bound = lip.lipschitz_bound(net, x)  # each forward changes a parameter of its filters
    assert (lip.certify(net, x).radius > 0).all()
    jacobian = torch.autograd.functional.jacobian(net, x).reshape(3, -1)
    assert torch.linalg.matrix_norm(jacobian, 2) <= bound * (1 + 1e-5)
    assert bound == pytest.approx(1, abs=1e-3)
