"""One shard of a run in a pod: prepare, seal, wait for the sidecars, do the shard's instances, tell.

Decided here: which instances are the shard's, what it leaves in the store, its exit code and whose fault
a failure is. A result that is recorded is never made again, whichever attempt recorded it; the work itself
is desk.py, as on one machine. The processes are started by Kubernetes, the report is made by who
fetches the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from hermes_runtime.document import DocumentError, HermesRun, parse
from hermes_runtime.errors import (
    BadInput,
    Damaged,
    Denied,
    Exhausted,
    HermesError,
    NotFound,
    PeerLost,
    StaleWriter,
    TimedOut,
    Unauthenticated,
    Unsupported,
)
from hermes_runtime.evaluate.folder import RunFolder
from hermes_runtime.evaluate.run import apart, manifest_of, say_prepared, sealed
from hermes_runtime.evaluate.termination import Failure, Termination
from hermes_runtime.supervise.seal import Seal, evidence

if TYPE_CHECKING:
    from hermes_runtime.evaluate.instances import Instance
    from hermes_runtime.store import Digest
    from hermes_runtime.store.client import StoreClient

SHARD_EVENT = "shard"
"""Type of the event that says where what the shard left is."""

DONE, FAILED, USER_CAN_MEND, TERMINATED = 0, 1, 2, 143
"""Exit codes. The second is tried again by Kubernetes, the third is not."""

STOP_SECONDS = 4.0
"""From SIGTERM to the end, whatever goes on."""

SHARDS_AT_HEAD_MAX = 8
"""Times that the shard's event is tried while another process writes to its stream too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to do, where."""

    document: str
    """The run document, as JSON or YAML."""
    run_id: str
    index: int
    """Which shard, from 0."""
    attempt: int
    sockets: Path
    """Folder of the sidecars' sockets."""
    work: Path
    """Folder for the instances' trees; the agents see it at the same place."""
    models: Path
    """Where models are; relative paths of the document start here."""
    cache: Path
    termination_log: Path | None = None
    json_progress: bool = False


class Terminated(BaseException):
    """SIGTERM came."""


def shard(request: Request) -> int:
    """Do the shard; its exit code. Everything that goes wrong is in the termination message."""
    told = Termination()
    is_preparing = True
    with _on_sigterm(lambda: _tell_terminated(request, told)):
        try:
            told.write(request.termination_log)
            document = parse(request.document, name="HERMES_RUN_DOCUMENT")
            folder = RunFolder(request.work / f"shard-{request.index}")
            size = document.spec.shard_size
            part = slice(request.index * size, (request.index + 1) * size)
            with folder.locked():
                folder.claim(document)
                if not folder.prepared.exists():
                    apart(lambda: _prepare(request, document, folder, part))
                is_preparing = False
                wall = sealed(document)
                # Only now: what follows brings threads, and a seal must come before the first of them.
                asyncio.run(_drive(request, document, folder, part, wall, told))
            return DONE
        except Terminated:
            return TERMINATED
        except Exception as raised:
            error = _first(raised)
            told.failure, code = failure_of(error, is_preparing=is_preparing)
            if not isinstance(error, HermesError | DocumentError):
                traceback.print_exception(error)
            print(f"hermes: {told.failure.message}", file=sys.stderr, flush=True)
            told.write(request.termination_log)
            return code


def _prepare(request: Request, document: HermesRun, folder: RunFolder, part: slice) -> None:
    from hermes_runtime.evaluate.prepare import prepare

    prepare(
        document,
        folder,
        base=request.models,
        models=request.models,
        cache=request.cache,
        part=part,
        say=say_prepared,
    )


async def _drive(
    request: Request,
    document: HermesRun,
    folder: RunFolder,
    part: slice,
    wall: Seal | None,
    told: Termination,
) -> None:
    """Do the work, or be told to end."""
    working = asyncio.create_task(_work(request, document, folder, part, wall, told), name="work")
    came = asyncio.Event()

    def terminate() -> None:
        came.set()
        _tell_terminated(request, told)
        working.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        await working
    except asyncio.CancelledError:
        if came.is_set():
            raise Terminated from None
        raise


