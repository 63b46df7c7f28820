"""A worker as a Ray actor: Ray places, starts and restarts it; no request and no KV byte passes through Ray."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future

import structlog

from wire.worker_record import WorkerRecord
from worker.process import BuildRole, serve_worker, settled
from worker.settings import WorkerSettings

log = structlog.get_logger()


class WorkerActor:
    """Made into an actor by the launcher with `ray.remote`.

    The worker runs on an event loop of its own inside the actor's process, so that a Ray call never waits behind
    the engine, nor the engine behind Ray. If it ends by itself the process exits and Ray starts a new one, which
    draws a new incarnation.
    """

    def __init__(self, settings: WorkerSettings, build_role: BuildRole) -> None:
        self._ready: Future[WorkerRecord] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(settings, build_role), name="worker", daemon=True)
        self._thread.start()

    def record(self, timeout_s: float) -> WorkerRecord:
        """Waits until the worker accepts requests; raises what kept it from starting."""
        return self._ready.result(timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Drains and ends the worker; True once it has ended."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, settings: WorkerSettings, build_role: BuildRole) -> None:
        try:
            self._loop.run_until_complete(
                serve_worker(settings, build_role, self._stop, settled(self._ready.set_result))
            )
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(error)
                return
            log.exception("worker_failed")
        if not self._stop.is_set():
            os._exit(70)
