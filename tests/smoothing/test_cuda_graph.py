"""The captured step: counts of the ordinary loop, when it is captured, and when it is not."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from robustcore.common.cuda_graph import WARM_UP
from robustcore.smoothing import BandAblation, Gaussian, Smooth
from robustcore.smoothing.graph_loop import Step
from smoothing.captures import (
    NOISES,
    RUN,
    SURPRISES,
    Head,
    assert_same_counts,
    certify,
)
from smoothing.models import Pixels
from testing import assert_same


class Waiting(Pixels):
    """A model that waits for the device at every batch."""

    def __init__(self, cuda, num_classes=4):
        super().__init__(num_classes)
        self.cuda = cuda

    def forward(self, x):
        self.cuda.waits()
        return super().forward(x)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 50, 99, 100])
@pytest.mark.parametrize("number", [1, 3])
def test_counts_are_those_of_the_loop(images, cuda, number, batch_size):
    x = images[:number]
    options = dict(batch_size=batch_size, image_offset=2**40 + 3)
    expected = certify(x, Pixels(4), graph=False, **options)
    assert cuda.log == []
    assert_same_counts(certify(x, Pixels(4), graph=None, **options), expected)
    full = number * (100 // batch_size)
    if full > WARM_UP:
        assert cuda.log.count("capture") == 1
        assert "replay" in cuda.log
    assert_same_counts(certify(x, Pixels(4), graph=True, **options), expected)


@pytest.mark.parametrize("name", NOISES)
def test_every_noise_that_has_a_counter(images, cuda, name):
    noise, channels = NOISES[name], 4 if name == "null" else 2
    x = (images * 255).round() / 255
    model = Head(channels)
    expected = certify(x, model, graph=False, noise=noise)
    assert_same_counts(certify(x, model, graph=True, noise=noise), expected)
    assert cuda.log.count("capture") == (2 if name == "dual" else 1)


def test_a_noise_without_a_counter_goes_on_without(images, cuda):
    noise = BandAblation(2, fill=0.5)
    expected = certify(images, Head(), graph=False, noise=noise, batch_size=1)
    got = certify(images, Head(), graph=None, noise=noise, batch_size=1)
    assert_same(got.counts, expected.counts)
    assert cuda.log == []
    with pytest.raises(ValueError, match="cuda_graph: got True, but this noise has no counter"):
        certify(images, Head(), graph=True, noise=noise)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_formats_and_normalisation(images, cuda, dtype, memory_format):
    options = dict(dtype=dtype, memory_format=memory_format, mean=[0.1, 0.2], std=[0.5, 2.0])
    model = Pixels(4) if dtype == torch.float64 else Head()
    expected = certify(images, model, graph=False, **options)
    assert_same_counts(certify(images, model, graph=True, **options), expected)
    assert "replay" in cuda.log


def test_every_procedure(images, cuda):
    def results(graph):
        smooth = Smooth(Head(), 4, 0.3, seed=7, cuda_graph=graph)
        stopped = smooth.certify(images, n=3000, batch_size=16, early_stop=True)
        tested = smooth.certify_at(images, 0.02, max_n=3000, batch_size=16)
        predicted = smooth.predict(images, n=500, batch_size=16)
        return [
            *(stopped.counts, stopped.radius, stopped.samples),
            *(tested.counts, tested.samples, tested.prediction, predicted.counts),
        ]

    expected = results(False)
    for got, want in zip(results(True), expected, strict=True):
        assert_same(got, want)
    # One step serves all three.
    assert cuda.log.count("capture") == 1
    assert cuda.log.count("replay") > 50


def test_a_replay_runs_no_python_of_the_model(images, cuda):
    model = Head()
    certify(images, model, graph=True, n0=10)
    full = 3 * 11
    assert model.calls.number == WARM_UP + 1
    assert cuda.log.count("replay") == full - WARM_UP
    before = cuda.log.index("capture")
    assert cuda.log[:before] == ["wait", "wait"] * WARM_UP
    assert cuda.current_stream() is cuda._streams[0]
    assert cuda.mode == 0


def test_kept_from_call_to_call(images, cuda):
    model = Head()
    smooth = Smooth(model, 4, 0.3, seed=7)
    first = smooth.certify(images, **RUN)
    captures = cuda.log.count("capture")
    # Another image of the same index, and the same one again.
    other = smooth.certify(images.flip(0), **RUN)
    again = smooth.certify(images, **RUN)
    assert captures == cuda.log.count("capture") == 1
    assert_same_counts(again, first)
    assert_same_counts(other, certify(images.flip(0), model, graph=False))


CHANGES = {
    "value of an attribute": lambda model: setattr(model, "temperature", 2.0),
    "value of a list": lambda model: model.widths.append(4),
    "a weight elsewhere": lambda model: setattr(
        model.linear, "weight", nn.Parameter(model.linear.weight * 2)
    ),
    "a module": lambda model: setattr(model, "linear", nn.Linear(6, 4).eval()),
    "a convolution's padding": lambda model: setattr(model.conv, "padding_mode", "reflect"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_captured_again_after_a_change_of_the_model(images, cuda, change):
    model = Head()
    model.widths = [1, 2]
    smooth = Smooth(model, 4, 0.3, seed=7)
    for turn in (1, 2):
        result = smooth.certify(images, **RUN)
        assert cuda.log.count("capture") == turn
        assert_same_counts(result, certify(images, model, graph=False))
        CHANGES[change](model)


def test_threads_and_copies_have_their_own(images, cuda):
    smooth = Smooth(Pixels(4), 4, 0.3, seed=7)
    expected = smooth.certify(images, **RUN)
    with ThreadPoolExecutor(1) as pool:
        assert_same_counts(pool.submit(smooth.certify, images, **RUN).result(), expected)
    assert_same_counts(copy.deepcopy(smooth).certify(images, **RUN), expected)
    assert cuda.log.count("capture") == 3


def test_new_values_of_weights_need_no_capture(images, cuda):
    model = Pixels(4)
    model.weight = nn.Parameter(torch.ones(4))
    model.forward = lambda x: x.flatten(1)[:, :4] * model.weight
    smooth = Smooth(model, 4, 0.3, seed=7)
    smooth.certify(images, **RUN)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 3.0, 1.0, -2.0]))
    result = smooth.certify(images, **RUN)
    assert cuda.log.count("capture") == 1
    assert_same_counts(result, certify(images, model, graph=False))


def test_another_seed_is_captured_anew_in_the_same_memory(images, cuda):
    smooth = Smooth(Pixels(4), 4, 0.3)
    for _ in range(2):
        result = smooth.certify(images, **RUN)
        assert_same_counts(result, certify(images, Pixels(4), graph=False, seed=result.seed))
    assert cuda.log.count("capture") == 2
    assert cuda.log.count("wait") == 2 * WARM_UP
    assert len(set(cuda.pools)) == 1


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 12}, {"mean": 0.5}, {"sigma": 0.5}, {"memory_format": torch.channels_last}],
)
def test_other_forms_are_captured_anew(images, cuda, changes):
    model = Head()
    for options in ({}, changes):
        expected = certify(images, model, graph=False, **options)
        assert_same_counts(certify(images, model, graph=True, **options), expected)
    smooth = Smooth(model, 4, 0.3, seed=7)
    for x in (images, images[..., :4], images.double()):
        got = smooth.certify(x, **RUN)
        assert_same_counts(got, certify(x, model, graph=False, dtype=None))
        model = model.double() if x.dtype == torch.float32 and x.shape[-1] == 4 else model


def test_a_model_that_waits_is_warned_of_once(images, cuda):
    model = Waiting(cuda)
    smooth = Smooth(model, 4, 0.3, seed=7)
    expected = certify(images, model, graph=False)
    with pytest.warns(UserWarning, match=r"cuda_graph: .* \(called a synchronizing") as caught:
        result = smooth.certify(images, **RUN)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_same_counts(result, expected)
    assert "capture" not in cuda.log, "the dry run finds it"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_counts(smooth.certify(images, **RUN), expected)
    assert cuda.mode == 0


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
@pytest.mark.parametrize("graph", [None, True])
def test_a_capture_that_fails(images, cuda, graph, error):
    cuda.fail = error("operation not permitted when stream is capturing")
    smooth = Smooth(Pixels(4), 4, 0.3, seed=7, cuda_graph=graph)
    if graph:
        with pytest.raises(RuntimeError, match=r"cuda_graph: got True, but .* not permitted"):
            smooth.certify(images, **RUN)
    else:
        with pytest.warns(UserWarning, match="cuda_graph: .* not permitted"):
            result = smooth.certify(images, **RUN)
        assert_same_counts(result, certify(images, Pixels(4), graph=False))
    assert cuda.current_stream() is cuda._streams[0]
    assert "replay" not in cuda.log


def test_an_error_of_the_model_leaves_nothing_behind(images, cuda):
    model = Head()
    smooth = Smooth(model, 4, 0.3, seed=7)
    model.forward = lambda x: torch.zeros(len(x), 5)
    with pytest.raises(ValueError, match="base_classifier: gave"):
        smooth.certify(images, **RUN | {"n0": 10})
    del model.forward
    model.register_buffer("count", torch.zeros(()))
    forward, calls = model.forward, []

    def breaks_later(x):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("in the second batch")
        return forward(x)

    model.forward = breaks_later
    with pytest.raises(ValueError, match="in the second batch"):
        smooth.certify(images, **RUN | {"n0": 10})
    result = smooth.certify(images, **RUN)
    assert_same_counts(result, certify(images, Head(), graph=False))


@pytest.mark.parametrize("surprise", ["a hook", "a function"])
def test_they_are_where_it_is_asked_for(images, cuda, surprise):
    model = SURPRISES[surprise]()
    expected = certify(images, model, graph=False)
    assert_same_counts(certify(images, model, graph=None), expected)
    assert cuda.log == []
    smooth = Smooth(model, 4, 0.3, seed=7, cuda_graph=True)
    for _ in range(2):
        assert_same_counts(smooth.certify(images, **RUN), expected)
    # What a function closes over cannot be compared with what it was.
    assert cuda.log.count("capture") == (2 if surprise == "a function" else 1)


def test_the_argument(images):
    with pytest.raises(TypeError, match=r"^cuda_graph: got 1\.5"):
        Smooth(Pixels(2), 2, 0.25, cuda_graph=1.5)
    with pytest.raises(ValueError, match=r"^cuda_graph: got True for images on cpu"):
        Smooth(Pixels(2), 2, 0.25, cuda_graph=True).certify(images, n=100)


@pytest.mark.parametrize("first", [0, 2**32 - 5, 2**40 - 40])
def test_a_step_counts_on(images, first):
    noise = Gaussian(0.3)
    step = Step(noise.sample, Pixels(4), noise.count, images[0], torch.empty(10, 2, 4, 6), 4, 7)
    for index in (2, 2**47):
        step.load(images[1], index, first)
        for _ in range(3):
            step()
            step.advanced()
        step.load(images[1], index, first + 30)  # where it is already
        step()
        step.advanced()
        votes = torch.ones(4, dtype=torch.int64)
        step.take_votes(votes)
        whole = noise.sample(images[1:2], 40, seed=7, image_offset=index, sample_offset=first)
        assert_same(votes - 1, noise.count(whole.flatten(2)[:, :, :4])[0])
