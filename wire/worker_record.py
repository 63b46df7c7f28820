"""What a worker writes about itself into the membership store."""

from __future__ import annotations

import secrets
from typing import Literal

import msgspec

from wire.kv_layout import KVLayout

Role = Literal["prefill", "decode"]


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One live worker. The record stands under a lease: it disappears when the worker stops renewing."""

    worker_id: str
    incarnation: int
    """64 random bits drawn when the process started; an address that answers with another one was reused."""
    role: Role
    endpoint: str
    """`host:port` of its gRPC server (services Worker, KvSource, health, reflection)."""
    model: str
    card_id: str
    compat_id: str
    """Only workers with equal ids may hand KV to each other."""
    layout: KVLayout
    numerics_id: str
    num_blocks: int
    max_num_seqs: int
    max_model_len: int
    host_id: str
    """Equal ids mean that `pid` names the same process."""
    pid: int
    draining: bool = False

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def decode_record(raw: bytes) -> WorkerRecord:
    """Inverse of `WorkerRecord.encode`; raises msgspec.ValidationError naming the field."""
    return msgspec.json.decode(raw, type=WorkerRecord)


def draw_incarnation() -> int:
    """64 random bits, never 0."""
    return secrets.randbits(64) | 1
