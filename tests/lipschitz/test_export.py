"""Exported layers and nets: the same outputs and bound, in operations of torch alone."""

import io
import pickle

import pytest
import torch
from torch import nn

from robustcore import lipschitz as lip
from testing import assert_close

LAYERS = {
    "maxmin": (lambda: lip.MaxMin(), (4, 3, 3)),
    "householder": (lambda: lip.Householder(4), (4, 3, 3)),
    "householder of order 2": (lambda: lip.Householder(4, 2), (4, 3, 3)),
    "group sort": (lambda: lip.GroupSort(4), (8, 2)),
    "abs": (lambda: lip.Abs(), (3, 2)),
    "l2 pool": (lambda: lip.L2NormPool2d(2), (2, 4, 4)),
    "projection pool": (lambda: lip.ProjectionPool2d(4), (4, 3, 3)),
    "max pool of pairs": (lambda: lip.ProjectionPool2d(4, "max"), (4, 3, 3)),
    "unit rows": (lambda: lip.NormalizedLinear(8, 3), (2, 2, 2)),
    "crc head": (lambda: lip.CRCHead(8, 3, beta=2.0), (2, 2, 2)),
    "normalize": (lambda: lip.Normalize(torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 1), (3, 2, 2)),
    "soc": (lambda: lip.SOC(3, 5, 3, 2), (3, 4, 4)),
    "soc, 1 x 1": (lambda: lip.SOC(3, 3, 1), (3, 4, 4)),
    "convolution": (lambda: lip.OrthogonalConv2d(3, 4, 2), (3, 4, 4)),
    "transposed": (
        lambda: lip.OrthogonalConvTranspose2d(4, 3, 3, 2, padding_mode="zeros"),
        (4, 3, 3),
    ),
    "linear": (lambda: lip.OrthogonalLinear(4, 3), (4,)),
    "cayley": (lambda: lip.CayleyLinear(4, 3), (4,)),
    "aol": (lambda: lip.AOLConv2d(3, 4, 3, 2), (3, 4, 4)),
    "cayley convolution": (lambda: lip.CayleyConv2d(3, 4, 3, 2), (3, 8, 8)),
    "aol, linear": (lambda: lip.AOLLinear(4, 3), (4,)),
    "sll, linear": (lambda: lip.SLLLinear(4, 3), (4,)),
    "sll": (lambda: lip.SLLConv2d(3, 5), (3, 4, 4)),
    "centering": (lambda: lip.BatchCentering(3), (3, 4, 4)),
    "residual": (lambda: lip.Residual(nn.Sequential(lip.SOC(3, 3), lip.Abs()), 0.3), (3, 4, 4)),
}
NETS = {
    "soc": ({"version": "soc"}, 1),
    "improved": ({"version": "improved", "activation": "householder", "head": "normalized"}, 1),
    "crc": ({"activation": "householder2", "head": "crc", "mean": 0.5, "std": 0.25}, None),
}


def net(name):
    options, _ = NETS[name]
    made = lip.LipConvNet(2, 3, in_channels=2, init_channels=4, input_size=8, stages=2, **options)
    return made.eval()


def made(name):
    torch.manual_seed(0)
    if name in NETS:
        return net(name), torch.randn(4, 2, 8, 8)
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(4, *shape)
    layer(x)  # a CayleyConv2d is exported for the images that it has seen
    return layer, x


def is_of_torch(module):
    program = pickle.loads(pickle.dumps(module))
    return not any(isinstance(m, lip.LipschitzModule) for m in program.modules())


@pytest.mark.parametrize("name", [*LAYERS, *NETS])
def test_outputs_bounds_and_operations(name):
    model, x = made(name)
    exported = lip.export(model)
    assert_close(exported(x), model(x), torch.float32)
    assert is_of_torch(exported)
    assert not exported.training
    bound = lip.lipschitz_bound(model, x)
    assert 0.4 * bound < lip.lipschitz_bound(exported, x) <= bound * (1 + 1e-5)
    program = torch.export.export(exported, (x,))
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert all("aten" in name or "getitem" in name for name in names)
    assert_close(program.module()(x), model(x), torch.float32)


def test_every_layer_of_the_family_exports():
    kinds = {kind for kind in vars(lip).values() if isinstance(kind, type)}
    kinds = {k for k in kinds if issubclass(k, nn.Module) and hasattr(k, "lipschitz_bound")}
    for kind in kinds - {lip.LipschitzModule}:
        assert kind.export is not lip.LipschitzModule.export, kind


def all_at_once():
    return nn.Sequential(
        lip.Normalize(torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 1), lip.SOC(3, 4), lip.MaxMin(),
        lip.OrthogonalConv2d(4, 4, 3, 2), lip.Householder(4), lip.Householder(4, 2),
        lip.AOLConv2d(4, 4), lip.CayleyConv2d(4, 4), lip.GroupSort(4), lip.SLLConv2d(4),
        lip.BatchCentering(4),
        lip.Residual(nn.Sequential(lip.SOC(4, 4), lip.Abs()), 0.3), lip.ProjectionPool2d(4),
        lip.OrthogonalConvTranspose2d(2, 2, 3, 2), lip.L2NormPool2d(2),
        lip.ProjectionPool2d(2, "max"), nn.Flatten(), lip.OrthogonalLinear(16, 8),
        lip.CayleyLinear(8, 8), lip.AOLLinear(8, 8), lip.SLLLinear(8), lip.NormalizedLinear(8, 3),
    ).eval()  # fmt: skip


SINGLE = [*LAYERS, *NETS]
LAYERS["all at once"] = all_at_once, (3, 8, 8)


@pytest.mark.filterwarnings("ignore")  # torch's own converter has its share
@pytest.mark.parametrize(
    "name",
    ["all at once", *(pytest.param(n, marks=pytest.mark.slow) for n in SINGLE)],
)
def test_onnx(name):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = made(name)
    with torch.no_grad():
        program = torch.onnx.export(lip.export(model), (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(y), model(x).detach(), torch.float32)


def test_a_net_of_ones_own():
    torch.manual_seed(0)
    shared = lip.OrthogonalConv2d(4, 4, 3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), shared, lip.MaxMin(), shared, nn.BatchNorm2d(4), nn.Flatten(),
        lip.NormalizedLinear(64, 3),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    exported = lip.export(model)
    assert_close(exported(x), model(x), torch.float32)
    assert exported[1] is exported[3]
    assert exported[0] is not model[0]
    ours, theirs = lip.certify(model, x), lip.certify(exported, x)
    assert_close(theirs.radius, ours.radius, torch.float32)


def test_changed_buffers_have_no_bound():
    exported = lip.export(lip.SOC(3, 3).eval())
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    assert lip.lipschitz_bound(exported.double(), x) == 1
    exported.kernel.mul_(3)
    with pytest.raises(ValueError, match="not those that it was exported with"):
        lip.lipschitz_bound(exported, x)


class Doubled(lip.MaxMin):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_an_export_would_lose_is_refused():
    hooked = nn.Sequential(lip.SOC(3, 3))
    hooked[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match=r"model\.0: has hooks, which its export would lose"):
        lip.export(hooked)
    with pytest.raises(TypeError, match="model: Doubled replaces methods"):
        lip.export(Doubled())
