"""A run of a cluster's store as a run's folder on this machine, with the views of a laptop's run.

Decided here: what is copied (results, events and the blobs they name, of one run id), how the folder is
made again from what each shard left, and how a copy that was cut off goes on. How the store is reached
is not. Every blob, event and result is verified as it comes; the copy only grows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hermes_runtime.document import HermesRun, parse
from hermes_runtime.errors import BadInput, Damaged, HermesError, NotFound, PeerLost, TimedOut
from hermes_runtime.evaluate.folder import Fetched, RunFolder, write_atomically
from hermes_runtime.evaluate.shard import SHARD_EVENT
from hermes_runtime.store import BlobState, Digest, Event, StoredEvent
from hermes_runtime.store.client import StoreClient
from hermes_runtime.store.disk import DiskStore

PAGE_EVENTS = 200
"""Events that are copied between two marks of how far the copy is."""

_AT_ONCE = 8
"""Blobs on their way at a time."""

Say = Callable[[str], None]
T = TypeVar("T")


class _Payload(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    index: int
    instances_jsonl: str
    manifest: str
    document: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What a shard says that it left, in its last word."""

    index: int
    instances: Digest
    manifest: Digest
    document: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a fetch brought, this time."""

    events: int
    blobs: int
    results: int
    """Of the run in all, and not of this time alone."""
    shards: tuple[int, ...]
    """Indexes of the shards that have said what they left."""


def shards_of(events: Iterable[Event]) -> dict[int, Shard]:
    """What each shard left, by its index; of a shard that was tried again the last word counts.

    Raises Malformed or BadInput for an event that does not say it.
    """
    found: dict[int, Shard] = {}
    for event in events:
        if event.type != SHARD_EVENT:
            continue
        known = {digest.hex: digest for digest in event.digests}
        try:
            told = _Payload.model_validate_json(event.payload)
            addresses = [
                known[Digest.hex_of_uri(uri)] for uri in (told.instances_jsonl, told.manifest, told.document)
            ]
        except (ValidationError, KeyError) as error:
            raise BadInput(
                f"stream {event.stream}: a shard's event does not name what it left ({error}); was it "
                "written by another version of HERMES?"
            ) from error
        instances, manifest, document = addresses
        found[told.index] = Shard(index=told.index, instances=instances, manifest=manifest, document=document)
    return dict(sorted(found.items()))


def joined_instances(parts: Sequence[bytes]) -> bytes:
    """The instances of all shards in the order of the shards, each once."""
    lines: dict[str, bytes] = {}
    for part in parts:
        for line in part.splitlines():
            if line.strip():
                lines.setdefault(json.loads(line)["instance_id"], line)
    return b"".join(line + b"\n" for line in lines.values())


def joined_manifest(run_id: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One manifest of many shards': the first one's, with the evidence of all.

    The run is as hermetic as its worst shard: attempts are summed, and what was not counted in one shard
    was not counted.
    """
    if not parts:
        return {}
    first = parts[0]
    body: dict[str, Any] = {
        key: value for key, value in first.items() if key not in ("digest", "loaded", "restarts", "shard")
    }
    body["run_id"] = run_id
    body["hermetic"] = _joined_evidence([part.get("hermetic", {}) for part in parts])
    body["shards"] = [
        {**part.get("shard", {}), "digest": part.get("digest", ""), "host": part.get("host", {})}
        for part in parts
    ]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    restarts: dict[str, int] = {}
    for part in parts:
        for name, count in part.get("restarts", {}).items():
            restarts[name] = restarts.get(name, 0) + count
    return {
        "digest": hashlib.sha256(canonical).hexdigest(),
        **body,
        "loaded": first.get("loaded", {}),
        "restarts": restarts,
    }


def _joined_evidence(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part.get(name) for part in parts]
        if None in values:
            joined[name] = None if name != "counted" else False
        elif all(isinstance(value, bool) for value in values):
            joined[name] = all(values)
        elif all(isinstance(value, int | float) for value in values):
            joined[name] = sum(value for value in values if value is not None)
        elif all(isinstance(value, list) for value in values):
            joined[name] = [item for value in values if value is not None for item in value]
        else:
            different = list(dict.fromkeys(map(str, values)))
            joined[name] = values[0] if len(different) == 1 else ", ".join(different)
    return joined


async def fetch(
    client: StoreClient,
    folder: RunFolder,
    run_id: str,
    *,
    document: HermesRun | None = None,
    instances: int = 0,
    page_events: int = PAGE_EVENTS,
    say: Say = lambda text: None,
) -> Copied:
    """Bring `folder` up to what the store holds of `run_id`. Idempotent; goes on where it was cut off.

    `document` stands in where no shard has left one; `instances` is how many the run has, if it is known.

    Raises:
        BadInput: the folder holds another run.
        NotFound: the store holds nothing of this run.
        Busy: another process works in the folder.
        Damaged: something changed on its way or in one of the stores.
    """
    with folder.locked():
        fetched = _claimed(folder, run_id, instances)
        with closing(await asyncio.to_thread(DiskStore, folder.store)) as local:
            copy = _EventCopy(client, local, folder, fetched, say)
            await copy.run(page_events)
            results = await _copy_results(client, local, run_id)
            found = await asyncio.to_thread(_shards, local, run_id)
            if not copy.fetched.copied_to and not results:
                raise NotFound(
                    f"the store holds nothing of run {run_id}: it has not recorded anything yet, or its id "
                    "is another"
                )
            await asyncio.to_thread(_make_folder, local, folder, run_id, found, document)
        say(f"copied {copy.events} events, {copy.blobs} blobs; {results} results in all")
        return Copied(events=copy.events, blobs=copy.blobs, results=results, shards=tuple(found))


