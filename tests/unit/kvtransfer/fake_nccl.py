"""NCCL for fake devices: communicators of two ranks whose bytes pass a Unix socket, and a judge of the order of calls.

As a library that does not block: a communicator is made, and a group launched, some while after the call that began it,
and whoever goes on before `is_settled` said so breaks a rule. Sends and receives are work on the device's stream which
is done when the bytes have gone, or come; that of a peer that died is never done unless the communicator is aborted.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fake_device import FakeDevice

from kvtransfer.nccl_library import NcclError

_ID = struct.Struct("<24s32s72x")
"""name of a socket, and the device of rank 0"""


@dataclass
class Communicator:
    rank: int
    connection: socket.socket | None = None
    listener: socket.socket | None = None
    begun: list[Callable[[], None]] = field(default_factory=list)
    """Reaches its stream when it is asked for the second time."""
    asked: int = 0
    joined: bool = False
    error: str = ""
    aborted: bool = False


class FakeNccl:
    """`nccl_library.Nccl`. `tells`: whether the death of a peer is reported, or the communicator just waits."""

    def __init__(self, device: FakeDevice, *, tells: bool = True) -> None:
        self.communicators: dict[int, Communicator] = {}
        """Not aborted yet."""
        self.num_launched = 0
        """Groups that reached a stream."""
        self.frozen = False
        """Nothing goes or comes, as through a network that lost its way."""
        self._device = device
        self._tells = tells
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._listening: dict[bytes, socket.socket] = {}

    def new_id(self) -> bytes:
        name = secrets.token_hex(12).encode()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(b"\0" + name)
        listener.listen(1)
        listener.setblocking(False)
        self._listening[name] = listener
        return _ID.pack(name, self._device.uuid.encode())

    def join(self, unique_id: bytes, rank: int) -> int:
        name, device = _ID.unpack(unique_id)
        if threading.get_ident() not in self._device.entered:
            self._device.breach("a communicator was begun on a thread without a current device")
        made = Communicator(rank)
        if rank == 0:
            if name not in self._listening:
                self._device.breach("an id was used twice, or rank 0 is not where it was made")
            made.listener = self._listening.pop(name)
        else:
            if device.decode() == self._device.uuid:
                self._device.breach("two ranks on one device")
            made.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connection.connect(b"\0" + name)
            except OSError as error:
                made.connection.close()
                raise NcclError(f"bootstrap: {error}") from error
            made.connection.setblocking(False)
        with self._lock:
            number = next(self._numbers)
            self.communicators[number] = made
        return number

    def is_settled(self, communicator: int) -> bool:
        known = self._known(communicator)
        if known.error and self._tells:
            raise NcclError(known.error)
        if not known.joined:
            self._try_to_join(known)
        if known.begun and known.joined:
            known.asked += 1
            if known.asked < 2:
                return False
            begun, known.begun, known.asked = known.begun, [], 0
            for launch in begun:
                launch()
                self.num_launched += 1
        return known.joined

    def send(self, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        known = self._usable(communicator, peer)
        left = bytearray()
        begun = False

        def is_gone() -> bool:
            nonlocal begun
            if known.aborted:
                return True
            if not begun:
                begun = True
                for span in spans:
                    left.extend(self._device.read(span, nbytes))
            while left and not self.frozen and not known.error:
                try:
                    count = known.connection.send(left)
                except BlockingIOError:
                    break
                except OSError as error:
                    known.error = f"remote process exited: {error}"
                    break
                del left[:count]
            return not left

        def launch() -> None:
            reads = [(span, nbytes) for span in spans]
            self._device.launch(lambda: None, reads, [], stream, may_race=True, is_ready=is_gone)

        known.begun.append(launch)

    def receive(self, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        known = self._usable(communicator, peer)
        come = bytearray()
        total = nbytes * len(spans)

        def has_come() -> bool:
            if known.aborted:
                return True
            while len(come) < total and not self.frozen and not known.error:
                try:
                    part = known.connection.recv(total - len(come))
                except BlockingIOError:
                    break
                except OSError:
                    part = b""
                if not part:
                    known.error = "remote process exited"
                    break
                come.extend(part)
            return len(come) == total

        def run() -> None:
            if not known.aborted:
                for i, span in enumerate(spans):
                    self._device.write(span, bytes(come[i * nbytes : (i + 1) * nbytes]))

        def launch() -> None:
            self._device.launch(run, [], [(span, nbytes) for span in spans], stream, is_ready=has_come)

        known.begun.append(launch)

    def abort(self, communicator: int) -> None:
        known = self._known(communicator)
        with self._lock:
            del self.communicators[communicator]
        known.begun.clear()
        known.aborted = True
        for each in (known.connection, known.listener):
            if each is not None:
                each.close()

    def _try_to_join(self, known: Communicator) -> None:
        """Rank 0 says so when rank 1 has come."""
        with suppress(BlockingIOError):
            if known.listener is not None:
                known.connection, _ = known.listener.accept()
                known.listener.close()
                known.listener = None
                known.connection.setblocking(False)
                known.connection.send(b"\1")
                known.joined = True
            else:
                try:
                    known.joined = known.connection.recv(1) == b"\1"
                except ConnectionError:
                    known.joined = False
                if not known.joined:
                    known.error = "bootstrap: the peer has gone"

    def _known(self, communicator: int) -> Communicator:
        with self._lock:
            known = self.communicators.get(communicator)
        if known is None:
            self._device.breach("a communicator was used that is none, or none any more")
        return known

    def _usable(self, communicator: int, peer: int) -> Communicator:
        known = self._known(communicator)
        if not known.joined or known.begun:
            self._device.breach("a communicator was used before it had settled")
        if peer == known.rank:
            self._device.breach("a rank sends to itself")
        return known
