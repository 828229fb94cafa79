"""The kopf shell: discovery, watches, login. Each handler remembers what it saw and wakes the run's key.

kopf's handlers for creation and change, its finalizers, annotations, timers, peering and Events are not
used: nothing but GET leaves it. What a watch has lost is healed by own lists: one after each list of
kopf's own, when the watch is open again, and one every so often. kopf hides bookmarks from handlers, so
that a watch is alive is read off its HTTP response.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import aiohttp
import kopf
from kopf._cogs.structs.ephemera import AnyMemo
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from lightkube.config.kubeconfig import SingleConfig

from hermes_operator import names
from hermes_operator.cache import Cache, Kind
from hermes_operator.metrics import Metrics
from hermes_operator.observed import RunKey
from hermes_operator.reconcile import PAGE_OBJECTS, ApiFailure
from hermes_operator.status import Manifest

log = logging.getLogger(__name__)

INACTIVITY_OF_SILENCE = 0.4
"""kopf opens a silent watch anew after this part of the silence that fails /livez: 72 s of 180."""

_PLURALS = {Kind.RUN: names.PLURAL, Kind.JOB: "jobs", Kind.POD: "pods"}
_KINDS = {plural: kind for kind, plural in _PLURALS.items()}


class Watch(NamedTuple):
    """One watch: a kind in a namespace."""

    kind: Kind
    namespace: str


@dataclass(slots=True)
class _State:
    heard_at: float | None = None
    """When any byte of it came last, or when it was first waited for; None: it was not yet."""
    is_listed_by_kopf: bool = False
    """kopf has listed and not opened the watch since."""
    is_due: bool = False
    """It is open, and an own list is due."""
    is_primed: bool = False
    """An own list was taken since it was first open."""


class Watches:
    """How the watches are: pure, fed by what is seen of HTTP."""

    def __init__(self, namespaces: Iterable[str], *, silence_seconds_max: float) -> None:
        self._silence_seconds_max = silence_seconds_max
        self._states = {Watch(kind, one): _State() for one in namespaces for kind in Kind}

    def begin(self, now: float) -> None:
        """From now on silence counts."""
        for state in self._states.values():
            state.heard_at = now

    def __contains__(self, watch: object) -> bool:
        return watch in self._states

    def listed(self, watch: Watch) -> None:
        """kopf has listed: what changes before its watch is open may be lost."""
        self._states[watch].is_listed_by_kopf = True

    def opened(self, watch: Watch) -> bool:
        """The watch is open. True: an own list is due now."""
        state = self._states[watch]
        if state.is_listed_by_kopf:
            state.is_listed_by_kopf = False
            state.is_due = True
        return state.is_due

    def heard(self, watch: Watch, now: float) -> None:
        """The watch said something, be it a bookmark."""
        self._states[watch].heard_at = now

    def list_is_due(self) -> list[Watch]:
        """Watches whose own list is due."""
        return [watch for watch, state in self._states.items() if state.is_due]

    def all(self) -> list[Watch]:
        """Every watch."""
        return list(self._states)

    def in_step(self, watch: Watch) -> None:
        """An own list was taken and remembered."""
        state = self._states[watch]
        state.is_due = False
        state.is_primed = True

    @property
    def are_primed(self) -> bool:
        """Everything was listed once with its watch open: decisions have the whole picture."""
        return all(state.is_primed for state in self._states.values())

    def silence_seconds(self, now: float) -> float:
        """How long the quietest watch has said nothing."""
        return max(_silence(state, now) for state in self._states.values())

    def silent(self, now: float) -> list[Watch]:
        """Watches that have said nothing for too long."""
        return [
            watch for watch, state in self._states.items() if _silence(state, now) > self._silence_seconds_max
        ]


def _silence(state: _State, now: float) -> float:
    return 0.0 if state.heard_at is None else now - state.heard_at


class ListApi(Protocol):
    """What healing needs of the Kubernetes API. Every method raises ApiFailure."""

    async def knows_runs(self, namespace: str) -> bool:
        """Whether the custom resource definition is installed."""

    async def list_all(self, kind: Kind, namespace: str, seen: Callable[[Manifest], None]) -> str:
        """Show every object of ours; the version that the list is of."""


class Watcher:
    """Feeds the cache from watches and lists, and wakes what has changed."""

    def __init__(
        self,
        *,
        cache: Cache,
        watches: Watches,
        api: ListApi,
        metrics: Metrics,
        wake: Callable[[Collection[RunKey]], None],
        clock: Callable[[], float],
        resync_seconds: float,
    ) -> None:
        self.watches = watches
        self.primed = asyncio.Event()
        """Set once the cache has the whole picture."""
        self._cache = cache
        self._api = api
        self._metrics = metrics
        self._wake = wake
        self._clock = clock
        self._resync_seconds = resync_seconds
        self._list_is_due = asyncio.Event()

    def saw(self, kind: Kind, change: str | None, manifest: Manifest) -> None:
        """A watch told of an object; `change` as in the API, None for kopf's list."""
        self._metrics.watch_events.labels(kind.value).inc()
        if change == "DELETED":
            key = self._cache.forget(kind, manifest)
        else:
            key = self._cache.remember(kind, manifest)
        if key is not None:
            self._wake((key,))

    def answered(self, request: aiohttp.RequestInfo, status: int) -> Watch | None:
        """The API answered kopf; the watch that this response is the stream of, if it is one."""
        watch = _watch(request)
        is_stream = request.url.query.get("watch") == "true"
        plural = request.url.path.rpartition("/")[2]
        verb = "watch" if is_stream else "list" if watch is not None else "get"
        self._metrics.count_request(verb, plural if watch is not None else "discovery", str(status))
        if watch is None or watch not in self.watches or status != 200:
            return None
        if not is_stream:
            self.watches.listed(watch)
            return None
        if self.watches.opened(watch):
            self._list_is_due.set()
        return watch

    def heard(self, watch: Watch) -> None:
        """Bytes came."""
        self.watches.heard(watch, self._clock())

    async def installed(self, namespace: str) -> None:
        """Return once runs can be listed: kopf would never look for their definition again."""
        for delay in Backoffs():
            try:
                if await self._api.knows_runs(namespace):
                    break
                log.warning(
                    "the custom resource definition %s.%s is not installed: "
                    "install the chart's, or hermes-operator crd | kubectl apply -f -",
                    names.PLURAL,
                    names.GROUP,
                )
            except ApiFailure as failure:
                log.warning("runs cannot be listed: %s", failure)
            await asyncio.sleep(delay)
        self.watches.begin(self._clock())

    async def heal(self) -> None:
        """Take own lists for ever: at once where one is due, and of everything every so often."""
        whole_at = self._clock() + self._resync_seconds
        while True:
            try:
                async with asyncio.timeout(max(0.0, whole_at - self._clock())):
                    await self._list_is_due.wait()
                due = self.watches.list_is_due()
            except TimeoutError:
                # Before everything is primed the watches themselves say when to list.
                due = self.watches.all() if self.watches.are_primed else []
                whole_at = self._clock() + self._resync_seconds
            self._list_is_due.clear()
            for watch in due:
                await self._list(watch)
            if self.watches.are_primed:
                self.primed.set()

    async def _list(self, watch: Watch) -> None:
        for delay in Backoffs():
            try:
                await self._list_once(watch)
            except ApiFailure as failure:
                log.warning("listing failed: %s", failure)
                await asyncio.sleep(delay)
            else:
                self.watches.in_step(watch)
                return

    async def _list_once(self, watch: Watch) -> None:
        present: set[str] = set()
        changed: set[RunKey] = set()

        def seen(manifest: Manifest) -> None:
            present.add(str(manifest["metadata"]["name"]))
            key = self._cache.remember(watch.kind, manifest)
            if key is not None:
                changed.add(key)

        version = await self._api.list_all(watch.kind, watch.namespace, seen)
        changed.update(self._cache.drop_absent(watch.kind, watch.namespace, present, version))
        self._metrics.resyncs.labels(watch.kind.value).inc()
        self._metrics.healed.labels(watch.kind.value).inc(len(changed))
        self._wake(changed)


