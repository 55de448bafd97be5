"""What every noise but the Gaussian has to pass: classes of tests to inherit, and references."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore import ops
from smoothing import stream
from smoothing.inputs import DTYPES, SEED, images
from testing import assert_close, assert_same, check_gradients, check_repeatable, relayouts

DOMAIN = {"uniform": 1, "laplace": 2, "splitting": 3}


def unit_noise(kind, image, sample, elements, seed=SEED):
    """One sample of the stream, in float64, from its documentation."""
    words = stream.words(seed, image, sample, elements, DOMAIN[kind]).astype(np.float64)
    if kind == "uniform":
        signed = np.where(words >= 2**31, words - 2**32, words)
        return (signed + 0.5) / 2**31
    if kind == "laplace":
        u = ((words * 2 % 2**32) + 1) / 2**32
        return np.where(words >= 2**31, 1, -1) * np.log(u)
    return (words + 0.5) / 2**32


def split(x, s, width):
    """Levine and Feizi's value of x in float64, by their two cases."""
    if width >= 1:
        return ((x > s) + np.minimum(s, 1)) / 2
    c = np.ceil((x - s) / width) * width + s
    return (np.minimum(c, 1) + np.maximum(c - width, 0)) / 2


def reference(kind, x, samples, scale, image_offset=0, sample_offset=0):
    out = []
    for b, image in enumerate(x.double().numpy()):
        flat = image.ravel()
        rows = []
        for s in range(samples):
            z = unit_noise(kind, image_offset + b, sample_offset + s, flat.size)
            rows.append(
                split(flat, 2 * scale * z, 2 * scale) if kind == "splitting" else flat + scale * z
            )
        out.append(np.stack(rows).reshape(samples, *image.shape))
    return torch.from_numpy(np.stack(out))


