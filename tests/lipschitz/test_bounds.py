"""Bounds of what a model runs, whatever its modules are called; what nothing bounds."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from lipschitz.bounded import Functional, Thrice, check
from robustcore import lipschitz as lip
from robustcore.lipschitz.rules.table import markdown


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


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3, groups=2, padding=1), (2, 5, 5)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
        (nn.ConvTranspose1d(4, 4, 3, 2, groups=2), (4, 5)),
        (nn.Linear(5, 4), (5,)),
    ],
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_batch_norm_counts_as_a_part_of_the_weight_before(layer, shape, norm):
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    net = nn.Sequential(layer, kind(4)).double().eval()
    with torch.no_grad():
        net[1].running_var.copy_(torch.tensor([1e-2, 1.0, 1.0, 10.0]))
        net[1].weight.uniform_(-2, 2)
        first = net[0].weight.transpose(0, 1) if "Transpose" in str(layer) else net[0].weight
        first[0].mul_(0.01)  # what the narrow channel makes large again
    x = torch.zeros(1, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(net, x).reshape(-1, x.numel())
    true = float(torch.linalg.matrix_norm(matrix, 2 if norm == "l2" else math.inf))
    bound = lip.lipschitz_bound(net, x, norm=norm)
    apart = lip.lipschitz_bound(net[0], x, norm=norm) * float(net[1].running_var.rsqrt().max())
    assert true <= bound * (1 + 1e-12)
    assert bound <= min(1.6 * true, 0.5 * apart)


def test_a_layer_before_a_batch_norm_that_others_read_too():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    check(Both(), (2, 5, 5), tight=1.4)


def test_a_nearly_orthogonal_filter_is_bounded_closely():
    layer = lip.OrthogonalConv2d(6, 8, 3).eval()
    assert 1 - 1e-6 < lip.lipschitz_bound(layer.export(), torch.zeros(1, 6, 8, 8)) < 1 + 1e-5


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


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=map(str, range(len(REFUSED))))
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


def test_the_table_stands_in_the_guide():
    guide = Path(lip.__file__).with_name("BOUNDS.md")
    if not guide.exists():
        guide = Path(__file__).parents[2] / "robustcore" / "lipschitz" / "BOUNDS.md"
    assert markdown() in guide.read_text()