class Backoffs:
    """Delays between tries of a request, without end: a watch is never given up."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.2
        while True:
            yield delay
            delay = min(delay * 2, 15.0)


def registry(watcher: Watcher, config: SingleConfig) -> kopf.OperatorRegistry:
    """kopf's handlers: one for each kind, and the login."""
    found = kopf.OperatorRegistry()

    def watched(kind: Kind) -> Callable[..., Any]:
        async def saw(type: str | None, event: kopf.RawEvent, **_: Any) -> None:
            watcher.saw(kind, type, dict(event["object"]))

        return saw

    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.AiohttpSession:
        return _session(watcher, config, settings)

    kopf.on.login(registry=found)(login)
    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=found, id="run")(watched(Kind.RUN))
    kopf.on.event("batch", "v1", "jobs", registry=found, id="job")(watched(Kind.JOB))
    kopf.on.event("v1", "pods", registry=found, id="pod")(watched(Kind.POD))
    return found


def kopf_settings(watch_silence_seconds: float) -> kopf.OperatorSettings:
    """kopf as a watcher and nothing else."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.scanning.disabled = True
    found.peering.standalone = True
    found.process.ultimate_exiting_timeout = None
    found.watching.inactivity_timeout = watch_silence_seconds * INACTIVITY_OF_SILENCE
    found.watching.label_selectors["batch", "v1", "jobs"] = names.SELECTOR
    found.watching.label_selectors["v1", "pods"] = names.SELECTOR
    found.watching.chunk_size = PAGE_OBJECTS
    found.watching.connect_timeout = 10.0
    found.networking.connect_timeout = 10.0
    found.networking.request_timeout = 60.0
    found.networking.error_backoffs = Backoffs()
    found.persistence.diffbase_storage = _NoDiffBase()
    found.persistence.progress_storage = _NoProgress()
    # A worker of kopf's holds the whole object until it ends, and there is one for each object.
    found.queueing.idle_timeout = 0.05
    found.queueing.exit_timeout = 0.5
    return found


async def watch(
    watcher: Watcher,
    *,
    namespaces: Collection[str],
    config: SingleConfig,
    watch_silence_seconds: float,
    stop: asyncio.Event,
    take_signals: Callable[[], None],
) -> None:
    """Watch until `stop` is set; raises if kopf fails."""
    await watcher.installed(next(iter(namespaces)))
    tasks = await kopf.spawn_tasks(
        registry=registry(watcher, config),
        settings=kopf_settings(watch_silence_seconds),
        memories=_NoMemories(),
        namespaces=list(namespaces),
        standalone=True,
        stop_flag=stop,
    )
    take_signals()  # kopf has taken them for itself
    await kopf.run_tasks(tasks, ignored=_AllTasks())


class _NoDiffBase(kopf.DiffBaseStorage):
    """What kopf compares objects by, for handlers of changes. There are none, and it is half of its time."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: object) -> None:
        raise AssertionError("nothing of kopf's is written into objects")


