"""A whole run on one machine: prepare, seal, start, drive, report. Interrupted, it goes on where it was.

Preparing happens in a forked child, before the seal; from the seal on no process of the run can open
any but Unix sockets. A result that is recorded is never made again; what was cut off is tried anew.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_runtime.document import HermesRun, ModelBackend
from hermes_runtime.errors import BadInput, HermesError
from hermes_runtime.evaluate.folder import RunFolder, write_atomically
from hermes_runtime.supervise.parent import die_with_parent
from hermes_runtime.supervise.seal import Seal, evidence, seal

if TYPE_CHECKING:
    from hermes.model.v1 import model_pb2
    from hermes_runtime.evaluate.prepare import Prepared
    from hermes_runtime.models import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to run, where."""

    document: HermesRun
    base: Path
    """Folder that the document's relative paths start at."""
    out: Path
    cache: Path | None = None
    prepare_only: bool = False
    json_progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended."""

    exit_code: int
    report: Path | None = None
    summary: dict[str, Any] | None = None


def run(request: Request) -> Outcome:
    """Run to the end, or to an interruption (KeyboardInterrupt). Raises what a user can mend."""
    document, folder = request.document, RunFolder(request.out)
    if document.spec.suspend:
        raise BadInput("spec.suspend is true: set it to false to run")
    with folder.locked():
        folder.claim(document)
        _prepare_apart(request, folder)
        if request.prepare_only:
            return Outcome(exit_code=0)
        wall = sealed(document)
        # Only now: what follows brings threads, and a seal must come before the first of them.
        from hermes_runtime.evaluate import views

        asyncio.run(_drive(request, folder, wall))
        report = views.write_views(folder.root)
        return Outcome(exit_code=0, report=report, summary=views.read_summary(folder))


def _prepare_apart(request: Request, folder: RunFolder) -> None:
    if folder.prepared.exists():
        return

    def work() -> None:
        from hermes_runtime.evaluate.prepare import prepare
        from hermes_runtime.models.cache import cache_folder

        _check_quantization(request.document)
        prepare(
            request.document,
            folder,
            base=request.base,
            cache=request.cache or cache_folder(os.environ, Path.home()),
            say=say_prepared,
        )

    apart(work)


def _check_quantization(document: HermesRun) -> None:
    """Refuse before anything runs what this host cannot do; remembered for the load."""
    from hermes_runtime.models import ModelSpec, probe
    from hermes_runtime.models.environment import device_of
    from hermes_runtime.models.instances import accelerators

    part = document.spec.model
    if part.quantization != "none" and part.backend is ModelBackend.TRANSFORMERS:
        say_prepared(f"model: trying {part.quantization} on this host, once")
        spec = ModelSpec(
            backend=_backend(part.backend), path=Path(), device=part.device, quantization=part.quantization
        )
        probe.check(spec, device_of(spec, accelerators()), os.environ)


def say_prepared(text: str) -> None:
    """A line of progress while preparing."""
    print(f"prepare: {text}", file=sys.stderr, flush=True)


def apart(work: Callable[[], None]) -> None:
    """Prepare in a child, so that no thread of it is there when this process is sealed.

    Raises what `work` raises, if it is an error of ours.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent()
        try:
            work()
            sender.send(None)
        except HermesError as error:
            sender.send((type(error), str(error)))

    process = context.Process(target=child, name="prepare", daemon=True)
    process.start()
    sender.close()
    try:
        failure = receiver.recv()
    except EOFError as error:
        process.join()
        if process.exitcode == -signal.SIGINT or process.exitcode == 130:
            raise KeyboardInterrupt from error
        raise HermesError(f"preparing ended with exit code {process.exitcode}; its trace is above") from error
    process.join()
    if failure is not None:
        kind, message = failure
        raise kind(message)


def sealed(document: HermesRun) -> Seal | None:
    """Seal this process as the document asks; None if it does not."""
    return seal() if document.spec.hermetic else None


