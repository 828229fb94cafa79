"""Views of a run: summary, predictions, tables, report, explanations; all from its store and manifest.

The store is opened here only when no process of a run holds it. Nothing here is kept as truth: delete
the views, and `hermes report` writes them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import build, codec
from hermes_runtime.document import HermesRun
from hermes_runtime.errors import HermesError, NotFound
from hermes_runtime.evaluate import report, summary
from hermes_runtime.evaluate.act_record import ActRecord, act_record
from hermes_runtime.evaluate.desk import CONTROL
from hermes_runtime.evaluate.driver import ENVELOPE_EVENT
from hermes_runtime.evaluate.explain import explain
from hermes_runtime.evaluate.folder import RunFolder
from hermes_runtime.evaluate.instances import read_instances
from hermes_runtime.evaluate.results import Result
from hermes_runtime.store import Digest, Store
from hermes_runtime.store.disk import DiskStore


def write_views(root: Path) -> Path:
    """Write every view of the run in `root`; the report's path. NotFound if it is no run's folder."""
    folder = RunFolder(root)
    document = folder.read_document()
    with closing(_opened(folder)) as store:
        results = list(_results(store, _run_id(folder, document)))
        context = _context(folder, document)
        found = summary.summarize(results, context)
        summary.write(root, found, results, model_name=context.model_name)
        acts = {result.stream: list(_acts(store, result.stream)) for result in results}
    gold = {instance.instance_id: instance.patch for instance in read_instances(folder.instances)}
    page = report.render(found, results, context, acts=acts, gold=gold)
    path = root / "report.html"
    report.write_report(path, page)
    return path


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """summary.json as written."""
    read: dict[str, Any] = json.loads((folder.root / "summary.json").read_bytes())
    return read


def explain_instance(root: Path, instance_id: str, arm: str | None, *, colour: bool) -> str:
    """The causal chain of one instance, arm by arm. NotFound with what there is."""
    folder = RunFolder(root)
    document = folder.read_document()
    gold = {instance.instance_id: instance.patch for instance in read_instances(folder.instances)}
    if instance_id not in gold:
        known = ", ".join(sorted(gold)[:20])
        raise NotFound(f"{instance_id} is no instance of this run; there are {known}")
    with closing(_opened(folder)) as store:
        every = _results(store, _run_id(folder, document))
        results = [result for result in every if result.instance_id == instance_id]
        chosen = [result for result in results if arm in (None, result.arm)]
        if not chosen:
            done = ", ".join(sorted(result.arm for result in results)) or "none yet"
            raise NotFound(f"{instance_id} has no result under {arm or 'any arm'}; finished: {done}")
        return "\n\n".join(
            explain(result, list(_acts(store, result.stream)), gold=gold[instance_id], colour=colour)
            for result in chosen
        )


def _opened(folder: RunFolder) -> DiskStore:
    if not folder.store.is_dir():
        raise NotFound(f"{folder.root} has no store yet: nothing was recorded")
    return DiskStore(folder.store)


def _run_id(folder: RunFolder, document: HermesRun) -> str:
    """What the run is called in its store: on one machine by its name, on a cluster by more than that."""
    fetched = folder.read_fetched()
    return document.metadata.name if fetched is None else fetched.run_id


def _results(store: Store, run_id: str) -> Iterator[Result]:
    for _, data in store.results(run_id):
        yield Result.model_validate_json(data)


def _context(folder: RunFolder, document: HermesRun) -> summary.RunContext:
    path = folder.root / "manifest.json"
    manifest: Mapping[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    evaluate, fetched = document.spec.evaluate, folder.read_fetched()
    model = dict(manifest.get("loaded", {}))
    source = document.spec.model.source
    model["name"] = source.bundled or source.path or source.repo or ""
    model["digest"] = model.get("tree_sha256", "")
    return summary.RunContext(
        run=document.metadata.name,
        arms=tuple(arm.value for arm in evaluate.arms),
        control=CONTROL if evaluate.control == "enumerate" else None,
        instances=max(sum(1 for _ in read_instances(folder.instances)), fetched.instances if fetched else 0),
        model=model,
        hermetic=manifest.get("hermetic", {}),
        manifest={key: value for key, value in manifest.items() if key not in ("loaded", "hermetic")},
        model_name=_model_name(model["name"], is_repo=source.repo is not None),
        seed=document.spec.seed,
    )


def _model_name(name: str, *, is_repo: bool) -> str:
    """The model in predictions: "hermes-" and the last part of what the document calls it."""
    last = name.rpartition("/")[2] if is_repo else Path(name).stem  # a repository's dots are no suffixes
    return f"hermes-{last}" if last else "hermes"


def _acts(store: Store, stream: str) -> Iterator[ActRecord]:
    """The acts of one attempt, in the order said, with their contents."""
    steps: dict[bytes, int] = {}
    for stored in store.events(stream_prefix=stream):
        if stored.event.stream != stream or stored.event.type != ENVELOPE_EVENT:
            continue
        envelope = agent_pb2.Envelope.FromString(stored.event.payload)
        act = codec.decode(envelope)
        step = len(steps) + 1
        steps[act.span_id] = step
        yield act_record(
            act,
            _content(store, act),
            step=step,
            wire_bytes=len(envelope.act),
            parent=steps.get(act.parent_span_id),
        )


def _content(store: Store, act: pb.Act) -> pb.Content | None:
    match act.WhichOneof("payload"):
        case "inline":
            return build.parse_content(act.inline.data)
        case "anchor":
            try:
                return build.parse_content(store.get(Digest.from_proto(act.anchor.digest)))
            except HermesError:
                return None  # the blob is gone or damaged: the anchor's head stands for it
        case _:
            return None