class _NoProgress(kopf.ProgressStorage):
    """Where kopf keeps how far handlers of changes are. There are none."""

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        raise AssertionError("nothing of kopf's is written into objects")

    def purge(self, **_: object) -> None:
        return None

    def touch(self, **_: object) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class _NoMemories(ResourceMemories):
    """What kopf remembers of each object, for daemons and handlers of changes: 1 KB an object, for ever."""

    async def recall(
        self,
        raw_body: kopf.RawBody,
        *,
        memobase: AnyMemo | None = None,
        noticed_by_listing: bool = False,
        ephemeral: bool = False,
    ) -> ResourceMemory:
        return await super().recall(
            raw_body, memobase=memobase, noticed_by_listing=noticed_by_listing, ephemeral=True
        )


class _AllTasks(Collection[Any]):
    """kopf takes every task that began after it for its own, and would wait for and cancel the workers.

    Its own end with the tasks that it is given here to run.
    """

    def __contains__(self, task: object) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _session(watcher: Watcher, config: SingleConfig, settings: kopf.OperatorSettings) -> kopf.AiohttpSession:
    """kopf's session, made of what kopf itself finds, at the address that our own client uses."""
    logger = logging.getLogger("kopf.login")
    found = kopf.login_with_service_account(logger=logger, settings=settings)
    found = found or kopf.login_with_kubeconfig(logger=logger, settings=settings)
    if found is None:
        raise kopf.LoginError("no service account and no kubeconfig: set KUBECONFIG or run in a pod")
    found = replace(found, server=config.cluster.server)
    connector = aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context())
    return kopf.AiohttpSession(
        server=found.server,
        default_namespace=found.default_namespace,
        aiohttp_session=aiohttp.ClientSession(
            connector=connector,
            headers=found.as_http_headers(),
            response_class=_heard_responses(watcher),
        ),
    )


def _heard_responses(watcher: Watcher) -> type[aiohttp.ClientResponse]:
    """Responses that tell the watcher of themselves and of every chunk of a watch."""

    class Heard(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            found = await super().start(connection)
            stream = watcher.answered(self.request_info, self.status)
            if stream is not None:
                self.content = _HeardContent(self.content, lambda: watcher.heard(stream))  # type: ignore[assignment]  # delegates all else
            return found

    return Heard


class _HeardContent:
    """A response's body that tells of every chunk that is read."""

    def __init__(self, content: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._content = content
        self._heard = heard

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._content.iter_chunked(size):
            self._heard()
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)


def _watch(request: aiohttp.RequestInfo) -> Watch | None:
    """Which kind in which namespace the request is about."""
    if request.method != "GET":
        return None
    match request.url.path.split("/"):
        case [*_, "namespaces", namespace, plural] if plural in _KINDS:
            return Watch(_KINDS[plural], namespace)
    return None
