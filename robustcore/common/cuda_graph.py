"""The sampling loop as a CUDA graph: its step is captured once and launched as one thing after.

A step is a full batch of one image: noise, model, votes. It works on buffers that stay where they
are, and reads from device memory which image and which samples are next; its last kernel advances
that counter. A replay therefore needs nothing from the host, and any number of them can be queued.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# What of torch.<device> captures and replays; a test may put something in its place.
BACKENDS: dict[str, Any] = {"cuda": torch.cuda}
# Steps that run eagerly, on the stream of the capture, before it: libraries set themselves up in
# the first ones. They are part of the run, so they cost nothing.
WARM_UP = 3


class Step:
    """Noise, model and votes of the next ``len(buffer)`` samples of one image.

    Calling it queues the kernels; it is the same whether they run, or are captured.

    Args:
        sample: ``Distribution.sample`` with what stays the same, the seed apart.
        logits: maps a batch to logits ``[N, num_classes]``.
        count: ``Distribution.count``.
        image: one like those that will be loaded, ``[C, H, W]``.
        buffer: what the model receives, ``[N, ...]``.
        seed: of the noise; a captured step keeps the one it was captured with.
    """

    def __init__(
        self,
        sample: Callable[..., Tensor],
        logits: Callable[[Tensor], Tensor],
        count: Callable[[Tensor], Tensor],
        image: Tensor,
        buffer: Tensor,
        num_classes: int,
        seed: int,
    ) -> None:
        self._sample, self._logits, self._count = sample, logits, count
        self.buffer, self.seed = buffer, seed
        self._image = image.new_empty((1, *image.shape))
        self._image_index = torch.zeros((), dtype=torch.int64, device=image.device)
        self._sample_index = torch.zeros_like(self._image_index)
        self._votes = self._image_index.new_zeros((1, num_classes))
        self._loaded: int | None = None  # index of the image in its buffer
        self._next: int | None = None  # value of the counter on the device

    def __call__(self) -> None:
        rows = len(self.buffer)
        self._sample(
            self._image,
            rows,
            seed=self.seed,
            image_offset=self._image_index,
            sample_offset=self._sample_index,
            out=self.buffer.view(1, *self.buffer.shape),
        )
        self._votes.add_(self._count(self._logits(self.buffer).view(1, rows, -1)))
        self._sample_index.add_(rows)

    def load(self, image: Tensor, index: int, first_sample: int) -> None:
        """Makes samples ``first_sample`` on of the image of that index the next. Queues only."""
        if self._loaded != index:
            self._image.copy_(image.unsqueeze(0))
            self._image_index.fill_(index)
        if self._next != first_sample:
            self._sample_index.fill_(first_sample)
        self._loaded, self._next = index, first_sample

    def advanced(self) -> None:
        """Says that the step has run."""
        assert self._next is not None
        self._next += len(self.buffer)

    def take_votes(self, into: Tensor) -> None:
        """Adds the votes since the last time to ``into``, ``[K]``, and starts again from none."""
        into.add_(self._votes.squeeze(0))
        self._votes.zero_()

    def reset(self) -> None:
        """No votes, and nothing that is loaded: another image may have the same index."""
        self._votes.zero_()
        self._loaded = self._next = None


class NotCapturable(Exception):
    """The step cannot be captured, for the reason that is its cause; the batch was not sampled."""


class GraphLoop:
    """Runs steps: the first ones eagerly, to warm up, all later ones as replays of a capture."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self._device, self._cuda = device, BACKENDS[device.type]
        with self._cuda.device(device):
            self._stream = self._cuda.Stream()
            # Graphs that are captured one after the other, for another seed, share their memory.
            self._pool = self._cuda.graph_pool_handle()
        self._warm = 0
        self._graph: Any = None
        self._captured = False
        self._votes: Tensor | None = None  # where those of the present image go
        self._index: int | None = None

    def use_seed(self, seed: int) -> None:
        if seed != self.step.seed:
            self.step.seed, self._captured = seed, False

    def run(self, image: Tensor, index: int, first_sample: int, votes: Tensor) -> None:
        """One full batch of ``image``, whose votes are in ``votes`` after :meth:`finish`.

        Raises NotCapturable where a model waits for the device, say.
        """
        if index != self._index:
            self.finish()
        self._index, self._votes = index, votes
        with self._cuda.device(self._device), _no_autocast_cache():
            self.step.load(image, index, first_sample)
            if not self._captured and self._warm < WARM_UP:
                self._warm_up()
            else:
                if not self._captured:
                    self._capture()
                self._graph.replay()
        self.step.advanced()

    def begin(self) -> None:
        """Before the first step of a count; one that was left by an error is forgotten."""
        self._votes = self._index = None
        self.step.reset()

    def finish(self) -> None:
        """After the last step: hands over the votes."""
        if self._votes is not None:
            self.step.take_votes(self._votes)
        self._votes = self._index = None

    def _warm_up(self) -> None:
        last = self._warm == WARM_UP - 1
        current = self._cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            # In the last one a model that waits for the device is found before it can break a
            # capture, which torch does not recover from in every respect.
            with self._cuda.stream(self._stream), self._waiting("error" if last else None):
                self.step()
        except RuntimeError as error:
            if not last:
                raise
            raise NotCapturable from error
        finally:
            current.wait_stream(self._stream)
        self._warm += 1

    def _capture(self) -> None:
        graph = self._cuda.CUDAGraph()
        try:
            # The outer `stream` puts the current one back even where a failed capture does not.
            # Other threads (NCCL's watchdog, a loader that pins memory) may go on calling CUDA.
            with (
                self._waiting("default"),
                self._cuda.stream(self._stream),
                self._cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
                self._waiting("error"),
            ):
                self.step()
        except Exception as error:  # the step itself has run before: whatever this is, go without
            raise NotCapturable from error
        # Only now may the graph before it go: the pool lives as long as one of them.
        self._graph, self._captured = graph, True

    @contextmanager
    def _waiting(self, mode: str | None) -> Iterator[None]:
        """Whether what waits for the device is an error meanwhile; None: as it was.

        The mode is the process's, so it is set for a step or two and not for a run.
        """
        if mode is None:
            yield
            return
        before = self._cuda.get_sync_debug_mode()
        _set_waiting(self._cuda, mode)
        try:
            yield
        finally:
            _set_waiting(self._cuda, before)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.loops: dict[int, tuple[Any, GraphLoop]] = {}
        self.refused: dict[int, Any] = {}  # what could not be captured


