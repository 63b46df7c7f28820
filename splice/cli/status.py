"""`splice status`"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Column, Table

from splice.cli.console import out
from splice.cli.flags import with_settings
from splice.cluster.run_dir import RunDirectory
from splice.cluster.status import ClusterStatus, gather
from splice.settings.commands import ClusterCommandSettings
from wire.errors import ErrorCode, SpliceError


@with_settings(ClusterCommandSettings)
def command(
    settings: ClusterCommandSettings,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the workers of a cluster by role: identity, load, KV use. Finds a local cluster by itself."""
    state = RunDirectory(settings.cluster, Path(settings.run_dir) if settings.run_dir else None).read()
    endpoints = settings.etcd_endpoints or (state.etcd_endpoints if state is not None else ())
    if not endpoints:
        raise SpliceError(
            ErrorCode.NOT_FOUND,
            f"cluster {settings.cluster!r} does not run here; start it with `splice serve`, or name the etcd of one "
            "that runs elsewhere with --etcd-endpoints",
            param="cluster",
        )
    status = asyncio.run(gather(settings.cluster, endpoints, state))
    if as_json:
        out.print(msgspec.json.format(msgspec.json.encode(status)).decode(), markup=False, soft_wrap=True)
    else:
        _print(status)


def _print(status: ClusterStatus) -> None:
    out.print(
        f"cluster {status.cluster}   router {status.router_url or 'not here'}   ray {status.ray_address or 'none'}"
    )
    out.print(f"etcd {','.join(status.etcd_endpoints)}   {status.etcd_error or 'answers'}", markup=False)
    # Eighty columns hold it; a name is never cut, so that it can be copied whole.
    names = [Column(heading, no_wrap=True) for heading in ("worker", "endpoint")]
    figures = [Column(heading, overflow="fold") for heading in ("pid", "run", "wait", "KV blocks")]
    table = Table(*names, *figures, Column("tokens in/out", overflow="fold"), "state", box=None, pad_edge=False)
    for worker in status.workers:
        used = worker.num_blocks - worker.free_blocks
        table.add_row(
            worker.worker_id,
            worker.endpoint,
            str(worker.pid),
            str(worker.running),
            str(worker.waiting),
            f"{used}/{worker.num_blocks}" if worker.answers else "?",
            f"{worker.prompt_tokens}/{worker.generated_tokens}",
            "silent" if not worker.answers else "draining" if worker.draining else "serving",
        )
    out.print(table)
