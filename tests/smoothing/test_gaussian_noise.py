"""ops.gaussian_noise: values, layouts, dtypes, invariances, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcore import ops
from smoothing import stream
from smoothing.inputs import DTYPES, SEED, images
from testing import (
    assert_close,
    assert_same,
    check_repeatable,
    relayouts,
    shapes,
)

pytestmark = pytest.mark.kernel

# z itself is a float32, so a float64 output is no nearer to the float64 reference.
EXACT = {torch.float64: torch.float32}


def reference(x, samples, sigma, *, mean=None, std=None, image_offset=0, sample_offset=0):
    """The op in float64 NumPy, sigma as [B, *D], mean and std as [C]."""
    x = x.double().numpy()
    elements = math.prod(x.shape[1:])
    z = np.stack(
        [
            [
                stream.normals(SEED, image_offset + b, sample_offset + s, elements)
                for s in range(samples)
            ]
            for b in range(x.shape[0])
        ]
    ).reshape(x.shape[0], samples, *x.shape[1:])
    channel = (1, 1, -1, *[1] * (x.ndim - 2))
    out = x[:, None] + np.broadcast_to(sigma, x.shape)[:, None] * z
    if mean is not None:
        out = out - np.reshape(mean, channel)
    if std is not None:
        out = out / np.reshape(std, channel)
    return torch.from_numpy(out)


SHAPES = [
    (1, 1),
    (2, 3),
    (3, 64),
    (2, 3, 5, 7),
    (1, 3, 32, 32),
    (2, 1, 8, 8),
    (1, 5, 6, 4),
    (2, 40, 3, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(shape, dtype, device):
    x = images(*shape, dtype=dtype)
    mean, std = [0.1 * (c + 1) for c in range(shape[1])], [0.5 + 0.1 * c for c in range(shape[1])]
    plain = ops.gaussian_noise(x.to(device), 3, 0.25, seed=SEED)
    assert plain.shape == (shape[0], 3, *shape[1:])
    near = EXACT.get(dtype, dtype)
    assert_close(plain, reference(x, 3, 0.25), near)
    out = ops.gaussian_noise(x.to(device), 3, 0.25, seed=SEED, mean=mean, std=std)
    assert_close(out, reference(x, 3, 0.25, mean=mean, std=std), near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_output_dtype(dtype, out_dtype):
    x = images(2, 3, 4, 4, dtype=dtype)
    out = ops.gaussian_noise(x, 2, 0.5, seed=SEED, dtype=out_dtype)
    assert out.dtype == out_dtype
    assert_close(out, reference(x, 2, 0.5), EXACT.get(out_dtype, out_dtype))


def test_float64_arithmetic():
    x, sigma = images(2, 3, 4, 4, dtype=torch.float64), 0.3
    z = ops.gaussian_noise(torch.zeros(2, 3, 4, 4), 5, 1.0, seed=SEED).double()
    out = ops.gaussian_noise(x, 5, sigma, seed=SEED, mean=0.1, std=0.7)
    assert_close(out, (x.unsqueeze(1) + sigma * z - 0.1) / 0.7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_the_rounded_float32(dtype):
    # Better than any sequence of low-precision operations: one rounding, to nearest even.
    x = images(2, 3, 9, 5, dtype=dtype)
    for level in (0.0, 1e-7, 0.3, 1e4):
        exact = ops.gaussian_noise(x, 20, level, seed=SEED, dtype=torch.float32)
        assert_same(ops.gaussian_noise(x, 20, level, seed=SEED), exact.to(dtype))


def test_sigma_forms():
    x = images(4, 3, 5, 5)
    per_image = torch.tensor([0.0, 0.1, 0.5, 2.0])
    out = ops.gaussian_noise(x, 2, per_image, seed=SEED)
    assert_close(out, reference(x, 2, per_image.view(4, 1, 1, 1).double().numpy()))
    assert_same(out[0], x[:1].expand(2, -1, -1, -1))
    for b, sigma in enumerate(per_image.tolist()):
        one = ops.gaussian_noise(x[b : b + 1], 2, sigma, seed=SEED, image_offset=b)
        assert_same(one[0], out[b])
    off_object = torch.zeros(5, 5)
    off_object[:, 3:] = 0.7
    out = ops.gaussian_noise(x, 2, off_object, seed=SEED)
    assert_close(out, reference(x, 2, off_object.double().numpy()))
    assert_same(out[..., :3], x.unsqueeze(1).expand(-1, 2, -1, -1, -1)[..., :3])
    assert_same(
        ops.gaussian_noise(x, 2, torch.tensor(0.5), seed=SEED),
        ops.gaussian_noise(x, 2, 0.5, seed=SEED),
    )


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 5, 7), (2, 3, 4, 4), (2, 2, 3, 2, 3)])
def test_any_layout_in(shape, device):
    x, sigma = images(*shape).to(device), images(*shape, seed=1).to(device)
    expected = ops.gaussian_noise(x, 3, sigma, seed=SEED, mean=0.5, std=[0.3] * shape[1])
    for laid in relayouts(x).values():
        for level in (sigma, *relayouts(sigma).values()):
            got = ops.gaussian_noise(laid, 3, level, seed=SEED, mean=0.5, std=[0.3] * shape[1])
            assert_same(got, expected)
    one = x[:1].expand_as(x)
    assert_same(
        ops.gaussian_noise(one, 3, 0.1, seed=SEED),
        ops.gaussian_noise(one.contiguous(), 3, 0.1, seed=SEED),
    )


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), samples=st.integers(0, 4), flip=st.booleans(), data=st.data())
def test_shapes(shape, samples, flip, data):
    x = images(*shape)
    if flip:
        x = x.permute(*range(x.dim())[::-1])
    dtype = data.draw(st.sampled_from(DTYPES))
    out = ops.gaussian_noise(x, samples, 0.5, seed=SEED, dtype=dtype)
    assert out.shape == (x.shape[0], samples, *x.shape[1:])
    assert out.is_contiguous()
    if out.numel():
        assert_close(out, reference(x, samples, 0.5), EXACT.get(dtype, dtype))
    if x.dim() == 4:
        last = ops.gaussian_noise(
            x, samples, 0.5, seed=SEED, dtype=dtype, memory_format=torch.channels_last
        )
        assert_same(last, out)


@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (1, 3, 32, 32), (2, 1, 4, 4), (1, 40, 6, 6), (2, 4, 1, 1)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(shape, dtype, device):
    x = images(*shape).to(device)
    kwargs = dict(seed=SEED, dtype=dtype, mean=[0.2] * shape[1], std=[0.4] * shape[1])
    out = ops.gaussian_noise(x, 3, 0.3, memory_format=torch.channels_last, **kwargs)
    assert out.view(-1, *shape[1:]).is_contiguous(memory_format=torch.channels_last)
    assert_same(out, ops.gaussian_noise(x, 3, 0.3, **kwargs))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_out(memory_format, device):
    x = images(2, 3, 4, 5).to(device)
    expected = ops.gaussian_noise(x, 3, 0.3, seed=SEED, memory_format=memory_format)
    buffer = torch.full_like(expected, float("nan"))
    got = ops.gaussian_noise(x, 3, 0.3, seed=SEED, memory_format=memory_format, out=buffer)
    assert got is buffer
    assert_same(buffer, expected)


def test_no_allocation_beyond_the_output():
    x = images(1, 3, 32, 32)
    out = torch.empty(1, 64, 3, 32, 32)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        ops.gaussian_noise(x, 64, 0.3, seed=SEED, out=out)
    assert sum(max(0, e.self_cpu_memory_usage) for e in profile.key_averages()) == 0
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        ops.gaussian_noise(x, 64, 0.3, seed=SEED)
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.key_averages())
    assert allocated == out.numel() * 4


def test_instruction_sets_agree(simd):
    cases = [(2, 3, 5, 7), (1, 3000), (3, 5), (1, 3, 16, 16), (2, 33, 3, 3)]
    kwargs = dict(seed=SEED, mean=0.5, std=0.25)

    def run():
        for shape in cases:
            x = images(*shape)
            for dtype in DTYPES:
                yield ops.gaussian_noise(x, 5, 0.5, dtype=dtype, **kwargs)
            if len(shape) == 4:
                yield ops.gaussian_noise(x, 5, 0.5, memory_format=torch.channels_last, **kwargs)
            grad = images(shape[0], 70, *shape[1:])
            leaf = x.clone().requires_grad_()
            sigma = torch.tensor(0.5, requires_grad=True)
            ops.gaussian_noise(leaf, 70, sigma, **kwargs).backward(grad)
            yield leaf.grad
            yield sigma.grad

    expected = list(run())
    simd()
    for got, want in zip(run(), expected, strict=True):
        assert_same(got, want)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_devices_agree_to_the_bit(shape, dtype):
    x = images(*shape, dtype=dtype)
    formats = [torch.contiguous_format] + [torch.channels_last] * (len(shape) == 4)
    for memory_format in formats:
        kwargs = dict(seed=SEED, mean=0.5, std=0.3, memory_format=memory_format)
        cpu = ops.gaussian_noise(x, 37, 0.3, **kwargs)
        assert_same(ops.gaussian_noise(x.cuda(), 37, 0.3, **kwargs).cpu(), cpu)
    grad = torch.randn(shape[0], 70, *shape[1:], dtype=dtype)
    sums = [
        torch.ops.robustcore.gaussian_noise_sums(g, 5, 0, 0, None, None, True)
        for g in (grad, grad.cuda())
    ]
    for a, b in zip(*sums, strict=True):
        assert_same(b.cpu(), a)


def test_any_split_of_the_work_gives_the_same_noise():
    x = images(6, 3, 8, 8)
    whole = ops.gaussian_noise(x, 10, 0.5, seed=SEED, image_offset=3, sample_offset=100)
    for b in range(0, 6, 2):
        for s in range(0, 10, 5):
            part = ops.gaussian_noise(
                x[b : b + 2], 5, 0.5, seed=SEED, image_offset=3 + b, sample_offset=100 + s
            )
            assert_same(part, whole[b : b + 2, s : s + 5])


def test_repeatable_on_any_number_of_threads():
    x = images(4, 3, 32, 32)
    check_repeatable(lambda: ops.gaussian_noise(x, 50, 0.5, seed=SEED))
    grad = torch.randn(2, 100, 3, 32, 32)
    sums = torch.ops.robustcore.gaussian_noise_sums
    check_repeatable(lambda: sums(grad, 5, 0, 0, None, None, True)[1])


@pytest.mark.cuda
def test_cuda_graph_advances_the_offset():
    x = images(1, 3, 32, 32).cuda()
    offset = torch.zeros((), dtype=torch.int64, device="cuda")
    out = torch.empty(1, 16, 3, 32, 32, device="cuda")
    counts = torch.zeros(1, 3072, dtype=torch.int64, device="cuda")

    def step():
        ops.gaussian_noise(x, 16, 0.5, seed=SEED, sample_offset=offset, out=out)
        ops.count_votes(out.flatten(2), out=counts)
        offset.add_(16)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    offset.zero_()
    for turn in range(3):
        graph.replay()
        expected = ops.gaussian_noise(x, 16, 0.5, seed=SEED, sample_offset=16 * turn)
        assert_same(out, expected)
        assert_same(counts, ops.count_votes(expected.flatten(2)))


@pytest.mark.cuda
def test_runs_on_the_current_stream():
    x = images(1, 3, 256, 256).cuda()
    expected = ops.gaussian_noise(x, 64, 0.5, seed=SEED)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        out = ops.gaussian_noise(late, 64, 0.5, seed=SEED)
    stream.synchronize()
    assert_same(out, expected)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    samples = 2**31 // 3072 + 2
    x = images(1, 3072)
    out = ops.gaussian_noise(x, samples, 0.5, seed=SEED, dtype=torch.bfloat16)
    assert out.numel() > 2**31
    tail = ops.gaussian_noise(x, 3, 0.5, seed=SEED, dtype=torch.bfloat16, sample_offset=samples - 3)
    assert_same(out[:, -3:], tail)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("gaussian_noise", (torch.float32, False)),
        ("gaussian_noise", (torch.bfloat16, True)),
        ("gaussian_noise_out", (False, torch.empty(2, 3, 3, 4, 5))),
    ],
)
def test_opcheck(name, rest):
    op = getattr(torch.ops.robustcore, name).default
    level, mean = torch.rand(2, 1, 4, 5), torch.rand(1, 3, 1, 1)
    for maps in ((None, None, None), (level, mean, mean + 1)):
        torch.library.opcheck(op, (images(2, 3, 4, 5), 3, 0.5, *maps, 9, 0, 0, None, None, *rest))


@pytest.mark.parametrize("with_noise", [True, False])
def test_opcheck_sums(with_noise):
    op = torch.ops.robustcore.gaussian_noise_sums.default
    torch.library.opcheck(op, (images(2, 4, 3, 5), 9, 1, 2, None, None, with_noise))


def test_autocast_leaves_it_alone():
    x = images(1, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.gaussian_noise(x, 2, 0.5, seed=SEED)
    assert_same(out, ops.gaussian_noise(x, 2, 0.5, seed=SEED))


def test_nan_and_infinity_pass_through():
    x = torch.tensor([[0.0, float("nan"), float("inf"), -float("inf")]])
    for dtype in DTYPES:
        out = ops.gaussian_noise(x, 2, 0.5, seed=SEED, dtype=dtype)
        assert out[0, :, 0].isfinite().all()
        assert out[0, :, 1].isnan().all()
        assert (out[0, :, 2:] == x[0, 2:].to(dtype)).all()


BAD = [
    (dict(sigma=-1.0), "sigma: got -1"),
    (dict(sigma=float("nan")), "sigma: got nan"),
    (dict(sigma=float("inf")), "sigma: got inf"),
    (dict(sigma=torch.rand(5)), r"sigma: got shape .*broadcasts to \[2, 3, 4, 4\]"),
    (dict(sigma=torch.rand(1, 2, 3, 4, 4)), "sigma: got shape"),
    (dict(num_samples=-1), "num_samples: got -1"),
    (dict(seed=-1), "seed: got -1"),
    (dict(seed=2**64), "seed: got 18446744073709551616"),
    (dict(seed=1.5), "seed: got 1.5"),
    (dict(image_offset=-1), "image_offset: got -1"),
    (dict(image_offset=2**48 - 1), "image_offset"),
    (dict(sample_offset=2**40 - 1), "sample_offset"),
    (dict(sample_offset=torch.tensor([1])), "sample_offset"),
    (dict(sample_offset=torch.tensor(1.0)), "sample_offset"),
    (dict(mean=[0.1, 0.2]), r"mean: got shape \[2\]"),
    (dict(std=torch.rand(3, 1)), r"std: got shape \[3, 1\]"),
    (dict(dtype=torch.int32), "dtype: got"),
    (dict(memory_format=torch.preserve_format), "memory_format: got"),
    (dict(x=torch.rand(2, 3), memory_format=torch.channels_last), "memory_format: channels_last"),
    (dict(x=torch.zeros(2, 3, dtype=torch.uint8)), "x: got torch.uint8"),
    (dict(x=torch.tensor(1.0)), "x: got a 0-d tensor"),
    (dict(x=np.zeros((2, 3))), "x: got ndarray"),
    (dict(out=torch.empty(2, 2, 3, 4)), r"out: got shape .* want \[2, 2, 3, 4, 4\]"),
    (dict(out=torch.empty(2, 2, 3, 4, 4).transpose(3, 4)), "out: got shape"),
    (dict(out=torch.empty(2, 2, 3, 4, 4), dtype=torch.float64), "out: got torch.float32"),
    (dict(x=torch.rand(2, 3, 4, 4, requires_grad=True), out=torch.empty(2, 2, 3, 4, 4)), "out: "),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message):
    arguments = {"x": images(2, 3, 4, 4), "num_samples": 2, "sigma": 0.5, "seed": 1, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.gaussian_noise(**arguments)


def test_bad_input_leaves_out_untouched():
    out = torch.full((2, 2, 3, 4, 4), 5.0)
    with pytest.raises(ValueError, match="sigma"):
        ops.gaussian_noise(images(2, 3, 4, 4), 2, -1.0, seed=1, out=out)
    assert (out == 5).all()
