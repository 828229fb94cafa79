"""What `hermes fetch` asks of a cluster: the run, a token for the store, a way to the store's pod.

All of it goes through the Kubernetes API with the rights of whoever calls: get hermesruns and create
serviceaccounts/token, get services and configmaps, list pods, create pods/portforward. The port-forward
ends at a port of 127.0.0.1: other users of this machine reach it too, and have no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hermes_runtime.document import API_VERSION, HermesRun, read
from hermes_runtime.errors import BadInput, Denied, HermesError, NotFound, PeerLost, Unsupported
from hermes_runtime.evaluate.fetch import fetch
from hermes_runtime.evaluate.folder import RunFolder
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import tcp

Manifest = dict[str, Any]

PLURAL = "hermesruns"
CA_ANNOTATION = "hermes.dev/ca-config-map"
"""On the store's Service: the ConfigMap whose ca.crt signed its certificate."""
AUDIENCE = "hermes-store"
ENDED = ("Succeeded", "Failed")
"""Phases that a run does not leave by itself."""

_REQUEST_SECONDS = 30.0
_TOKEN_SECONDS = 3600
_TOKEN_SECONDS_LEFT_MIN = 300.0
_CALL_SECONDS = 900.0
READY_SECONDS = 30.0
_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where HERMES is installed, in the chart's names."""

    namespace: str = "hermes-system"
    service: str = "hermes-store"
    port: int = 7443
    reader: str = "hermes-reader"
    """ServiceAccount that the store lets read every run."""
    ca_config_map: str = ""
    """ConfigMap with ca.crt; empty: the one that the Service's annotation names, and no TLS if it names
    none."""

    @property
    def server_name(self) -> str:
        """The name in the store's certificate."""
        return f"{self.service}.{self.namespace}.svc"


def run_id_of(run: Mapping[str, Any]) -> str:
    """What a HermesRun is called in the store."""
    told = (run.get("status") or {}).get("runId")
    metadata = run["metadata"]
    return str(told or f"{metadata['namespace']}.{metadata['name']}.{metadata['uid'][:8]}")


def phase_of(run: Mapping[str, Any]) -> str:
    """Where a HermesRun is; "Pending" until the operator has looked at it."""
    return str((run.get("status") or {}).get("phase") or "Pending")


def instances_of(run: Mapping[str, Any], document: HermesRun) -> int:
    """How many instances the run has, by the results that it wants; 0 if that is not known yet."""
    total = int(((run.get("status") or {}).get("progress") or {}).get("total") or 0)
    evaluate = document.spec.evaluate
    arms = len(evaluate.arms) + (evaluate.control != "none")
    return total // arms if total % arms == 0 else 0


