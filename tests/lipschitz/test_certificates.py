"""Bounds and certificates: the claims against dense Jacobians and attacks."""

import math

import pytest
import torch
from torch import nn

from robustcore import lipschitz as lip

NETWORKS = [
    dict(version="soc"),
    dict(version="soc", head="normalized", activation="householder"),
    dict(version="soc", head="crc", activation="householder2"),
    dict(version="improved", pooling="projection"),
    dict(version="improved", head="normalized", pooling="max"),
    dict(version="improved", head="crc", activation="householder2", pooling="projection"),
]


def network(**options):
    """A small one after a few steps of training."""
    torch.manual_seed(0)
    net = lip.LipConvNet(
        4, 5, init_channels=4, input_size=4, stages=2, in_channels=2, std=[0.5, 0.8], mean=0.4,
        **options,
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(10):
        x, labels = torch.rand(8, 2, 4, 4), torch.randint(5, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net.eval().double()


def jacobians(fn, x):
    return torch.stack(
        [torch.autograd.functional.jacobian(fn, one[None]).reshape(-1, one.numel()) for one in x]
    )


@pytest.mark.parametrize("options", NETWORKS)
def test_networks_keep_their_bound(options):
    net = network(**options)
    x = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    bound = lip.lipschitz_bound(net)
    largest = torch.linalg.svdvals(jacobians(net, x)).max()
    assert largest <= bound * (1 + 1e-12)
    body, head = net.body_and_head()
    features = torch.linalg.svdvals(jacobians(body, x)).max()
    assert features <= lip.lipschitz_bound(body) * (1 + 1e-12)
    assert lip.lipschitz_bound(body) == pytest.approx(2)  # 1 / min(std): the layers add nothing
    if head is None:
        assert largest > 0.2  # far from a constant map, else this would show little
    with torch.no_grad():
        got = net(x)
        taken_apart = body(x) if head is None else head(body(x))
    torch.testing.assert_close(taken_apart, got)


@pytest.mark.parametrize("options", NETWORKS)
def test_nothing_within_a_radius_changes_the_class(options):
    net = network(**options)
    x = torch.rand(12, 2, 4, 4, dtype=torch.float64)
    certificate = lip.certify(net, x)
    assert (certificate.radius > 0).all()
    assert certificate.prediction.tolist() == net(x).argmax(1).tolist()
    # Projected gradient ascent on the runner-up's margin, along the sphere of the radius.
    chosen = certificate.prediction
    delta = torch.zeros_like(x)
    for _ in range(40):
        delta.requires_grad_()
        logits = net(x + delta)
        others = logits.scatter(1, chosen[:, None], -math.inf).amax(1)
        margin = logits.gather(1, chosen[:, None])[:, 0] - others
        (grad,) = torch.autograd.grad(margin.sum(), delta)
        with torch.no_grad():
            delta = delta - 0.3 * certificate.radius.view(-1, 1, 1, 1) * unit(grad)
            size = delta.flatten(1).norm(dim=1)
            delta = delta * (certificate.radius / size.clamp(min=1e-30)).clamp(max=1).view(
                -1, 1, 1, 1
            )
        assert (margin > 0).all()
    assert (net(x + delta).argmax(1) == chosen).all()


def unit(t):
    return t / t.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)


def test_certify_refuses_modes_and_precisions():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model: is in training mode"):
        lip.certify(model, torch.zeros(1, 2))
    with pytest.raises(TypeError, match=r"model: 0\.weight is torch\.bfloat16"):
        lip.certify(model.eval().bfloat16(), torch.zeros(1, 2))


def test_certify_turns_tf32_off():
    seen = []

    class Spy(nn.Identity):
        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
            return x

        def lipschitz_bound(self):
            return 1.0

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lip.certify(nn.Sequential(Spy(), nn.Flatten()).eval(), torch.rand(2, 3))
        assert set(seen) == {(False, False)}
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_margin_certificates():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    assert lip.margin_certificate(logits, 2.0).tolist() == pytest.approx([2 / math.sqrt(8), 0.0])
    labels = torch.tensor([1, 2])
    assert lip.margin_certificate(logits, 1.0, labels=labels).tolist() == pytest.approx(
        [-2 / math.sqrt(2), -1 / math.sqrt(2)]
    )
    head = nn.Linear(2, 3).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    # Classes 0 and 2 read the same features: their margin never changes.
    assert lip.margin_certificate(logits, 1.0, head=head).tolist() == pytest.approx(
        [2 / math.sqrt(2), 0.0]
    )
    normalized = lip.NormalizedLinear(2, 3)
    with torch.no_grad():
        normalized.weight.copy_(5 * head.weight)
    got = lip.margin_certificate(logits, 1.0, head=normalized)
    assert got.tolist() == pytest.approx([2 / math.sqrt(2), 0.0])
    assert lip.margin_certificate(torch.tensor([[math.nan, 1.0]]), 1.0).isnan().all()


class Certified(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        labels = torch.arange(len(x)) % 3
        return lip.margin_certificate(self.head(x), 1.5, head=self.head, labels=labels)


@pytest.mark.parametrize("kind", [nn.Linear, lip.NormalizedLinear])
def test_margin_certificates_differentiate(kind):
    torch.manual_seed(0)
    model = Certified(kind(4, 3).double())

    def fn(x, weight):
        return torch.func.functional_call(model, {"head.weight": weight}, x)

    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fn, (x, model.head.weight.detach().requires_grad_()))


def test_margin_certificates_are_exact_for_a_linear_model():
    torch.manual_seed(0)
    head = nn.Linear(4, 3).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    radius = lip.margin_certificate(head(x), 1.0, head=head)
    chosen = head(x).argmax(1)
    apart = head.weight[chosen][:, None] - head.weight[None]
    beyond = torch.zeros(20, dtype=torch.bool)
    for j in range(3):
        direction = apart[:, j] / apart[:, j].norm(dim=1, keepdim=True).clamp(min=1e-30)
        moved = head(x - 1.001 * radius[:, None] * direction)
        beyond |= moved.argmax(1) != chosen
        kept = head(x - 0.999 * radius[:, None] * direction)
        assert (kept.argmax(1) == chosen).all()
    assert beyond.all()


def test_crc_certificates_against_the_definition():
    torch.manual_seed(0)
    head = lip.CRCHead(4, 3, hidden=6, beta=2.0).double()
    features = torch.randn(10, 4, dtype=torch.float64)
    got = lip.crc_certificate(head, features, 1.5)
    w1, w2 = head.linear1.weight, head.linear2.weight
    for x, value in zip(features, got.tolist(), strict=True):
        logits = head(x[None])[0]
        y = int(logits.argmax())
        radii = []
        for j in set(range(3)) - {y}:
            leaf = x.clone().requires_grad_()
            out = head(leaf[None])[0]
            (g,) = torch.autograd.grad(out[y] - out[j], leaf)
            negative = (w2[y] - w2[j]).clamp(max=0).abs().max()
            k = 0.5 * torch.linalg.matrix_norm(w1, ord=2) ** 2 * negative
            margin = logits[y] - logits[j]
            root = (g.norm() ** 2 + 2 * k * margin).sqrt()
            radii.append(((root - g.norm()) / k / 1.5).item())
        assert value == pytest.approx(min(radii), rel=1e-9)
    with torch.no_grad():  # no curvature: the linear case
        head.linear2.weight.copy_(torch.tensor([[1.0] * 6, [0.0] * 6, [0.0] * 6]))
        head.linear2.bias.zero_()
    positive = lip.crc_certificate(head, features, 1.0)
    assert positive.isfinite().all()
    assert (positive > 0).all()
    wrong = lip.crc_certificate(head, features, 1.0, labels=torch.full((10,), 2))
    assert (wrong <= 0).all()


def test_certificate_loss():
    logits = torch.randn(5, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    certificates = lip.margin_certificate(logits, 1.0, labels=labels)
    loss = lip.certificate_loss(logits, labels, certificates, 0.1)
    expected = nn.functional.cross_entropy(logits, labels)
    expected = expected - 0.1 * certificates.clamp(min=0).mean()
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert logits.grad.isfinite().all()


def test_certified_accuracy():
    certificate = lip.Certificate(torch.tensor([0, 1, 2]), torch.tensor([0.1, 0.2, 0.3]), 1.0)
    labels = torch.tensor([0, 1, 1])
    assert certificate.certified_accuracy(labels, [0.0, 0.15, 0.25]).tolist() == pytest.approx(
        [2 / 3, 1 / 3, 0.0]
    )


BAD = [
    (lambda: lip.margin_certificate(torch.zeros(2), 1.0), ValueError, r"logits: got shape \[2\]"),
    (lambda: lip.margin_certificate(torch.zeros(1, 2), 0.0), ValueError, "bound: got 0.0"),
    (
        lambda: lip.margin_certificate(torch.zeros(1, 2), 1.0, head=nn.ReLU()),
        TypeError,
        "head: got ReLU",
    ),
    (
        lambda: lip.crc_certificate(lip.CRCHead(2, 2), torch.zeros(1, 2), math.inf),
        ValueError,
        "bound: got inf",
    ),
    (lambda: lip.CRCHead(2, 2, beta=0.0), ValueError, "beta: got 0.0"),
    (lambda: lip.MaxMin(3), ValueError, "channels: got 3"),
    (lambda: lip.Householder(4, order=3), ValueError, "order: got 3"),
    (lambda: lip.ProjectionPool2d(4, 9.0), ValueError, "theta: got 9.0"),
    (lambda: lip.LipConvNet(7, 10), ValueError, "depth: got 7, want a multiple of 5"),
    (lambda: lip.LipConvNet(5, 10, input_size=20), ValueError, "input_size: got 20"),
    (lambda: lip.LipConvNet(5, 10, version="x"), ValueError, "version: got 'x'"),
    (lambda: lip.LipConvNet(5, 10, std=0.0), ValueError, "std: got 0.0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
