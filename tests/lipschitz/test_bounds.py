"""Bounds of whole models from their graph, against dense Jacobians in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from robustcore import lipschitz as lip


def jacobian_norm(fn, shape, seed=0, points=4):
    """The largest norm of the Jacobian at a few random points."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(points, *shape, generator=generator, dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(fn, one[None]).reshape(-1, one.numel()) for one in x
    ]
    return float(torch.linalg.svdvals(torch.stack(jacobians)).max())


def check(model, shape, tight=None, example=True):
    """The bound, once it is found to be above the truth, and within ``tight`` of it."""
    model = model.double().eval()
    zeros = torch.zeros(1, *shape, dtype=torch.float64) if example else None
    bound = lip.lipschitz_bound(model, zeros)
    true = jacobian_norm(model, shape)
    assert true <= bound * (1 + 1e-12)
    if tight is not None:
        assert bound <= tight * true
    return bound


# ---- What runs, not what the modules are called -------------------------------------------------


class Thrice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.layer.weight)
        self.layer.weight.data.mul_(3)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x)))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Padded(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return 5 * super()._conv_forward(x, weight, bias)


class DoubledMaxMin(lip.MaxMin):
    def forward(self, x):
        return 2 * super().forward(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([x + self.layer(x).relu(), x.flip(1)], dim=1)


def repeated():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)


def instance_forward():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    plain = model[0].forward
    model[0].forward = lambda x: 7 * plain(x)
    return model


def leaf_with_instance_forward():
    model = nn.Sequential(lip.NormalizedLinear(3, 4))
    plain = model[0].forward
    model[0].forward = lambda x: 7 * plain(x)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(3, 3), lip.NormalizedLinear(3, 4))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[1].register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    return model


def parametrized():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    return model


def inner_hook():
    model = nn.Sequential(lip.CRCHead(3, 4))
    model[0].linear1.register_forward_hook(lambda module, inputs, output: 9 * output)
    return model


WHAT_RUNS = {
    "sequential of one": (lambda: nn.Sequential(nn.Linear(3, 4)), (3,)),
    "used three times": (Thrice, (3,)),
    "three times in a sequence": (repeated, (3,)),
    "forward of a subclass": (lambda: nn.Sequential(Doubled(3, 4)), (3,)),
    "inner forward of a subclass": (lambda: Padded(2, 3, 3), (2, 5, 5)),
    "subclass of a layer that states its bound": (lambda: DoubledMaxMin(), (4, 3)),
    "forward of an instance": (instance_forward, (3,)),
    "forward of such a layer's instance": (leaf_with_instance_forward, (3,)),
    "hooks": (hooked, (3,)),
    "hooks inside a layer that states its bound": (inner_hook, (3,)),
    "parametrizations": (parametrized, (3,)),
    "residual sum and concatenation": (Residual, (2, 4, 4)),
}


@pytest.mark.parametrize("name", WHAT_RUNS)
def test_what_runs_is_bounded(name):
    torch.manual_seed(0)
    make, shape = WHAT_RUNS[name]
    check(make(), shape)


def test_three_uses_count_three_times():
    assert check(Thrice(), (3,)) == pytest.approx(27)


def test_global_hooks_count():
    model = nn.Sequential(nn.Linear(3, 3), lip.CRCHead(3, 2))
    plain = check(model, (3,))
    handle = torch_module.register_module_forward_hook(
        lambda module, inputs, output: 2 * output if isinstance(module, nn.Linear) else None
    )
    try:
        assert check(model, (3,)) == pytest.approx(8 * plain)
    finally:
        handle.remove()


def test_a_stated_bound_counts():
    class Mine(nn.Module):
        def forward(self, x):
            return x**3 if bool(x.sum() > 1e9) else 0.5 * x  # cannot be traced

        def lipschitz_bound(self):
            return 0.5

    assert lip.lipschitz_bound(nn.Sequential(Mine(), nn.Linear(2, 2), Mine()).eval()) < 1
    model = nn.Sequential(Mine()).eval()
    model[0].lipschitz_bound = lambda: math.inf
    with pytest.raises(TypeError, match=r"model\.0: its lipschitz_bound\(\) is inf"):
        lip.lipschitz_bound(model, torch.zeros(1, 2))


def test_pieces_of_one_result_count_once():
    class Pairs(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, dim=1)
            return torch.cat([torch.maximum(a, b), torch.minimum(b, a).relu()], dim=1)

    assert check(Pairs(), (4, 3), tight=1 + 1e-9) == 1

    class Overlapping(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :3], x[:, 1:]], dim=1)

    assert check(Overlapping(), (4,)) == pytest.approx(math.sqrt(2))