def line_of(run: Mapping[str, Any]) -> str:
    """A run's status as one line: phase, results, arms, shards, failure."""
    status = run.get("status") or {}
    words = [phase_of(run)]
    if position := status.get("queuePosition"):
        words.append(f"number {position} in the queue")
    progress = status.get("progress") or {}
    if progress.get("total"):
        words.append(f"{progress.get('done') or 0} of {progress['total']} results")
    if arms := [
        f"{a['name']} {a.get('solved') or 0}/{a.get('done') or 0}" for a in progress.get("arms") or ()
    ]:
        words.append("solved " + ", ".join(arms))
    shards = status.get("shards") or {}
    if shards.get("total"):
        counts = [f"{shards.get(kind) or 0} {kind}" for kind in ("active", "succeeded", "failed")]
        words.append(f"shards: {', '.join(counts)} of {shards['total']}")
    if failure := status.get("failure"):
        words.append(f"{failure.get('who')}: {failure.get('reason')}: {failure.get('message')}")
    return "; ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which run, and whether to wait for its end."""

    namespace: str
    name: str
    run_id: str | None = None
    """What it is called in the store, where the HermesRun is gone."""
    watch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token and the wall-clock time at which it expires."""

    text: str
    expires_at: float


class Api(Protocol):
    """What is asked of Kubernetes. Calls block. They raise NotFound, Denied, PeerLost."""

    def run(self, namespace: str, name: str) -> Manifest:
        """The HermesRun."""
        ...

    def token(self, at: Installation) -> Token:
        """A token of the reader for the store."""
        ...

    def authority(self, at: Installation) -> str | None:
        """The certificate authority (PEM) of the store's certificate; None if it serves no TLS."""
        ...

    def connect(self, at: Installation) -> Connection:
        """A connection to the store's port in its pod."""
        ...


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection to a pod: bytes through `socket`; what went wrong at the other end by `error`."""

    socket: socket.socket
    error: Callable[[], str]


class KubernetesApi:
    """The API through the official client."""

    def __init__(self, *, context: str | None, environment: Mapping[str, str]) -> None:
        """BadInput if no API server is to be found; Unsupported without the `kubernetes` package."""
        try:
            from kubernetes import client, config, stream
        except ImportError as error:
            raise Unsupported(
                "a cluster is asked by Kubernetes' own client, which is not installed: "
                "install hermes-operator[cluster]"
            ) from error
        self._client: Any = client
        self._stream: Any = stream
        self._settings: Any = client.Configuration()
        load: Any = config  # its functions have no types
        try:
            if (
                context is None
                and "KUBERNETES_SERVICE_HOST" in environment
                and "KUBECONFIG" not in environment
            ):
                load.load_incluster_config(client_configuration=self._settings)
            else:
                load.load_kube_config(
                    environment.get("KUBECONFIG"), context=context, client_configuration=self._settings
                )
        except config.ConfigException as error:
            raise BadInput(f"no cluster to ask: {error}; check --context and $KUBECONFIG") from error
        self._core: Any = client.CoreV1Api(client.ApiClient(self._settings))
        self._objects: Any = client.CustomObjectsApi(client.ApiClient(self._settings))

    def run(self, namespace: str, name: str) -> Manifest:
        """See Api."""
        group, version = API_VERSION.split("/")
        with self._asking(f"HermesRun {name} in namespace {namespace}"):
            found: Manifest = self._objects.get_namespaced_custom_object(
                group, version, namespace, PLURAL, name, _request_timeout=_REQUEST_SECONDS
            )
            return found

    def token(self, at: Installation) -> Token:
        """See Api."""
        kinds = self._client
        wanted = kinds.AuthenticationV1TokenRequest(
            spec=kinds.V1TokenRequestSpec(audiences=[AUDIENCE], expiration_seconds=_TOKEN_SECONDS)
        )
        with self._asking(f"a token of ServiceAccount {at.reader} in namespace {at.namespace}"):
            given = self._core.create_namespaced_service_account_token(
                at.reader, at.namespace, wanted, _request_timeout=_REQUEST_SECONDS
            )
        return Token(text=given.status.token, expires_at=given.status.expiration_timestamp.timestamp())

    def authority(self, at: Installation) -> str | None:
        """See Api."""
        name = at.ca_config_map or (self._service(at).metadata.annotations or {}).get(CA_ANNOTATION)
        if not name:
            return None
        with self._asking(f"ConfigMap {name} in namespace {at.namespace}"):
            found = self._core.read_namespaced_config_map(
                name, at.namespace, _request_timeout=_REQUEST_SECONDS
            )
        text = (found.data or {}).get("ca.crt")
        if not text:
            raise NotFound(f"ConfigMap {name} in namespace {at.namespace} has no ca.crt")
        return str(text)

    def connect(self, at: Installation) -> Connection:
        """See Api."""
        pod, port = self._pod(at)
        # Its own client: the library changes the client's methods while it opens a stream.
        core = self._client.CoreV1Api(self._client.ApiClient(self._settings))
        with self._asking(f"a port-forward to pod {pod} in namespace {at.namespace}"):
            forward = self._stream.portforward(
                core.connect_get_namespaced_pod_portforward, pod, at.namespace, ports=str(port)
            )
        theirs = forward.socket(port)
        ours = socket.socket(fileno=os.dup(theirs.fileno()))
        theirs.close()
        return Connection(ours, lambda: forward.error(port) or "")

    def _pod(self, at: Installation) -> tuple[str, int]:
        """A pod of the store that is ready, and the port in it."""
        service = self._service(at)
        selector = ",".join(f"{key}={value}" for key, value in (service.spec.selector or {}).items())
        with self._asking(f"the list of pods in namespace {at.namespace}"):
            pods = self._core.list_namespaced_pod(
                at.namespace, label_selector=selector, _request_timeout=_REQUEST_SECONDS
            ).items
        exposed = next((one for one in service.spec.ports or () if one.port == at.port), None)
        if exposed is None or not selector:
            raise NotFound(
                f"Service {at.service} in namespace {at.namespace} has no port {at.port}: see --store"
            )
        for pod in pods:
            conditions = {one.type: one.status for one in pod.status.conditions or ()}
            if conditions.get("Ready") == "True" and pod.metadata.deletion_timestamp is None:
                return pod.metadata.name, _port_of(exposed.target_port or at.port, pod)
        raise PeerLost(
            f"no pod of Service {at.service} in namespace {at.namespace} is ready: the store is down or "
            "starting"
        )

    def _service(self, at: Installation) -> Any:
        with self._asking(f"Service {at.service} in namespace {at.namespace}"):
            return self._core.read_namespaced_service(
                at.service, at.namespace, _request_timeout=_REQUEST_SECONDS
            )

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Raise what the API server answers as the error of ours it stands for."""
        try:
            yield
        except self._client.ApiException as error:
            status, reason = _answer(error)
            said = f"{status} {reason}".strip()
            match status:
                case 404:
                    raise NotFound(f"{what} is not there ({said})") from error
                case 401 | 403:
                    raise Denied(
                        f"the cluster does not give you {what} ({said}): ask its administrator for the "
                        "right to it; the role hermes-fetch of the installation has all but the run's own"
                    ) from error
                case 400 | 422:
                    raise BadInput(f"{what}: the API server refuses the question ({said})") from error
                case _:
                    raise PeerLost(f"{what}: the API server answers {said}; try again") from error
        except HermesError:
            raise
        except Exception as error:  # urllib3's and the web socket's errors have no base of the client's
            raise PeerLost(f"{what}: no API server answers ({error}); try again") from error