async def _drive(request: Request, folder: RunFolder, wall: Seal | None) -> None:
    from hermes_runtime.evaluate.desk import Desk
    from hermes_runtime.evaluate.instances import read_instances
    from hermes_runtime.evaluate.prepare import Prepared
    from hermes_runtime.evaluate.processes import sockets, start_agents, start_model, start_store
    from hermes_runtime.evaluate.progress import progress_for
    from hermes_runtime.supervise.tree import ProcessTree

    document = request.document
    prepared = Prepared.model_validate_json(folder.prepared.read_bytes())
    instances = list(read_instances(folder.instances))
    with progress_for(sys.stderr, as_json=request.json_progress) as progress, sockets() as at:
        async with ProcessTree(logs=folder.logs, on_restart=progress.note) as tree:
            await start_store(tree, at, folder.store)
            async with asyncio.TaskGroup() as starting:
                loading = starting.create_task(
                    start_model(tree, at, _model_spec(document, prepared)), name="model"
                )
                starting.create_task(start_agents(tree, at, prepared.sandbox), name="agents")
            model = loading.result()
            desk = Desk(document, folder, prepared, instances, tree, at, progress)
            driving = asyncio.create_task(desk.run(), name="drive")
            assert tree.failed is not None
            stop = _on_signals(driving)
            try:
                async with asyncio.timeout(document.spec.active_deadline_seconds):
                    await asyncio.wait({driving, tree.failed}, return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError as error:
                driving.cancel()
                seconds = document.spec.active_deadline_seconds
                raise HermesError(
                    f"the run took more than spec.activeDeadlineSeconds, {seconds} s"
                ) from error
            if not driving.done():
                driving.cancel()
                tree.failed.result()
            try:
                await driving
            except asyncio.CancelledError:
                if stop.is_set():
                    raise KeyboardInterrupt from None
                raise
            restarts, pids = tree.restarts, tree.pids
        _write_manifest(request, folder, prepared, model, evidence(wall, pids), restarts)
        progress.run_finished(folder.root / "report.html")


def _on_signals(task: asyncio.Task[None]) -> asyncio.Event:
    """SIGINT and SIGTERM cancel `task`; the event tells that one came."""
    came = asyncio.Event()

    def interrupt() -> None:
        came.set()
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    return came


def _write_manifest(
    request: Request,
    folder: RunFolder,
    prepared: Prepared,
    model: model_pb2.DescribeResponse,
    hermetic: dict[str, Any],
    restarts: dict[str, int],
) -> None:
    body = manifest_of(request.document, prepared, model, hermetic)
    body["restarts"] = restarts
    write_atomically(folder.root / "manifest.json", json.dumps(body, indent=2).encode())


def manifest_of(
    document: HermesRun, prepared: Prepared, model: model_pb2.DescribeResponse, hermetic: dict[str, Any]
) -> dict[str, Any]:
    """The manifest, with what was loaded and whether the model's files are as they were."""
    from google.protobuf.json_format import MessageToDict

    from hermes_runtime.evaluate.manifest import manifest

    hermetic = {
        **hermetic,
        "sandbox": prepared.sandbox,
        "model_files_verified": model.verified_files,
        "model_unchanged_at_end": _is_unchanged(prepared.model_path, model.tree_sha256),
    }
    body = manifest(document, prepared, model, hermetic)
    body["loaded"] = MessageToDict(model, preserving_proto_field_name=True)
    return body


def _is_unchanged(model: Path, tree_sha256: str) -> bool | None:
    """Whether the model's files are still those that were loaded; their bytes are mapped, not copied.
    None for a scripted model."""
    from hermes_runtime.models.tree import verify

    try:
        return verify(model).sha256 == tree_sha256 if tree_sha256 else None
    except HermesError:
        return False


def _model_spec(document: HermesRun, prepared: Prepared) -> Any:
    from hermes_runtime.models import ModelSpec

    part = document.spec.model
    return ModelSpec(
        backend=_backend(part.backend),
        path=prepared.model_path,
        device=part.device,
        quantization=part.quantization,
        context_tokens=part.context_tokens,
        slots=part.slots,
    )


def _backend(named: ModelBackend) -> Backend:
    from hermes_runtime.models import Backend

    return Backend.SCRIPTED if named is ModelBackend.SCRIPTED else Backend.TRANSFORMERS