async def _work(
    request: Request,
    document: HermesRun,
    folder: RunFolder,
    part: slice,
    wall: Seal | None,
    told: Termination,
) -> None:
    from hermes_runtime.agents.service import PATIENCE_SECONDS
    from hermes_runtime.evaluate.desk import Desk
    from hermes_runtime.evaluate.instances import read_instances
    from hermes_runtime.evaluate.prepare import Prepared
    from hermes_runtime.evaluate.processes import Sockets
    from hermes_runtime.evaluate.progress import JsonProgress, LineProgress
    from hermes_runtime.evaluate.reporting import Reporting
    from hermes_runtime.evaluate.sidecars import Sidecars, of_the_pod
    from hermes_runtime.store.client import StoreClient

    def tell() -> None:
        told.write(request.termination_log)

    prepared = Prepared.model_validate_json(folder.prepared.read_bytes())
    instances = list(read_instances(folder.instances))[part]
    at = Sockets(request.sockets)
    progress = Reporting((JsonProgress if request.json_progress else LineProgress)(sys.stderr), told, tell)
    async with (
        Sidecars(at) as sidecars,
        StoreClient(at.of("store"), patience_seconds=PATIENCE_SECONDS) as store,
    ):
        model = told.loaded = await sidecars.start(document.spec.pre_running_deadline_seconds)
        desk = Desk(document, folder, prepared, instances, sidecars, at, progress, run=request.run_id)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(sidecars.watch(), name="watch the sidecars")
            await desk.run()
            watching.cancel()
        refused = await sidecars.refused()
        hermetic = of_the_pod(evidence(wall), refused)
        body = manifest_of(document, prepared, model, hermetic)
        body["run_id"] = request.run_id
        body["restarts"] = {name: len(starts) - 1 for name, starts in refused.items() if starts}
        body["shard"] = {"index": request.index, "attempt": request.attempt, "instances": len(instances)}
        told.hermetic = body["hermetic"]
        told.manifest = await _leave(request, document, instances, body, store)
        tell()
        progress.run_finished(folder.root)


async def _leave(
    request: Request,
    document: HermesRun,
    instances: Sequence[Instance],
    manifest: dict[str, Any],
    store: StoreClient,
) -> str:
    """Leave in the store what a run's folder is made of again; the manifest's address."""
    from hermes_runtime.evaluate.instances import to_line

    lines = "".join(to_line(instance) + "\n" for instance in instances)
    parts = {
        "instances_jsonl": lines.encode(),
        "manifest": json.dumps(manifest, indent=2).encode(),
        "document": document.to_yaml().encode(),
    }
    digests = {name: (await store.put(data))[0] for name, data in parts.items()}
    payload = {"index": request.index, **{name: digest.uri for name, digest in digests.items()}}
    await _append(
        f"{request.run_id}/shard/{request.index}",
        json.dumps(payload).encode(),
        tuple(digests.values()),
        store,
    )
    return digests["manifest"].uri


async def _append(stream: str, payload: bytes, digests: tuple[Digest, ...], store: StoreClient) -> None:
    """Append the shard's event; the last one of the stream counts. The event keeps its blobs."""
    from hermes_runtime.store import Event

    for tried in range(1, SHARDS_AT_HEAD_MAX + 1):
        event = Event(
            stream=stream,
            type=SHARD_EVENT,
            payload=payload,
            previous=await store.head(stream),
            written_at=datetime.now(UTC),
            digests=digests,
        )
        try:
            await store.append(event)
        except StaleWriter:
            if tried == SHARDS_AT_HEAD_MAX:
                raise
        else:
            return


# What went wrong


def failure_of(error: BaseException, *, is_preparing: bool) -> tuple[Failure, int]:
    """Whose failure it is, and the exit code. `is_preparing`: before anything ran."""
    from hermes_runtime.evaluate.sidecars import SidecarLost

    message = str(error) or type(error).__name__
    match error:
        case DocumentError():
            return Failure(who="user", reason="BadInput", message=message), USER_CAN_MEND
        case BadInput() | NotFound() if is_preparing:
            return Failure(who="user", reason="BadInput", message=message), USER_CAN_MEND
        case Damaged() if is_preparing:
            return Failure(who="model", reason="ModelFailed", message=message), FAILED
        case SidecarLost(name="model"):
            return Failure(who="model", reason="ModelFailed", message=message), FAILED
        case SidecarLost():
            return Failure(who="agent", reason="AgentFailed", message=message), FAILED
        case Unsupported():
            return Failure(who="sandbox", reason="SandboxFailed", message=message), FAILED
        case PeerLost() | TimedOut() if is_preparing:
            return Failure(who="operator", reason="OperatorFailed", message=message), FAILED
        case PeerLost() | TimedOut() | Denied() | Unauthenticated() | StaleWriter() | Damaged() | Exhausted():
            return Failure(who="cluster", reason="StoreLost", message=message), FAILED
        case HermesError():
            return Failure(who="agent", reason="AgentFailed", message=message), FAILED
        case OSError():  # a full disk, a volume that went away
            return Failure(who="cluster", reason="ShardsFailed", message=message), FAILED
        case _:
            told = f"{type(error).__name__}: {message}; the trace is in the driver's log"
            return Failure(who="operator", reason="OperatorFailed", message=told), FAILED


def _first(error: BaseException) -> BaseException:
    """The first error itself, out of a group."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


# The end


def _tell_terminated(request: Request, told: Termination) -> None:
    """Say why the shard ends now, and see to it that it does."""
    message = "the pod was told to end; what is recorded stays, and the next attempt goes on from there"
    told.failure = Failure(who="cluster", reason="Terminated", message=message)
    told.write(request.termination_log)
    timer = threading.Timer(STOP_SECONDS, os._exit, (TERMINATED,))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def _on_sigterm(tell: Callable[[], None]) -> Iterator[None]:
    """From here on SIGTERM tells, and raises Terminated in the main thread."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        tell()
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