def _answer(error: Any) -> tuple[int, str]:
    """Status and reason of an API error; a web socket's has both in its text."""
    if found := re.match(r"Handshake status (\d+) ([^-+{]*)", str(error.reason)):
        return int(found[1]), found[2].strip()
    return error.status or 0, str(error.reason or "")


def _port_of(target: int | str, pod: Any) -> int:
    """The number of a pod's port. NotFound if the pod has none of that name."""
    if isinstance(target, int):
        return target
    for container in pod.spec.containers:
        for port in container.ports or ():
            if port.name == target:
                return int(port.container_port)
    raise NotFound(f"pod {pod.metadata.name} has no port {target}")


@asynccontextmanager
async def store_of(
    api: Api, at: Installation, *, ready_seconds: float = READY_SECONDS
) -> AsyncIterator[StoreClient]:
    """A client of the cluster's store, which has answered once within `ready_seconds`.

    Raises:
        NotFound, Denied, PeerLost: what stands in the way, and what to do about it.
    """
    authority = await asyncio.to_thread(api.authority, at)
    token = _Renewed(lambda: api.token(at))
    await asyncio.to_thread(token)
    bridge = _Bridge(lambda: api.connect(at))
    with tempfile.TemporaryDirectory(prefix="hermes-") as folder:
        ca_file = None
        if authority is not None:
            ca_file = Path(folder) / "ca.crt"
            ca_file.write_text(authority)
        async with bridge.listening() as address:
            channel = tcp.channel(address, token=token, ca_file=ca_file, server_name=at.server_name)
            async with StoreClient(
                channel, timeout_seconds=_CALL_SECONDS, patience_seconds=ready_seconds
            ) as client:
                try:
                    await client.ready(timeout_seconds=ready_seconds)
                    await client.stat([])
                    yield client
                except PeerLost as error:
                    raise PeerLost(f"{bridge.trouble or error}") from error


