"""gRPC over TCP: how the store is served to other pods, and the channel that leads to it.

Decided here: TLS where there is a certificate, which is read again for every connection so that it may
rotate; a token that is read from its file for every call, for the same reason; and pings, which turn a
host that vanished into PeerLost in seconds. Who may call is `store/authenticate.py`. Without TLS a token
travels readable: only for networks where nobody else listens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc import aio

from hermes_runtime.errors import BadInput, Unauthenticated
from hermes_runtime.supervise import rpc

TOKEN_KEY = "authorization"
_PREFIX = "Bearer "

_CALLER_OPTIONS: list[tuple[str, Any]] = [
    *(option for option in rpc.OPTIONS if option[0] != "grpc.min_reconnect_backoff_ms"),
    # Longest that one attempt may take, whatever gRPC calls it: TLS, or a port-forward, takes seconds on a
    # busy or distant cluster. What is refused at once is tried again at once.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.so_reuseport", 0),  # two servers on one port would each get some of the calls
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where to listen; with a certificate and its key (PEM files), only by TLS."""

    host: str
    port: int
    """0: any that is free."""
    certificate: Path | None = None
    key: Path | None = None

    @property
    def options(self) -> list[tuple[str, Any]]:
        """See rpc.Listener."""
        return _SERVER_OPTIONS

    def open(self, server: aio.Server) -> str:
        """See rpc.Listener."""
        address = f"{self.host}:{self.port}"
        if self.certificate is None or self.key is None:
            port = server.add_insecure_port(address)
        else:
            files = _Certificate(self.certificate, self.key)
            proof = grpc.dynamic_ssl_server_credentials(
                files.read(),
                files.renewed,  # type: ignore[arg-type]  # None means no change; the stubs do not know
                require_client_authentication=False,
            )
            port = server.add_secure_port(address, proof)
        return f"{self.host}:{port}"


class _Certificate:
    """A certificate and its key as they lie on the disk now."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._known: tuple[bytes, bytes] = (b"", b"")

    def read(self) -> grpc.ServerCertificateConfiguration:
        """BadInput if a file cannot be read."""
        try:
            self._known = (self._certificate.read_bytes(), self._key.read_bytes())
        except OSError as error:
            raise BadInput(f"the certificate or its key cannot be read: {error}") from error
        certificate, key = self._known
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use for the next connection; None: the same as before. Runs in a thread of gRPC."""
        before = self._known
        try:
            now = self.read()
        except BadInput:  # in the middle of being replaced: the old one still serves
            return None
        return now if self._known != before else None


def address_of(text: str) -> tuple[str, int]:
    """Host and port of "host:port". BadInput for anything else."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
    if found is None or int(found[2]) > 65535:
        raise BadInput(f"{text!r} is no address: give host:port, for example 0.0.0.0:7443")
    return found[1], int(found[2])


def token_of_file(file: Path) -> Callable[[], str]:
    """Reads the token each time that it is asked for."""

    def token() -> str:
        try:
            return file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unauthenticated(f"the token in {file} cannot be read: {error}") from error

    return token


def token_in(metadata: Any) -> str | None:
    """The token that a caller showed; None if it showed none."""
    for key, value in metadata or ():
        if key == TOKEN_KEY and isinstance(value, str) and value.startswith(_PREFIX):
            return value.removeprefix(_PREFIX).strip() or None
    return None


def channel(
    address: str,
    *,
    token: Callable[[], str] | None = None,
    ca_file: Path | None = None,
    server_name: str = "",
) -> aio.Channel:
    """A channel to the server at `address` ("host:port"). The caller closes it.

    `ca_file` (PEM) switches TLS on; `server_name` is the name in the certificate, where `address` is
    another (a port-forward). `token` is asked before each call.
    """
    address_of(address)
    options = list(_CALLER_OPTIONS)
    if ca_file is None:
        bare = aio.insecure_channel(address, options=options)
    else:
        try:
            authority = ca_file.read_bytes()
        except OSError as error:
            raise BadInput(f"the certificate authority in {ca_file} cannot be read: {error}") from error
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        bare = aio.secure_channel(address, grpc.ssl_channel_credentials(authority), options=options)
    return bare if token is None else _WithToken(bare, token)


class _WithToken(aio.Channel):
    """A channel whose every call shows a token. gRPC's own way to do so demands TLS."""

    def __init__(self, bare: aio.Channel, token: Callable[[], str]) -> None:
        self._bare = bare
        self._token = token

    async def __aenter__(self) -> _WithToken:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bare.close(None)

    async def close(self, grace: float | None = None) -> None:
        await self._bare.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._bare.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._bare.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._bare.channel_ready()

    def unary_unary(self, *words: Any, **named: Any) -> Any:
        return self._showing(self._bare.unary_unary(*words, **named))

    def unary_stream(self, *words: Any, **named: Any) -> Any:
        return self._showing(self._bare.unary_stream(*words, **named))

    def stream_unary(self, *words: Any, **named: Any) -> Any:
        return self._showing(self._bare.stream_unary(*words, **named))

    def stream_stream(self, *words: Any, **named: Any) -> Any:
        return self._showing(self._bare.stream_stream(*words, **named))

    def _showing(self, method: Any) -> Any:
        def call(*words: Any, metadata: Any = (), **named: Any) -> Any:
            shown = (*(metadata or ()), (TOKEN_KEY, _PREFIX + self._token()))
            return method(*words, metadata=shown, **named)

        return call