# ---- Each operation ------------------------------------------------------------------------------


def conv(*args, **kwargs):
    return nn.Conv2d(*args, **kwargs)


# Layers, the shape of an input, and how far above the truth their bound may be.
LINEAR = {
    "linear": (lambda: nn.Linear(5, 7), (5,), 1 + 1e-9),
    "convolution": (lambda: conv(2, 3, 3, padding=1), (2, 9, 9), 1.3),
    "strided and dilated": (lambda: conv(2, 3, 3, 2, 2, dilation=2), (2, 9, 9), 1.5),
    "patches": (lambda: conv(2, 3, 4, 4), (2, 8, 8), 1 + 1e-6),
    "grouped": (lambda: conv(2, 4, 3, groups=2, padding=1), (2, 8, 8), 1.3),
    "even filter": (lambda: conv(2, 3, 2), (2, 8, 8), 1.3),
    "same": (lambda: conv(2, 3, 5, padding="same"), (2, 8, 8), 1.3),
    "circular": (lambda: conv(2, 2, 3, padding=1, padding_mode="circular"), (2, 5, 5), 1.3),
    "circular, wider": (lambda: conv(1, 1, 3, padding=2, padding_mode="circular"), (1, 4, 4), 1.6),
    "circular, strided": (
        lambda: conv(2, 2, 3, 2, padding=1, padding_mode="circular"), (2, 5, 5), 2.0
    ),
    "circular, aligned": (
        lambda: conv(2, 2, 3, 2, padding=1, padding_mode="circular"), (2, 6, 6), 1.3
    ),
    "reflected": (lambda: conv(2, 2, 3, padding=1, padding_mode="reflect"), (2, 5, 5), 2.5),
    "replicated": (lambda: conv(2, 2, 3, padding=2, padding_mode="replicate"), (2, 5, 5), 4.0),
    "1-d": (lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1), (2, 9), 1.3),
    "3-d": (lambda: nn.Conv3d(1, 2, 2, padding=1), (1, 4, 4, 4), 1.3),
    "transposed": (
        lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, output_padding=1, groups=2), (2, 6, 6), 1.3
    ),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(2, 2, 5, 3, dilation=2), (2, 9), 1.3),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(2, 1, 2, 2), (2, 3, 3, 3), 1.3),
    "batch norm": (lambda: nn.BatchNorm2d(2), (2, 3, 3), 1 + 1e-9),
    "average pool": (lambda: nn.AvgPool2d(2), (2, 4, 4), 1 + 1e-9),
    "sparse pool": (lambda: nn.AvgPool2d(2, stride=3), (2, 7, 7), 1 + 1e-9),
    "overlapping pool": (lambda: nn.AvgPool2d(3, 2, padding=1), (1, 7, 7), 1 + 1e-6),
    "pool 1-d": (lambda: nn.AvgPool1d(3, 1, ceil_mode=True), (2, 8), 1.01),
    "pool 3-d": (lambda: nn.AvgPool3d(2), (1, 4, 4, 4), 1 + 1e-9),
    "ceil_mode": (lambda: nn.AvgPool2d(2, ceil_mode=True), (1, 5, 5), 1 + 1e-9),
    "padding not counted": (
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 6, 6), 1 + 1e-6
    ),
    "divisor": (lambda: nn.AvgPool2d(3, 2, 1, divisor_override=2), (1, 6, 6), 1 + 1e-6),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (1, 7, 5), 1 + 1e-6),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (1, 3, 3), 1 + 1e-6),
    "nearest, uneven": (lambda: nn.Upsample(size=(5, 4)), (1, 3, 3), 1 + 1e-6),
    "bilinear": (lambda: nn.Upsample(scale_factor=3, mode="bilinear"), (1, 4, 4), 1.01),
    "reflection": (lambda: nn.ReflectionPad2d((1, 2, 0, 1)), (1, 4, 4), 1 + 1e-6),
    "replication": (lambda: nn.ReplicationPad2d((1, 2, 0, 3)), (1, 4, 4), 1 + 1e-6),
    "circular pad": (lambda: nn.CircularPad2d(2), (1, 4, 4), 1 + 1e-6),
    "constant pad": (lambda: nn.ConstantPad2d(2, 7.0), (1, 4, 4), 1 + 1e-6),
    "cropped": (lambda: nn.ZeroPad2d(-1), (1, 4, 4), 1 + 1e-6),
    "unfold": (lambda: nn.Unfold(3, stride=2, padding=1), (1, 7, 7), 1 + 1e-9),
    "fold": (lambda: nn.Fold((5, 5), 3, stride=2), (9, 4), 1 + 1e-9),
    "shuffles": (
        lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.PixelShuffle(2)),
        (2, 4, 4), 1,
    ),
    "stack": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), lip.SOC(4, 4), nn.Dropout(), nn.Identity()),
        (2, 6, 6), 1.6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations(name):
    torch.manual_seed(0)
    make, shape, tight = LINEAR[name]
    layer = make()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.running_var.uniform_(0.1, 2)
    check(layer, shape, tight)


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(1.7), nn.LeakyReLU(-2.0), nn.ELU(2.5), nn.CELU(3.0),
    nn.SELU(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softplus(3.0), nn.Hardtanh(),
    nn.ReLU6(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(),
    nn.Softshrink(), nn.Tanhshrink(), nn.Softsign(), nn.PReLU(2, 1.5), nn.RReLU(1.0, 3.0),
    nn.Threshold(0.3, 0.3), nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 2, dilation=2),
    nn.AdaptiveMaxPool2d(4), nn.LPPool2d(2, 2), nn.LPPool2d(2, 3, 2, ceil_mode=True),
    nn.LPPool2d(1, 2), nn.LPPool2d(4, 2), lip.MaxMin(), lip.Householder(2),
    lip.ProjectionPool2d(2), nn.Softmax(1), nn.LogSoftmax(2),
]  # fmt: skip


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_activations(layer):
    layer = layer.double().eval()
    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(60, 2, 6, 6, dtype=torch.float64, generator=generator)
    jacobians = [
        torch.autograd.functional.jacobian(layer, one[None].clone()).reshape(-1, one.numel())
        for one in x
    ]
    steepest = float(torch.linalg.svdvals(torch.stack(jacobians)).max())
    bound = lip.lipschitz_bound(layer, x)
    assert steepest <= bound * (1 + 1e-12)
    assert bound <= steepest / (0.4 if isinstance(layer, nn.LogSoftmax) else 0.8)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "mish"])