class NoiseTests:
    """Of ``ops.{kind}_noise``; ``golden`` are six of its values."""

    kind = None
    golden = None

    @property
    def op(self):
        return getattr(ops, f"{self.kind}_noise")

    @pytest.mark.parametrize("shape", [(1, 1), (2, 3, 5, 7), (2, 1, 8, 8), (3, 70)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_matches_the_reference(self, shape, dtype, device):
        x = images(*shape, dtype=dtype)
        offsets = dict(image_offset=2**33 + 1, sample_offset=2**32 + 5)
        for scale in (0.2, 0.9):
            got = self.op(x.to(device), 3, scale, seed=SEED, **offsets)
            want = reference(self.kind, x, 3, scale, **offsets)
            assert got.shape == (shape[0], 3, *shape[1:])
            if self.kind == "splitting":
                # A pixel at a threshold may fall to either side by rounding.
                near = (got.cpu().double() - want).abs() < 1e-2
                assert near.double().mean() > 0.995
            else:
                assert_close(got, want, torch.float32 if dtype == torch.float64 else dtype)

    def test_normalisation(self):
        x = images(2, 3, 4, 4)
        plain = self.op(x, 4, 0.3, seed=SEED).double()
        mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
        got = self.op(x, 4, 0.3, seed=SEED, mean=mean, std=std)
        view = (1, 1, 3, 1, 1)
        assert_close(got, (plain - mean.double().view(view)) / std.double().view(view))

    def test_golden(self):
        # Pinned: within a major version no bit of a stream changes.
        got = self.op(torch.full((1, 6), 0.5), 1, 0.75, seed=1, sample_offset=3).flatten()
        assert [v.hex() for v in got.tolist()] == list(self.golden)

    def test_layouts_splits_threads(self, device):
        x = images(2, 3, 5, 7).to(device)
        expected = self.op(x, 6, 0.3, seed=SEED, std=0.4)
        for laid in relayouts(x).values():
            assert_same(self.op(laid, 6, 0.3, seed=SEED, std=0.4), expected)
        last = self.op(x, 6, 0.3, seed=SEED, std=0.4, memory_format=torch.channels_last)
        assert last.view(-1, 3, 5, 7).is_contiguous(memory_format=torch.channels_last)
        assert_same(last, expected)
        for b in range(2):
            part = self.op(
                x[b : b + 1], 2, 0.3, seed=SEED, std=0.4, image_offset=b, sample_offset=3
            )
            assert_same(part, expected[b : b + 1, 3:5])
        buffer = torch.empty_like(expected)
        self.op(x, 6, 0.3, seed=SEED, std=0.4, out=buffer)
        assert_same(buffer, expected)
        if device.type == "cpu":
            check_repeatable(lambda: self.op(images(3, 3, 32, 32), 40, 0.3, seed=SEED))

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_devices_agree_to_the_bit(self, dtype):
        for shape in ((2, 3, 5, 7), (1, 3, 32, 32), (2, 1, 8, 8)):
            x = images(*shape, dtype=dtype)
            cpu = self.op(x, 37, 0.3, seed=SEED, mean=0.4, std=0.3)
            assert_same(self.op(x.cuda(), 37, 0.3, seed=SEED, mean=0.4, std=0.3).cpu(), cpu)

    def test_opcheck_and_transforms(self):
        op = getattr(torch.ops.robustcore, f"{self.kind}_noise").default
        level = (0.5, 0) if self.kind == "splitting" else (0.5, None)
        torch.library.opcheck(
            op,
            (images(2, 3, 4, 5), 3, *level, None, None, 9, 0, 0, None, None, torch.float32, True),
        )
        batch = images(2, 2, 3, 4, 4)
        mapped = torch.func.vmap(lambda x: self.op(x, 3, 0.5, seed=SEED))(batch)
        assert_same(mapped, torch.stack([self.op(x, 3, 0.5, seed=SEED) for x in batch]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert self.op(batch[0], 2, 0.5, seed=SEED).dtype == torch.float32

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_compile(self):
        def loss(x, offset):
            return self.op(2 * x, 3, 0.4, seed=SEED, sample_offset=offset).square().sum()

        compiled = torch.compile(loss, fullgraph=True)
        for offset in (0, 4):
            x = images(2, 3, 4, 4).requires_grad_()
            torch.testing.assert_close(compiled(x, offset), loss(x, offset))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(scale=-1.0), "scale: got -1"),
            (dict(scale=float("nan")), "scale: got nan"),
            (dict(num_samples=-1), "num_samples: got -1"),
            (dict(seed=-1), "seed: got -1"),
            (dict(image_offset=-1), "image_offset: got -1"),
            (dict(sample_offset=2**40), "sample_offset"),
            (dict(std=[0.1, 0.2]), "std: got shape"),
            (dict(x=torch.zeros(2, 3, dtype=torch.uint8)), "x: got torch.uint8"),
            (dict(out=torch.empty(2, 2, 3)), "out: got shape"),
        ],
    )
    def test_bad_input(self, change, message):
        arguments = {"x": images(2, 3, 4, 4), "num_samples": 2, "scale": 0.5, "seed": 1, **change}
        with pytest.raises((TypeError, ValueError), match=message):
            self.op(**arguments)

    def test_instruction_sets_agree(self, simd):
        expected = list(self.samples())
        simd()
        for got, want in zip(self.samples(), expected, strict=True):
            assert_same(got, want)

    def samples(self):
        """Of several shapes and dtypes, and what else has kernels of its own."""
        for shape in ((2, 3, 5, 7), (1, 3000)):
            for dtype in DTYPES:
                yield self.op(images(*shape), 3, 0.3, seed=SEED, std=0.7, mean=0.2, dtype=dtype)


class AddedNoise(NoiseTests):
    """What is added to the image besides: its law, and derivatives."""

    law = None

    def samples(self):
        yield from super().samples()
        x = images(2, 3, 4, 4).requires_grad_()
        level = torch.tensor(0.4, requires_grad=True)
        self.op(x, 40, level, seed=SEED).square().sum().backward()
        yield from (x.grad, level.grad)

    def test_law(self):
        z = self.op(torch.zeros(2, 3, 16, 16), 200, 1.0, seed=7).double()
        assert stats.kstest(z.flatten().numpy(), self.law).pvalue > 1e-3
        assert stats.kstest(z[0, :, 0, 0, 0].numpy(), self.law).pvalue > 1e-3
        rows = z.flatten(2)
        flat = rows.flatten(0, 1)
        correlation = np.corrcoef(flat.numpy().T)
        off = correlation[~np.eye(len(correlation), dtype=bool)]
        assert abs(off).max() < 5.5 / math.sqrt(len(flat))
        assert abs(float((z[0] * z[1]).mean())) < 0.02  # images differ
        self.check_moments(z)

    def test_gradients(self):
        x, scale, mean, std = (
            (images(*shape, seed=i).double() + low).requires_grad_()
            for i, (shape, low) in enumerate(
                [((2, 3, 2, 2), 0), ((2,), 0.1), ((3,), 0), ((3,), 0.5)]
            )
        )
        check_gradients(
            lambda x, scale, mean, std: self.op(x, 3, scale, seed=SEED, mean=mean, std=std),
            x, scale, mean, std,
        )  # fmt: skip
