"""`splice router`"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from router.server import serve
from router.settings import BoundPorts
from splice.cli.console import say
from splice.cli.flags import with_settings
from splice.cluster.router_process import ListeningRouter
from splice.settings.commands import RouterCommandSettings
from splice.settings.parts import router_settings
from wire.errors import ErrorCode, SpliceError


@with_settings(RouterCommandSettings)
def command(
    settings: RouterCommandSettings,
    ready_file: Annotated[Path | None, typer.Option(help="Write the bound ports there as JSON.", hidden=True)] = None,
) -> None:
    """Run one front door: OpenAI HTTP and gRPC for clients, workers found through etcd.

    Routers share nothing; run as many as there are machines that take clients.
    """
    if not settings.etcd_endpoints:
        raise SpliceError(
            ErrorCode.BAD_SETTING, "a router finds workers through etcd: give --etcd-endpoints", param="etcd_endpoints"
        )

    def bound(ports: BoundPorts) -> None:
        gc.freeze()  # what exists by now stays: looking through it for garbage would hold up answers for 20 ms and more
        say(f"router listens on http://{ports.host}:{ports.http}, gRPC on port {ports.grpc}")
        if ready_file is not None:
            partial = ready_file.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(ListeningRouter(ports.host, ports.http, ports.grpc)))
            os.replace(partial, ready_file)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(router_settings(settings), stop, bound)

    uvloop.run(run())
