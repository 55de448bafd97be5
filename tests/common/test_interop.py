"""robustcore.as_tensor: other libraries' arrays, without a copy."""

import numpy as np
import pytest
import torch

import robustcore


def test_numpy_shares_memory():
    array = np.zeros((2, 3), dtype=np.float32)
    t = robustcore.as_tensor(array)
    assert t.shape == (2, 3)
    assert t.dtype == torch.float32
    array[1, 2] = 7
    assert t[1, 2] == 7
    assert t.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8", "bool"])
def test_numpy_dtypes(dtype):
    array = np.ones((3,), dtype=dtype)
    t = robustcore.as_tensor(array)
    assert str(t.dtype) == f"torch.{dtype}"
    assert t.data_ptr() == array.ctypes.data


def test_numpy_strides_and_readonly():
    array = np.arange(12.0).reshape(3, 4)[:, ::2]
    array.flags.writeable = False
    t = robustcore.as_tensor(array)
    assert t.stride() == (4, 2)
    assert t.data_ptr() == array.ctypes.data


def test_a_tensor_is_itself():
    t = torch.zeros(2)
    assert robustcore.as_tensor(t) is t


def test_dlpack():
    class Foreign:
        def __init__(self, t):
            self.t = t

        def __dlpack__(self, **kwargs):
            return self.t.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.t.__dlpack_device__()

    t = torch.arange(4.0)
    assert robustcore.as_tensor(Foreign(t)).data_ptr() == t.data_ptr()


def test_ops_take_it():
    x = np.full((1, 3, 4, 4), 0.5, dtype=np.float32)
    out = robustcore.ops.gaussian_noise(robustcore.as_tensor(x), 2, 0.0, seed=0)
    assert (out == 0.5).all()


@pytest.mark.parametrize("bad", [[1, 2], 3.0, "text", None])
def test_not_an_array(bad):
    with pytest.raises(TypeError, match=f"array: got {type(bad).__name__}"):
        robustcore.as_tensor(bad)


def test_what_cannot_be_shared():
    with pytest.raises(ValueError, match="negative strides"):
        robustcore.as_tensor(np.zeros(3)[::-1])
    with pytest.raises(TypeError, match="dtype"):
        robustcore.as_tensor(np.array(["a"]))
    with pytest.raises(TypeError, match="dtype"):
        robustcore.as_tensor(np.zeros(3, dtype=">f4"))


@pytest.mark.cuda
def test_cupy_shares_memory():
    cupy = pytest.importorskip("cupy")
    array = cupy.zeros((2, 3), dtype=cupy.float32)
    t = robustcore.as_tensor(array)
    assert t.is_cuda
    assert t.data_ptr() == array.data.ptr
    array[1, 2] = 7
    assert t[1, 2] == 7


@pytest.mark.cuda
def test_cuda_array_interface():
    class Foreign:
        def __init__(self, t):
            self.t, self.__cuda_array_interface__ = t, t.__cuda_array_interface__

    t = torch.arange(4.0, device="cuda")
    assert robustcore.as_tensor(Foreign(t)).data_ptr() == t.data_ptr()


class Streams:
    """Of torch.cuda what as_tensor asks; the log has what waits for what."""

    def __init__(self):
        self.log = []

    def current_stream(self, device):
        return self

    def default_stream(self, device):
        return "default"

    def ExternalStream(self, pointer, device):
        return pointer

    def wait_stream(self, other):
        self.log.append(other)


@pytest.mark.parametrize(("stream", "waits"), [(None, []), (1, ["default"]), (2, [2]), (77, [77])])
def test_the_stream_of_the_interface_is_waited_for(stream, waits, monkeypatch):
    class Foreign:
        __cuda_array_interface__ = {"stream": stream}  # noqa: RUF012

    streams, made = Streams(), torch.zeros(1)
    monkeypatch.setattr(torch, "cuda", streams)
    monkeypatch.setattr(torch, "as_tensor", lambda array, device: made)
    assert robustcore.as_tensor(Foreign()) is made
    assert streams.log == waits


def test_stream_0_is_refused(monkeypatch):
    class Foreign:
        __cuda_array_interface__ = {"stream": 0}  # noqa: RUF012

    monkeypatch.setattr(torch, "as_tensor", lambda array, device: torch.zeros(1))
    with pytest.raises(ValueError, match="array: got stream 0"):
        robustcore.as_tensor(Foreign())


@pytest.mark.cuda
def test_a_slow_stream_is_waited_for():
    slow = torch.cuda.Stream()
    t = torch.zeros(2**20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(slow):
        torch.cuda._sleep(200_000_000)
        t.fill_(7)

    class Foreign:
        __cuda_array_interface__ = t.__cuda_array_interface__ | {"stream": slow.cuda_stream}

    assert (robustcore.as_tensor(Foreign()) == 7).all()
