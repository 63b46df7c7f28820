"""How `CudaRuntime` has torch capture and wait: by a script of torch's calls, where there is no GPU."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from engine.device.cuda_runtime import CudaRuntime
from engine.device.device_lost import DeviceLost
from wire.errors import SpliceError


class Script:
    """What is there of `torch.cuda`: one stream, which a capture leaves for its own. `fails`: what does."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.stream = "own"
        self.events: list[Event] = []
        self.captures: list[tuple[object, str]] = []
        self.trimmed = 0
        self.entered: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
        parts = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "set_device": lambda device: self.entered.append(threading.current_thread().name),
            "mem_get_info": lambda device: (60, 100),
            "synchronize": lambda device=None: None,
            "empty_cache": self._empty_cache,
            "current_stream": lambda device=None: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "CUDAGraph": lambda: SimpleNamespace(pool=lambda: "pool", replay=lambda: None),
            "graph": self._graph,
            "Event": lambda **options: self.events.append(Event(self, **options)) or self.events[-1],
        }
        for name, part in parts.items():
            monkeypatch.setattr(torch.cuda, name, part)
        monkeypatch.setattr(torch, "as_tensor", lambda place, device: place)
        return CudaRuntime()

    def _empty_cache(self) -> None:
        self.trimmed += 1

    @contextmanager
    def _graph(self, graph: object, *, pool: object, capture_error_mode: str):
        """As torch does: a capture that does not end well is not left either."""
        self.captures.append((pool, capture_error_mode))
        self.stream = "capture's"
        yield
        if self.fails == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        self.stream = "own"


class Event:
    def __init__(self, script: Script, *, blocking: bool = False) -> None:
        self.script, self.blocking = script, blocking

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        if self.script.fails == "device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_the_result_of_a_graph_is_a_place_that_nobody_owns(monkeypatch):
    runtime = Script().install(monkeypatch)
    made: list[torch.Tensor] = []

    def work() -> torch.Tensor:
        made.append(torch.zeros(3, 6)[:, :5])
        return made[-1]

    place, _ = runtime.capture(work)
    interface = place.__cuda_array_interface__
    assert (interface["shape"], interface["strides"], interface["typestr"]) == ((3, 5), (24, 4), "<f4")
    assert interface["data"] == (made[1].data_ptr(), False), "of the work that was recorded, not of the one before it"


def test_captures_share_the_pool_of_the_first_until_they_are_forgotten(monkeypatch):
    script = Script()
    runtime = script.install(monkeypatch)
    for _ in range(2):
        runtime.capture(lambda: torch.zeros(1, 1))
    runtime.forget_captures()
    runtime.capture(lambda: torch.zeros(1, 1))
    assert script.captures == [(None, "thread_local"), ("pool", "thread_local"), (None, "thread_local")]
    assert script.trimmed == 1


@pytest.mark.parametrize("ends", ["in torch", "in the work"])
def test_a_capture_that_fails_leaves_the_thread_on_its_stream(monkeypatch, ends):
    script = Script("capture" if ends == "in torch" else "")
    runtime, calls = script.install(monkeypatch), []

    def work() -> torch.Tensor:
        calls.append(script.stream)
        if ends == "in the work" and len(calls) == 2:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return torch.zeros(1, 1)

    with pytest.raises(SpliceError, match="capturing a step failed"):
        runtime.capture(work)
    assert calls == ["own", "capture's"]
    assert script.stream == "own"


def test_who_waits_for_the_device_sleeps_and_is_told_that_it_is_lost(monkeypatch):
    script = Script()
    runtime = script.install(monkeypatch)
    fence = runtime.upload(torch.zeros(2), torch.ones(2))
    fence.wait()
    runtime.settle()
    assert [event.blocking for event in script.events] == [True, True]
    script.fails = "device"
    for wait in (fence.wait, runtime.settle):
        with pytest.raises(DeviceLost, match="illegal memory access"):
            wait()


def test_every_thread_enters_the_device_once_though_it_has_the_number_of_one_that_ended(monkeypatch):
    """A model is built by one thread, which ends, and steps by the next; numbers of threads are given out again."""
    script = Script()
    runtime = script.install(monkeypatch)
    for name in ("build", "engine"):
        thread = threading.Thread(target=lambda: [runtime.enter() for _ in range(2)], name=name)
        thread.start()
        thread.join()
    assert script.entered == [threading.current_thread().name, "build", "engine"]
