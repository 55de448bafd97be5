"""Examples of the lipschitz family's layers and losses, see examples.py."""

from torch import nn

from bad_input.inputs import CLASSES, call, images, labels, rand
from robustcore import lipschitz

EXAMPLES = {
    "lipschitz.export": call(lipschitz.export, model=lambda: lipschitz.SOC(2, 2).eval()),
    "lipschitz.AOLConv2d": call(
        lipschitz.AOLConv2d,
        in_channels=3,
        out_channels=4,
        kernel_size=3,
        stride=1,
        bias=True,
        device=None,
        dtype=None,
    ),
    "lipschitz.AOLConv2d.forward": call(lambda: lipschitz.AOLConv2d(3, 4), x=images),
    "lipschitz.SLLConv2d": call(
        lipschitz.SLLConv2d, channels=3, hidden=4, kernel_size=3, device=None, dtype=None
    ),
    "lipschitz.SLLConv2d.forward": call(lambda: lipschitz.SLLConv2d(3), x=images),
    "lipschitz.CayleyLinear": call(
        lipschitz.CayleyLinear, in_features=4, out_features=3, bias=True, device=None, dtype=None
    ),
    "lipschitz.CayleyConv2d": call(
        lipschitz.CayleyConv2d,
        in_channels=3,
        out_channels=4,
        kernel_size=3,
        stride=1,
        bias=True,
        device=None,
        dtype=None,
    ),
    "lipschitz.CayleyConv2d.forward": call(lambda: lipschitz.CayleyConv2d(3, 4), x=images),
    "lipschitz.CayleyConv2d.export": call(
        lambda: lipschitz.CayleyConv2d(3, 4).eval().export, height=4, width=6
    ),
    "lipschitz.AOLLinear": call(
        lipschitz.AOLLinear, in_features=4, out_features=3, bias=True, device=None, dtype=None
    ),
    "lipschitz.AOLLinear.forward": call(lambda: lipschitz.AOLLinear(4, 3), x=lambda: rand(2, 4)),
    "lipschitz.SLLLinear": call(lipschitz.SLLLinear, features=4, hidden=3, device=None, dtype=None),
    "lipschitz.SLLLinear.forward": call(lambda: lipschitz.SLLLinear(4), x=lambda: rand(2, 4)),
    "lipschitz.Residual": call(lipschitz.Residual, inner=lambda: nn.ReLU(), share=0.5),
    "lipschitz.Residual.forward": call(lambda: lipschitz.Residual(nn.ReLU()), x=images),
    "lipschitz.BatchCentering": call(
        lipschitz.BatchCentering, num_features=3, momentum=0.1, device=None, dtype=None
    ),
    "lipschitz.BatchCentering.forward": call(lambda: lipschitz.BatchCentering(3).eval(), x=images),
    "lipschitz.GroupSort": call(lipschitz.GroupSort, size=2),
    "lipschitz.GroupSort.forward": call(lambda: lipschitz.GroupSort(2), x=lambda: rand(2, 4, 3, 3)),
    "lipschitz.Abs.forward": call(lambda: lipschitz.Abs(), x=images),
    "lipschitz.L2NormPool2d": call(lipschitz.L2NormPool2d, kernel_size=2),
    "lipschitz.L2NormPool2d.forward": call(lambda: lipschitz.L2NormPool2d(2), x=images),
    "lipschitz.hkr": call(
        lipschitz.hkr,
        logits=lambda: rand(2, CLASSES),
        labels=labels,
        alpha=10.0,
        margin=1.0,
    ),
    "lipschitz.tau_cross_entropy": call(
        lipschitz.tau_cross_entropy,
        logits=lambda: rand(2, CLASSES),
        labels=labels,
        tau=2.0,
    ),
}
