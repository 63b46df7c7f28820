"""A prefill worker that leaves the registry keeps its session while somebody still reads from it."""

from __future__ import annotations

import asyncio
import itertools

from router_cluster import until
from router_toy_model import reference, toy_card
from scripted_worker import ScriptedWorker

from router.discovery import Fleet
from router.dispatch import Dispatcher
from router.lifecycle import LifecycleLimits
from router.metrics import RouterMetrics
from router.session import SessionTiming
from wire.sampling import SamplingParams

PROMPT = tuple(range(10, 60))


async def test_a_source_that_left_the_registry_is_kept_until_its_kv_has_been_fetched() -> None:
    hidden: dict[str, ScriptedWorker] = {}
    prefill = await ScriptedWorker("p0", "prefill", toy_card(), {}).start()
    decode = await ScriptedWorker("d0", "decode", toy_card(), hidden).start()
    fleet = Fleet("router", 1, SessionTiming())
    dispatcher = Dispatcher(fleet, LifecycleLimits(), RouterMetrics(), itertools.count(1).__next__)
    key = (prefill.record.worker_id, prefill.record.incarnation)
    try:
        fleet.update([prefill.record, decode.record])
        await until(lambda: len(list(fleet.workers())) == 2)
        sampling = SamplingParams(max_tokens=4, seed=3)
        run = dispatcher.submit(toy_card(), PROMPT, sampling, 20.0, asyncio.Event())
        await until(lambda: len(run.lifecycle.emitted) == 1)
        fleet.update([decode.record])
        await asyncio.sleep(0.1)
        assert fleet.session(key) is not None
        hidden["p0"] = prefill
        await until(lambda: run.lifecycle.ended)
        assert run.lifecycle.emitted == reference(PROMPT, sampling, toy_card())[0]
        assert run.lifecycle.attempt == 1
        assert fleet.session(key) is None
    finally:
        await fleet.close()
        await prefill.stop()
        await decode.stop()