def _claimed(folder: RunFolder, run_id: str, instances: int) -> Fetched:
    """Make the folder this run's. BadInput if it is another's."""
    known = folder.read_fetched()
    if known is None:
        if folder.document.exists() or folder.store.exists():
            raise BadInput(
                f"{folder.root} holds a run of this machine; give another folder with --out, or remove "
                "this one"
            )
        known = Fetched(run_id=run_id)
    if known.run_id != run_id:
        raise BadInput(
            f"{folder.root} holds run {known.run_id} and not {run_id}; give another folder with --out, or "
            "remove this one"
        )
    known = known.model_copy(update={"instances": max(instances, known.instances)})
    folder.write_fetched(known)
    return known


class _EventCopy:
    """The copy of a run's events and the blobs they name, page by page."""

    def __init__(
        self, client: StoreClient, local: DiskStore, folder: RunFolder, fetched: Fetched, say: Say
    ) -> None:
        self._client = client
        self._local = local
        self._folder = folder
        self._say = say
        self.fetched = fetched
        self.events = self.blobs = 0

    async def run(self, page_events: int) -> None:
        """Copy what came after the last mark. A store lost on the way is asked again, if there was a way."""
        while True:
            mark = self.fetched.copied_to
            try:
                await self._once(page_events)
            except (PeerLost, TimedOut) as error:
                if self.fetched.copied_to == mark:
                    raise
                self._say(f"{error}; going on at event {self.fetched.copied_to}")
            else:
                return

    async def _once(self, page_events: int) -> None:
        prefix = f"{self.fetched.run_id}/"
        coming = self._client.events(stream_prefix=prefix, after=self.fetched.copied_to)
        async with aclosing(coming):
            async for page in _pages(coming, page_events):
                named = {digest: None for stored in page for digest in stored.event.digests}
                self.blobs += await _copy_blobs(self._client, self._local, list(named))
                await asyncio.to_thread(_append, self._local, page)
                self.fetched = self.fetched.model_copy(update={"copied_to": page[-1].sequence})
                self._folder.write_fetched(self.fetched)
                self.events += len(page)
                self._say(f"{self.events} events, {self.blobs} blobs")


def _append(local: DiskStore, page: Sequence[StoredEvent]) -> None:
    """Append events in the order of the whole log; those that are there already stay where they are."""
    for stored in page:
        local.append(stored.event)


async def _copy_blobs(client: StoreClient, local: DiskStore, named: Sequence[Digest]) -> int:
    missing = [
        stat.digest
        for stat in await asyncio.to_thread(local.stat, named)
        if stat.state is not BlobState.PRESENT
    ]

    async def copy(digest: Digest) -> None:
        data, _ = await client.get(digest)
        await asyncio.to_thread(local.put, data, digest=digest)

    await _each(missing, copy)
    return len(missing)


async def _copy_results(client: StoreClient, local: DiskStore, run_id: str) -> int:
    """Copy results; how many the run has now."""
    known = dict(await asyncio.to_thread(lambda: list(local.results(run_id))))
    async with aclosing(client.results(run_id)) as coming:
        async for key, data in coming:
            if key in known and known[key] == data:
                continue
            stands, _ = await asyncio.to_thread(local.record_result, key, data)
            if not stands:
                raise Damaged(
                    f"the store has another result of {key.instance} under {key.arm} than was fetched "
                    "before; was it restored from a backup? Fetch to another folder with --out"
                )
            known[key] = data
    return len(known)


def _shards(local: DiskStore, run_id: str) -> dict[int, Shard]:
    return shards_of(stored.event for stored in local.events(stream_prefix=f"{run_id}/shard/"))


def _make_folder(
    local: DiskStore,
    folder: RunFolder,
    run_id: str,
    found: Mapping[int, Shard],
    document: HermesRun | None,
) -> None:
    """Write what the views read beside the store."""
    if found:
        newest = local.get(found[max(found)].document)
        document = parse(newest.decode(), name=f"the document of {run_id}")
    if document is None:
        raise NotFound(
            f"no shard of {run_id} has said yet what it runs, and the HermesRun is gone: nothing to show"
        )
    parts = [local.get(shard.instances) for shard in found.values()]
    write_atomically(folder.instances, joined_instances(parts))
    manifests = [json.loads(local.get(shard.manifest)) for shard in found.values()]
    write_atomically(
        folder.root / "manifest.json", json.dumps(joined_manifest(run_id, manifests), indent=2).encode()
    )
    write_atomically(folder.document, document.to_yaml().encode())


async def _pages(items: AsyncIterator[T], size: int) -> AsyncIterator[list[T]]:
    page: list[T] = []
    async for item in items:
        page.append(item)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


async def _each(items: Iterable[T], do: Callable[[T], Any]) -> None:
    """`do` each of them, some at a time; the first error ends it."""
    todo: Iterator[T] = iter(items)

    async def worker() -> None:
        for item in todo:
            await do(item)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(_AT_ONCE):
                group.create_task(worker(), name=f"copier {number}")
    except ExceptionGroup as failed:
        ours = next((error for error in failed.exceptions if isinstance(error, HermesError)), None)
        raise ours or failed from None


def folder_of(out: Path | None, run: str) -> RunFolder:
    """The folder that a fetch of `run` goes to unless the caller says otherwise."""
    return RunFolder((out or Path("runs") / run).absolute())
