"""The engine's own thread: commands in, step outputs out, and a progress counter others can watch."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

import structlog

from engine.device.device_lost import DeviceLost
from engine.engine import Engine
from engine.steps.step_output import StepOutput
from kvtransfer.thread_priority import give_way
from worker.engine_watch import EngineWatch

IDLE_WAIT_S = 0.05
"""Longest sleep without work: how late a timer of the role can fire."""

log = structlog.get_logger()

Command = Callable[[], None]
T = TypeVar("T")


class LoopOwner(Protocol):
    """What runs on the engine thread besides the engine: a role."""

    def on_output(self, output: StepOutput) -> None: ...

    def tick(self) -> None:
        """Called before every step, and at least every 50 ms while there is nothing to compute."""


class EngineLoop:
    """Owns the engine's thread. Engine and role are touched by no other thread, so neither needs a lock."""

    def __init__(self, engine: Engine, on_dead: Callable[[BaseException], None], nice: int = 0) -> None:
        """`on_dead` is told when the device is lost or the loop itself fails, a bug: the process should end and be
        restarted then.

        `nice`: how far the thread gives way to others (`give_way`).
        """
        self._engine = engine
        self._on_dead = on_dead
        self._nice = nice
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._watch = EngineWatch()
        self.turns = 0
        """Turns since start; no turn for long, though the thread is busy, means that it gets nowhere."""
        self.busy = False
        """Whether the thread does anything but wait for commands."""

    @property
    def expected_step_s(self) -> float:
        """What the step under way, or the last one, is predicted to take; 0 for unknown."""
        return self._engine.expected_step_s

    def is_hung(self) -> bool:
        """Whether the thread stands still without computing; asked by the event loop's thread about every 100 ms."""
        cpu_s = time.process_time() - time.thread_time()  # whoever asks does not compute
        return self._watch.look(time.monotonic(), self.turns, cpu_s, self.expected_step_s)

    def start(self, owner: LoopOwner) -> None:
        self._thread = threading.Thread(target=self._run, args=(owner,), name="engine", daemon=True)
        self._thread.start()

    def post(self, command: Command) -> None:
        """Runs `command()` on the engine thread before the next step. Any thread may call this."""
        self._commands.put(command)

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Runs `function` on the engine thread and returns its result; TimeoutError after `timeout_s` seconds."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # nobody waits any more
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self.post(run)
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(future)

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread after the step it is in; False if that took longer than `timeout_s`."""
        self._stopping.set()
        self.post(lambda: None)
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, owner: LoopOwner) -> None:
        try:
            give_way(self._nice)
            while not self._stopping.is_set():
                self._turn(owner)
        except DeviceLost as error:
            log.exception("device_lost", reason=error.message, next="this process ends; others go on with its requests")
            self._on_dead(error)
        except BaseException as error:
            log.exception("engine_loop_failed")
            self._on_dead(error)

    def _turn(self, owner: LoopOwner) -> None:
        self._receive(wait=not self._engine.has_work())
        owner.tick()
        if self._engine.has_work():
            owner.on_output(self._engine.step())
        self.turns += 1

    def _receive(self, *, wait: bool) -> None:
        try:
            self.busy = not wait
            command = self._commands.get(timeout=IDLE_WAIT_S) if wait else self._commands.get_nowait()
            self.busy = True
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return
