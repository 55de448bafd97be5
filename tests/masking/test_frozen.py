"""What a trace freezes is seen where it changes: no cached trace answers for another model."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from masking import nets
from robustcore.common import graph
from robustcore.masking import MaskedModel
from testing import assert_same


def images():
    return nets.image(2, 12), nets.blocks(2, 12, 3)


class Config:
    def __init__(self):
        self.scales, self.rates = [1.0, 2.0], {"last": 3.0}


class Plain(nn.Module):
    """Reads everything that is no parameter: of its own, of layers, of objects that it holds."""

    def __init__(self):
        super().__init__()
        self.stride, self.size, self.config = 1, (1, 1), Config()
        self.factor = torch.ones(())  # neither parameter nor buffer
        self.conv, self.twin = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.twin.weight = self.conv.weight
        self.act, self.norm, self.drop = nn.Softplus(), nn.BatchNorm2d(4), nn.Dropout(0.0)

    def forward(self, x):
        y = functional.conv2d(x, self.conv.weight, stride=self.stride, padding=1)
        y = self.drop(self.act(self.norm(y))) * self.factor
        y = y + self.twin(x) if self.stride == 1 else y
        y = functional.adaptive_avg_pool2d(y, self.size) * self.config.rates["last"]
        return y.flatten(1) * self.config.scales[1]


def put(*path, **values):
    """Sets attributes of the module at that path, as parameters where they are."""

    def change(model):
        for name, value in values.items():
            setattr(model.get_submodule(".".join(path)), name, value)

    return change


def retied(model):
    model.twin.weight = nn.Parameter(2 * model.conv.weight)


def narrowed(model):
    model.twin.weight, model.twin.padding = nn.Parameter(2 * model.conv.weight[:, :, :1]), (0, 1)


CHANGES = {
    "a stride": put(stride=2),
    "a tuple": put(size=(2, 1)),
    "padding and dilation": put("twin", padding=(2, 2), dilation=(2, 2)),
    "the threshold of Softplus": put("act", threshold=0.1),
    "the beta of Softplus": put("act", beta=3),
    "the eps of BatchNorm": put("norm", eps=1.0),
    "a list in an object": lambda m: m.config.scales.__setitem__(1, 5.0),
    "a dict in an object": lambda m: m.config.rates.update(last=7.0),
    "a tensor that is no buffer": put(factor=torch.tensor(2.0)),
    "its values": lambda m: m.factor.fill_(2.0),
    "a size of weights": narrowed,
    "weights no longer shared": retied,
    "a forward of its own": put("act", forward=torch.abs),
    "a class": put("drop", __class__=nn.LogSigmoid),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_attribute_is_seen(name):
    model, (x, mask) = nets.randomized(Plain()), images()
    masked = MaskedModel(model)
    with torch.no_grad():
        before = masked(x, mask)
        CHANGES[name](model)
        got, want = masked(x, mask), MaskedModel(model)(x, mask)
        assert_same(got, want)
        assert_same(masked(x, torch.ones_like(mask)), model(x))
    assert got.shape != before.shape or (got - before).abs().max() > 1e-4


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def test_what_a_trace_does_not_freeze_makes_no_other(monkeypatch):
    model, (x, mask) = nets.randomized(nn.Sequential(Plain(), Counting())), images()
    traces, plain = [], graph.trace
    monkeypatch.setattr("robustcore.masking.model.trace", lambda *a: traces.append(a) or plain(*a))
    masked = MaskedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        masked(x, mask).sum().backward()
        optimizer.step()
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    parameters = {k: 2 * v.detach() for k, v in masked.named_parameters()}
    torch.func.functional_call(masked, parameters, (x, mask[:1]))
    torch.vmap(lambda m: masked(x, m[None]))(mask)
    assert len(traces) == 1
