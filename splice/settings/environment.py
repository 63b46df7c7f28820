"""The process's environment: read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from splice.settings.setting import ENVIRONMENT_PREFIX


def setting_variables() -> dict[str, str]:
    """All `SPLICE_*` variables."""
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}


def cache_home() -> Path:
    """Where models are kept: `$XDG_CACHE_HOME/splice`, else `~/.cache/splice`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "splice"


def child_environment(extra: Mapping[str, str] | None = None, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment for a process we start.

    Settings reach children as flags alone, so `SPLICE_*` is left out; so is every name that starts
    with one of `without`.
    """
    dropped = (ENVIRONMENT_PREFIX, *without)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | dict(extra or {})


def update_own_environment(extra: Mapping[str, str]) -> None:
    """For libraries that can be told only through the environment of their own process."""
    os.environ.update(extra)