class Graphs:
    """The loops of one ``Smooth``: kept from call to call, while what they were captured of stays.

    Every thread has its own, for they hold the batch that is sampled.

    Args:
        wanted: True: an error where it cannot be; None: where it can and no surprise is to be
            expected; False: never.
    """

    def __init__(self, wanted: bool | None) -> None:
        self.wanted = wanted
        self._own = _OfThread()

    def __reduce__(self) -> tuple[type[Graphs], tuple[bool | None]]:
        return Graphs, (self.wanted,)  # a copy captures for itself

    def require(self, device: torch.device, offsets_on_device: bool) -> None:
        """Raises ValueError if a graph is wanted and there can be none."""
        if not self.wanted:
            return
        if device.type not in BACKENDS:
            raise ValueError(f"cuda_graph: got True for images on {device}, want them on a GPU")
        if not offsets_on_device:
            raise ValueError("cuda_graph: got True, but this noise has no counter on the device")

    def loop(
        self,
        slot: int,
        model: Any,
        image: Tensor,
        depends: tuple[Any, ...],
        seed: int,
        make_step: Callable[[], Step],
    ) -> GraphLoop | None:
        """The loop of one of the views of the images, None to go without.

        ``depends`` is what a step depends on beside the model, the image's form and the seed.
        """
        kind = image.device.type
        if self.wanted is False or kind not in BACKENDS:
            return None
        if self.wanted is None and surprising(model):
            return None
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        key = (*depends, image.shape, image.dtype, image.device, autocast, fingerprint(model))
        own = self._own
        if own.refused.get(slot) == key:
            return None
        if slot not in own.loops or own.loops[slot][0] != key:
            # The old one goes first: its memory is as large.
            own.loops.pop(slot, None)
            own.loops[slot] = key, GraphLoop(make_step(), image.device)
        loop = own.loops[slot][1]
        loop.use_seed(seed)
        return loop

    def refuse(self, slot: int, error: BaseException | None) -> None:
        """Complains that a step cannot be captured: an error if it is wanted, else one warning."""
        warned = bool(self._own.refused)
        self._own.refused[slot] = self._own.loops.pop(slot)[0]
        if self.wanted:
            raise RuntimeError(
                f"cuda_graph: got True, but the step cannot be captured: {error}"
            ) from error
        if warned:
            return
        warnings.warn(
            f"cuda_graph: the step cannot be captured ({error}); sampling goes on without a "
            "graph, with the same results. cuda_graph=False avoids the attempt",
            UserWarning,
            stacklevel=5,
        )


def surprising(model: Any) -> bool:
    """Whether Python code of the model may be meant to run at every batch.

    That of a replay does not run: what a function closes over, what hooks do, what training mode
    counts would be as at the capture.
    """
    if not isinstance(model, nn.Module):
        return True
    kinds = (torch.jit.ScriptModule, nn.DataParallel)
    return any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or isinstance(module, kinds)
        # torch.compile may have graphs of its own.
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def fingerprint(model: Any) -> Any:
    """What a captured step depends on of a model: its modules, all they hold, where tensors lie.

    The values of tensors are not in it; a replay reads them. Two models of one fingerprint run the
    same kernels on the same memory.
    """
    if not isinstance(model, nn.Module):
        return object()  # equal to nothing: there is no telling
    return _state(model, set())


class _Same:
    """Equal to the very same object alone, which it keeps, so that no other one takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _state(value: Any, seen: set[int]) -> Any:
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return type(value), repr(value)
    if isinstance(value, Tensor):
        form = type(value), value.shape, value.dtype, value.device
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.layout != torch.strided:
            return _Same(value), form
        return value.data_ptr(), value.stride(), form
    if id(value) in seen:
        return _Same(value)
    seen.add(id(value))
    if isinstance(value, (list, tuple)):
        return type(value), [_state(v, seen) for v in value]
    if isinstance(value, dict):
        return type(value), [(_state(k, seen), _state(v, seen)) for k, v in value.items()]
    if isinstance(value, nn.Module):
        return type(value), _state(vars(value), seen)
    if isinstance(value, (type, ModuleType)) or not hasattr(value, "__dict__"):
        return _Same(value)
    return _Same(value), _state(vars(value), seen)


def _set_waiting(cuda: Any, mode: str | int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that it does not find all of them
        cuda.set_sync_debug_mode(mode)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Weights are cast anew: a graph must not keep the address of a cast that is freed later."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