def test_slopes_are_above_and_near_the_largest(name):
    """On a fine grid; between its points the slope is at most h^2 times its curvature higher."""
    from robustcore.lipschitz.rules import pointwise

    function = {
        "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "mish": nn.Mish()
    }[name]  # fmt: skip
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    largest = float(slope.abs().max())
    constant = getattr(pointwise, name.upper())
    assert largest + 2e-11 < constant < largest + 2e-9


class Functional(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


MATRIX = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.5, 1.0]], dtype=torch.float64)
OPERATIONS = {
    "scale": lambda x: x * torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64),
    "divide": lambda x: x / torch.tensor([0.5, -3.0, 2.0], dtype=torch.float64),
    "reverse": lambda x: 1 - x,
    "weighted sum": lambda x: torch.add(x, x.relu(), alpha=-2.5),
    "broadcast": lambda x: x + x.mean(1, keepdim=True),
    "matmul": lambda x: x @ MATRIX.T,
    "matmul from the left": lambda x: (MATRIX @ x[:, :, None])[:, :, 0],
    "expand": lambda x: x[:, None].expand(-1, 4, -1).flatten(1),
    "repeat": lambda x: x.repeat(1, 3),
    "index": lambda x: x[:, torch.tensor([0, 0, 2, 0, -1])],
    "sum": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.mean(1, keepdim=True),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "square root of squares": lambda x: (x.square().sum(1, keepdim=True) + 0.1).sqrt(),
    "sort": lambda x: x.sort(dim=1).values,
    "largest": lambda x: x.amax(1, keepdim=True) + x.amin(1, keepdim=True),
    "extremes": lambda x: torch.cat([x.max(1, True).values, x.min(1, True).values], 1),
    "clamp": lambda x: x.clamp(-1, 0.5),
    "silu by hand": lambda x: x * torch.sigmoid(x),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "where": lambda x: torch.where(torch.tensor([True, False, True]), 2 * x, x.abs()),
    "stack": lambda x: torch.stack([x, 2 * x, torch.sin(x)], 1).flatten(1),
    "in place": lambda x: (2 * x).neg_().add_(x).mul_(-1.5),
    "slices": lambda x: torch.cat([x[:, :1], x[:, 1:]], 1),
    "erf": lambda x: torch.erf(x),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_functions(name):
    check(Functional(OPERATIONS[name]), (3,))


# ---- What cannot be bounded ----------------------------------------------------------------------

