"""What of torch.cuda captures and replays, for CPU tensors: a graph is a tape of the ops called.

As on a GPU, a captured step does not run, and a replay calls no Python: it repeats the ops on the
same memory, with the numbers they were called with at the capture.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# The host reads their results.
WAITING = {aten._local_scalar_dense, aten.equal, aten.masked_select, aten.nonzero}


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class FakeGraph:
    def __init__(self, cuda):
        self._cuda, self._tape = cuda, []

    def replay(self):
        assert self._tape, "replayed before it was captured"
        assert not self._cuda.capturing
        self._cuda.log.append("replay")
        with torch.no_grad():
            self._repeat()

    def _repeat(self):
        for op, args, kwargs, results in self._tape:
            again = _tensors(op(*args, **kwargs))
            for old, new in zip(results, again, strict=True):
                if old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Tape(TorchDispatchMode):
    """Records ops; they run on the way, and what they wrote to is put back at the end."""

    def __init__(self, tape, cuda):
        super().__init__()
        self._tape, self._cuda, self._before = tape, cuda, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op.overloadpacket in WAITING:
            self._cuda.waits()
        for argument, value in zip(op._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and value is not None:
                self._before.append((value, value.clone()))
        result = op(*args, **kwargs)
        self._tape.append((op, args, kwargs, _tensors(result)))
        return result

    @torch.no_grad()
    def put_back(self):
        for tensor, before in reversed(self._before):
            tensor.copy_(before)


class FakeStream:
    def __init__(self, cuda):
        self._cuda = cuda

    def wait_stream(self, other):
        self._cuda.log.append("wait")


class FakeCuda:
    """Stands for torch.cuda. ``log`` has what happened, in order."""

    def __init__(self):
        self.log, self.capturing, self.mode = [], False, 0
        self.pools, self.fail = [], None
        self._streams = [FakeStream(self)]

    def waits(self):
        """What an op does that waits for the device."""
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        assert not self.capturing, "a capture was broken"

    # What the loop calls.
    def device(self, device):
        assert torch.device(device) == torch.device("cpu")
        return self._nothing()

    @contextmanager
    def _nothing(self):
        yield

    def Stream(self):
        return FakeStream(self)

    def current_stream(self):
        return self._streams[-1]

    @contextmanager
    def stream(self, stream):
        depth = len(self._streams)
        self._streams.append(stream)
        try:
            yield
        finally:
            del self._streams[depth:]

    def graph_pool_handle(self):
        return object()

    def CUDAGraph(self):
        return FakeGraph(self)

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert self.mode in (0, "default"), "torch synchronises at the start of a capture"
        assert capture_error_mode == "thread_local"
        self.log.append("capture")
        self.pools.append(pool)
        # Not `with`: torch, too, leaves its stream current when the capture failed.
        self._streams.append(stream)
        tape = _Tape(graph._tape, self)
        self.capturing = True
        try:
            with tape:
                if self.fail is not None:
                    raise self.fail
                yield
        finally:
            self.capturing = False
            tape.put_back()

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode
