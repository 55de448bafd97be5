"""CUDA graphs: a step of a loop is captured once and launched as one thing after.

The step works on buffers that stay where they are, and reads what changes from device memory. A
replay therefore needs nothing from the host, and any number of them can be queued.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

from robustcore.common.fingerprint import fingerprint, surprising

# What of torch.<device> captures and replays; a test may put something in its place.
BACKENDS: dict[str, Any] = {"cuda": torch.cuda}
# Steps that run eagerly, on the stream of the capture, before it: libraries set themselves up in
# the first ones. They are part of the run, so they cost nothing.
WARM_UP = 3

L = TypeVar("L")


class NotCapturable(Exception):
    """The step cannot be captured, for the reason that is its cause; the batch was not sampled."""


class CapturedStep:
    """Runs a step again and again: the first times eagerly, to warm up, later as replays.

    Args:
        step: queues kernels, the same whether they run or are captured.
        device: of the kernels.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step = step
        self._device, self._cuda = device, BACKENDS[device.type]
        with self._cuda.device(device):
            self._stream = self._cuda.Stream()
            # Graphs that are captured one after the other share their memory.
            self._pool = self._cuda.graph_pool_handle()
        self._warm = 0
        self._graph: Any = None
        self._captured = False

    def forget(self) -> None:
        """Has the step captured anew: what it is to do has changed."""
        self._captured = False

    def run(self) -> None:
        """One step. Raises NotCapturable where it waits for the device, say."""
        with self._cuda.device(self._device), _no_autocast_cache():
            if not self._captured and self._warm < WARM_UP:
                self._warm_up()
            else:
                if not self._captured:
                    self._capture()
                self._graph.replay()

    def _warm_up(self) -> None:
        last = self._warm == WARM_UP - 1
        current = self._cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            # In the last one a model that waits for the device is found before it can break a
            # capture, which torch does not recover from in every respect.
            with self._cuda.stream(self._stream), self._waiting("error" if last else None):
                self._step()
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
                self._step()
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


class _OfThread(threading.local, Generic[L]):
    def __init__(self) -> None:
        self.loops: dict[int, tuple[Any, L]] = {}
        self.refused: dict[int, Any] = {}  # what could not be captured


class Graphs(Generic[L]):
    """The loops of one owner: kept from call to call, while what they were captured of stays.

    Every thread has its own, for they hold the batch that is at work.

    Args:
        wanted: True: an error where it cannot be; None: where it can and no surprise is to be
            expected; False: never.
    """

    def __init__(self, wanted: bool | None) -> None:
        self.wanted = wanted
        self._own: _OfThread[L] = _OfThread()

    def __reduce__(self) -> tuple[type[Graphs[L]], tuple[bool | None]]:
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
        device: torch.device,
        depends: tuple[Any, ...],
        make: Callable[[], L],
    ) -> L | None:
        """The loop in one of the slots, None to go without.

        ``depends`` is what a capture depends on beside the model and the device.
        """
        kind = device.type
        if self.wanted is False or kind not in BACKENDS:
            return None
        if self.wanted is None and surprising(model):
            return None
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        key = (*depends, device, autocast, fingerprint(model))
        own = self._own
        if own.refused.get(slot) == key:
            return None
        if slot not in own.loops or own.loops[slot][0] != key:
            # The old one goes first: its memory is as large.
            own.loops.pop(slot, None)
            own.loops[slot] = key, make()
        return own.loops[slot][1]

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
            stacklevel=6,
        )


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