REFUSED = [
    (nn.Sequential(nn.ReLU(), nn.Sequential(nn.LayerNorm(4))), r"model\.1\.0: nothing bounds "
     r"layer_norm in LayerNorm: divides by the spread of its input, so its slope is as large as"),
    (nn.GLU(1), "multiplies two results"),
    (nn.Hardshrink(), "jumps by lambd"),
    (nn.Threshold(0.0, 1.0), "jumps by 1"),
    (nn.Softplus(threshold=5.0), "jumps at its threshold 5"),
    (nn.CELU(-1.0), "no bound with an alpha below 0"),
    (nn.LPPool1d(3, 2), r"x\^3 has no bound"),
    (nn.Upsample(scale_factor=2, mode="linear", align_corners=None), None),
    (Functional(lambda x: x * x.flip(1)), "multiplies two results"),
    (Functional(lambda x: x.round()), "nothing bounds round"),
    (Functional(lambda x: x.sign()), "not finite"),
    (Functional(lambda x: x.square()), "is a power"),
    (Functional(lambda x: torch.where(x > 0, x, -1.0)), "jumps"),
    (Functional(lambda x: x + torch.rand_like(x)), "nothing bounds rand_like"),
    (Functional(lambda x: x * torch.rand(4)), "draws at random"),
    (Functional(lambda x: x.half().float()), "rounds to torch.float16"),
    (Functional(lambda x: x.argmax(1, keepdim=True) + x), "jumps"),
    (Functional(lambda x: x - x.sum(0)), "mixes the images of a batch"),
    (Functional(lambda x: x * x.shape[0]), "depends on"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_nothing_bounds_is_refused(model, message):
    x = torch.zeros(2, 4, 4)
    if message is None:
        assert lip.lipschitz_bound(model.eval(), x) > 0
        return
    with pytest.raises(TypeError, match=message):
        lip.lipschitz_bound(model.eval(), x)


def test_another_librarys_operation_is_refused_whatever_its_name():
    @torch.library.custom_op("robustcore_test::relu", mutates_args=())
    def relu(x: torch.Tensor) -> torch.Tensor:
        return 100 * x

    relu.register_fake(lambda x: torch.empty_like(x))
    with pytest.raises(TypeError, match="no rule"):
        lip.lipschitz_bound(Functional(relu), torch.zeros(1, 3))


class Writes(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("count", torch.ones(4))

    def forward(self, x):
        if self.kind == "buffer":
            self.count.mul_(2)
            return x * self.count
        y = x.clone()
        y[:, 0].mul_(1000.0)
        return y


@pytest.mark.parametrize("kind", ["buffer", "part"])
def test_writes_that_a_graph_hides_are_refused(kind):
    with pytest.raises(TypeError, match="in place"):
        lip.lipschitz_bound(Writes(kind).eval(), torch.zeros(1, 4))


def test_modes():
    for model in (nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), lip.SOC(2, 2))):
        with pytest.raises(ValueError, match="in training mode, want"):
            lip.lipschitz_bound(model, torch.zeros(1, 2, 3, 3))
    with pytest.raises(TypeError, match="draws at random in training mode"):
        lip.lipschitz_bound(nn.Dropout(), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="draws its slope"):
        lip.lipschitz_bound(nn.RReLU(), torch.zeros(1, 2))


# ---- Examples ------------------------------------------------------------------------------------


def test_an_example_is_made_up():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 5)
    ).eval()  # of 16 x 16 alone
    made_up = lip.lipschitz_bound(net)
    assert made_up == pytest.approx(lip.lipschitz_bound(net, torch.zeros(1, 3, 16, 16)))
    assert lip.lipschitz_bound(nn.Linear(7, 2).eval()) > 0
    assert lip.lipschitz_bound(nn.Conv1d(2, 3, 3).eval()) > 0
    assert lip.lipschitz_bound(nn.ReLU()) == 1
    with pytest.raises(ValueError, match="example: want one, none was found that Untaken takes"):
        lip.lipschitz_bound(Untaken())
    with pytest.raises(TypeError, match="depends on the input's size; give an example"):
        lip.lipschitz_bound(nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(3)).eval())


class Untaken(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)

    def forward(self, x):
        raise RuntimeError("takes nothing")


# ---- linf ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "linear", "convolution", "strided and dilated", "grouped", "transposed", "1-d", "batch norm",
    "ceil_mode", "circular", "reflected", "nearest", "transposed 1-d",
])  # fmt: skip
def test_linf(name):
    torch.manual_seed(0)
    make, shape, _ = LINEAR[name]
    layer = make().double().eval()
    x = torch.zeros(1, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel())
    true = float(matrix.abs().sum(1).max())
    assert true <= lip.lipschitz_bound(layer, x, norm="linf") * (1 + 1e-12) <= 1.001 * true


def test_linf_refuses_what_l2_alone_keeps():
    for layer in (lip.Householder(4), lip.SOC(4, 4)):
        with pytest.raises(TypeError, match="l2"):
            lip.lipschitz_bound(layer.eval(), torch.zeros(1, 4, 3, 3), norm="linf")
