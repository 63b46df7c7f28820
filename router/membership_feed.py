"""Feeds the fleet with worker records: a fixed list, or what etcd says."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable

from membership.client import EtcdClient
from membership.watcher import Watcher
from router.discovery import Fleet
from router.settings import RouterSettings


@contextlib.asynccontextmanager
async def follow_membership(settings: RouterSettings, fleet: Fleet) -> AsyncIterator[Callable[[], float]]:
    """Keeps `fleet` up to date while open; yields a function telling the view's age in seconds.

    Raises what the watcher raises when etcd cannot be reached at start; later losses only freeze the view.
    """
    if not settings.etcd_endpoints:
        fleet.update(settings.static_workers)
        yield lambda: 0.0
        return
    async with contextlib.AsyncExitStack() as stack:
        client = EtcdClient(settings.etcd_endpoints)
        stack.push_async_callback(client.close)
        watcher = Watcher(
            client,
            settings.cluster,
            rng=random.Random(),  # noqa: S311 - spreads retries, guards nothing
            on_change=lambda view, *_: fleet.update(view.workers()),
        )
        stack.push_async_callback(watcher.close)
        await watcher.start()
        fleet.update(watcher.view.workers())
        yield watcher.view_age_s
