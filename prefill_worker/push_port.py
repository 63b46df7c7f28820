"""Where the engine's rows go besides, as the hand-off knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.scheduling.request import RequestKey
from engine.steps.peer_blocks import PeerBlocks
from kvtransfer.source import KvSource


@dataclass(frozen=True, slots=True)
class SourcePushPort:
    """`engine.steps.pushes.PushPort` over what consumers granted."""

    source: KvSource

    def begin(self, key: RequestKey) -> PeerBlocks | None:
        """See `PushPort.begin`."""
        target = self.source.push_target(key)
        return PeerBlocks(target.address, target.grant.first_block, target.grant.blocks) if target is not None else None

    def launched(self, keys: Sequence[RequestKey], event: int) -> None:
        """See `PushPort.launched`."""
        self.source.stored(keys, event)
