"""Where records live in etcd: `/splice/<cluster>/workers/<role>/<worker_id>`."""

from __future__ import annotations

import re
from typing import get_args

from wire.errors import ErrorCode, SpliceError
from wire.worker_record import Role

ROLES: tuple[Role, ...] = get_args(Role)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def workers_prefix(cluster: str) -> str:
    """The prefix all workers of a cluster stand under, with its closing slash (so that `a` never matches `ab`)."""
    return f"/splice/{_checked('cluster', cluster)}/workers/"


def worker_key(cluster: str, role: Role, worker_id: str) -> str:
    """The key of one worker; raises SpliceError(BAD_SETTING) for a name that would not survive as one path part."""
    if role not in ROLES:
        raise SpliceError(ErrorCode.BAD_SETTING, f"role is {role!r}, expected one of {', '.join(ROLES)}", param="role")
    return f"{workers_prefix(cluster)}{role}/{_checked('worker_id', worker_id)}"


def _checked(param: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{name!r} cannot be part of a membership key; use 1 to 128 letters, digits or . _ : - "
            "starting with a letter or digit",
            param=param,
        )
    return name
