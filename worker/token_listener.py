"""Where routers connect for their token streams."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

import structlog

TICKET_BYTES = 16
TICKET_TIMEOUT_S = 5.0
MAX_STRANGERS = 64
"""Connections that have shown no ticket yet; more wait in the kernel."""

log = structlog.get_logger()

Join = Callable[[socket.socket], None]


class TokenListener:
    """Takes in connections that show a ticket of a session that waits for one. Lives on one event loop."""

    def __init__(self, host: str) -> None:
        """Listens on a free port of `host`. Raises OSError if `host` is no address of this machine."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=MAX_STRANGERS)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._awaited: dict[bytes, Join] = {}
        self._strangers = asyncio.Semaphore(MAX_STRANGERS)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._spawn(self._accept())

    def expect(self, join: Join) -> bytes:
        """A ticket. `join` is called with the connection of whoever shows it first, unless it is forgotten before."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        self._awaited[ticket] = join
        return ticket

    def forget(self, ticket: bytes) -> None:
        """Of no effect once the ticket has been used."""
        self._awaited.pop(ticket, None)

    async def close(self) -> None:
        """Ends connections without a ticket; the others belong to their sessions."""
        self._awaited.clear()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._strangers.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptor left, or it was gone already: routers go on over gRPC
                log.warning("token_stream_not_accepted", reason=str(error))
                self._strangers.release()
                await asyncio.sleep(TICKET_TIMEOUT_S / 10)
                continue
            self._spawn(self._admit(connection))

    async def _admit(self, connection: socket.socket) -> None:
        join: Join | None = None
        try:
            async with asyncio.timeout(TICKET_TIMEOUT_S):
                join = self._awaited.pop(await _read_ticket(connection), None)
        except (TimeoutError, OSError):
            pass
        finally:
            self._strangers.release()
            if join is None:
                connection.close()
        if join is None:
            log.warning("token_stream_refused", reason="no ticket of a session that waits for one was shown")
        else:
            join(connection)

    def _spawn(self, coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _read_ticket(connection: socket.socket) -> bytes:
    connection.setblocking(False)
    loop, ticket = asyncio.get_running_loop(), b""
    while len(ticket) < TICKET_BYTES:
        piece = await loop.sock_recv(connection, TICKET_BYTES - len(ticket))
        if not piece:
            raise ConnectionError("it left")
        ticket += piece
    return ticket