class _Renewed:
    """A token, asked for anew before it expires. Asking blocks, once in an hour."""

    def __init__(self, ask: Callable[[], Token], *, clock: Callable[[], float] = time.time) -> None:
        self._ask = ask
        self._clock = clock
        self._token = Token(text="", expires_at=0.0)

    def __call__(self) -> str:
        if self._clock() > self._token.expires_at - _TOKEN_SECONDS_LEFT_MIN:
            self._token = self._ask()
        return self._token.text


class _Bridge:
    """A port of 127.0.0.1 each of whose connections goes on through a connection of its own."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._lines: set[asyncio.Task[None]] = set()
        self.trouble = ""
        """What last went wrong with a connection, in words."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen; the address."""
        # Tasks of its own and not the server's: that one reports a cancelled line as a mistake.
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            lines = set(self._lines)
            for line in lines:
                line.cancel()
            if lines:
                await asyncio.wait(lines)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.get_running_loop().create_task(self._carry(reader, writer), name="line to the store")
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        try:
            connection = await asyncio.to_thread(self._connect)
            far_reader, far_writer = await asyncio.open_connection(sock=connection.socket)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(reader, far_writer), name="to the store")
                    both.create_task(_pump(far_reader, writer), name="from the store")
            finally:
                far_writer.close()
            if said := connection.error():
                self.trouble = f"the store's pod does not answer: {said.strip()}"
        except HermesError as error:
            self.trouble = str(error)
        except OSError as error:
            self.trouble = f"the port-forward broke: {error}"
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, then end the other side too."""
    try:
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass  # one side went away: the other is closed, and whoever called sees it
    finally:
        writer.close()


async def bring(
    api: Api,
    at: Installation,
    wanted: Wanted,
    folder: RunFolder,
    say: Callable[[str], None] = lambda text: None,
    *,
    every_seconds: float = 2.0,
) -> Manifest | None:
    """Bring a run to `folder`; the HermesRun, if it was looked at.

    Raises what `store_of`, `watched` and `fetch` raise.
    """
    run: Manifest | None = None
    document, instances = None, 0
    if wanted.run_id is None:
        if wanted.watch:
            run = await watched(api, wanted.namespace, wanted.name, say, every_seconds=every_seconds)
        else:
            run = await asyncio.to_thread(api.run, wanted.namespace, wanted.name)
            say(line_of(run))
        document = read(run, name=f"HermesRun {wanted.name}")
        instances = instances_of(run, document)
    run_id = run_id_of(run) if run is not None else wanted.run_id
    assert run_id is not None
    async with store_of(api, at) as client:
        await fetch(client, folder, run_id, document=document, instances=instances, say=say)
    return run


async def watched(
    api: Api,
    namespace: str,
    name: str,
    say: Callable[[str], None],
    *,
    every_seconds: float = 2.0,
    patience_seconds: float = 300.0,
) -> Manifest:
    """Follow a run until it ends; each change of its status is said. The run as it ended.

    An API server that is lost is asked again for `patience_seconds`.
    """
    last, answered_at = "", time.monotonic()
    while True:
        try:
            run = await asyncio.to_thread(api.run, namespace, name)
        except PeerLost as error:
            if time.monotonic() - answered_at > patience_seconds:
                raise
            say(str(error))
        else:
            answered_at = time.monotonic()
            if (line := line_of(run)) != last:
                say(line)
                last = line
            if phase_of(run) in ENDED:
                return run
        await asyncio.sleep(every_seconds)
