"""Connections to etcd's members: one channel per endpoint, the next one tried when one fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from membership.errors import EtcdError, EtcdUnavailableError
from wire.errors import ErrorCode, SpliceError
from wire.etcd import etcd_pb2_grpc

_Answer = TypeVar("_Answer")

_OPTIONS: list[tuple[str, Any]] = [
    # A black-holed server is noticed in 6 + 3 s. etcd refuses pings more often than every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC waits up to two minutes by default before it tries a returning server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A list of ten thousand workers is about 10 MB.
    ("grpc.max_receive_message_length", 64 << 20),
    # etcd is inside the cluster: a proxy meant for the outside world must not see it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

_ENDPOINT_FAILED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
_ENDPOINT = re.compile(r"(?:(https?)://)?(\[[0-9a-fA-F:]+\]|[^\s/:@]+):(\d{1,5})/?")


@dataclass(frozen=True, slots=True)
class EtcdTLS:
    """PEM texts. `client_cert` and `client_key` go together: etcd takes the certificate's common name as the user."""

    root_cert: bytes | None = None
    client_cert: bytes | None = None
    client_key: bytes | None = None

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise SpliceError(
                ErrorCode.BAD_SETTING, "a client certificate and its key must be given together", param="etcd_tls"
            )


class Member:
    """One endpoint and its stubs."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.kv: Any = etcd_pb2_grpc.KVStub(channel)
        self.lease: Any = etcd_pb2_grpc.LeaseStub(channel)
        self.watch: Any = etcd_pb2_grpc.WatchStub(channel)
        self.maintenance: Any = etcd_pb2_grpc.MaintenanceStub(channel)


class Members:
    """Owns the channels; remembers which endpoint answered last and starts there."""

    def __init__(self, endpoints: Sequence[str] | str, tls: EtcdTLS | None) -> None:
        self.addresses, self._secure = parse_endpoints(endpoints, tls is not None)
        self._tls = tls or EtcdTLS()
        self._opened: dict[str, Member] = {}
        self._at = 0

    @property
    def current(self) -> Member:
        return self._member(self.addresses[self._at])

    def failed(self, member: Member) -> None:
        """Go to the next endpoint, unless somebody else already did."""
        if self.addresses[self._at] == member.address:
            self._at = (self._at + 1) % len(self.addresses)

    async def call(self, what: str, timeout_s: float, ask: Callable[[Member, float], Awaitable[_Answer]]) -> _Answer:
        """Ask the members in turn, each once, within `timeout_s` altogether.

        Raises EtcdUnavailableError when none answers, EtcdError when one refuses.
        """
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + timeout_s
        causes: list[str] = []
        for members_left in range(len(self.addresses), 0, -1):
            left_s = deadline_s - now_s()
            if left_s <= 0:
                break
            member = self.current
            try:
                return await ask(member, left_s / members_left)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ENDPOINT_FAILED:
                    raise refusal(what, member.address, error) from error
                causes.append(f"{member.address}: {error.code().name} {error.details()}")
                self.failed(member)
        raise EtcdUnavailableError(self.addresses, what, causes)

    async def close(self) -> None:
        for member in self._opened.values():
            await member.channel.close(None)
        self._opened.clear()

    def _member(self, address: str) -> Member:
        member = self._opened.get(address)
        if member is None:
            member = self._opened[address] = Member(address, self._open(address))
        return member

    def _open(self, address: str) -> grpc.aio.Channel:
        if not self._secure:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(self._tls.root_cert, self._tls.client_key, self._tls.client_cert)
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


def refusal(what: str, address: str, error: grpc.aio.AioRpcError) -> EtcdError:
    """What etcd said, with what to do about the cases an operator meets."""
    details = error.details() or error.code().name
    remedy = "see etcd's log"
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        remedy = "free space in etcd (compact, defragment) and disarm its alarm; serving goes on meanwhile"
    elif error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        remedy = "give this user read and write rights on /splice/, or a client certificate of a user who has them"
    return EtcdError(f"etcd at {address} refused {what}: {details}; {remedy}", status=error.code())


def parse_endpoints(endpoints: Sequence[str] | str, secure: bool) -> tuple[tuple[str, ...], bool]:
    """`host:port`, `http://host:port` or `https://host:port`, a sequence or comma-separated → addresses, TLS or not.

    https asks for TLS by itself (system roots when no root certificate is given); mixing it with http is an error.
    """
    texts = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    addresses: list[str] = []
    schemes: set[str] = set()
    for text in texts:
        match = _ENDPOINT.fullmatch(text.strip())
        if match is None or not 0 < int(match[3]) < 65536:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"{text!r} is no etcd endpoint; write host:port, http://host:port or https://host:port",
                param="etcd_endpoints",
            )
        schemes.add(match[1] or ("https" if secure else "http"))
        addresses.append(f"{match[2]}:{int(match[3])}")
    if len(schemes) != 1 or (secure and schemes != {"https"}):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"etcd endpoints {texts!r} must be one or more, all http or all https (https when certificates are given)",
            param="etcd_endpoints",
        )
    return tuple(dict.fromkeys(addresses)), schemes == {"https"}
