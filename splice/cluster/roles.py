"""The name of a role and the code that plays it."""

from __future__ import annotations

from decode_worker.role import DecodeRole
from prefill_worker.role import PrefillRole
from wire.worker_record import Role
from worker.process import BuildRole


def role_builder(role: Role) -> BuildRole:
    builders: dict[Role, BuildRole] = {"prefill": PrefillRole, "decode": DecodeRole}
    return builders[role]
