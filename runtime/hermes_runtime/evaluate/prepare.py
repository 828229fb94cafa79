"""Preparing: everything that needs the network or may be found wanting, before a run is sealed.

The instances are built or read, their unpatched trees made, the model's files verified, a sandbox
chosen. What was found is written to prepared.json last, so that a half-prepared folder is prepared again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hermes_runtime.document import HermesRun, ModelBackend, ModelSource
from hermes_runtime.errors import BadInput, NotFound
from hermes_runtime.evaluate.checkout import checkout
from hermes_runtime.evaluate.datasets import mutants
from hermes_runtime.evaluate.datasets.baseline import is_read_only
from hermes_runtime.evaluate.datasets.packages import sha256_of
from hermes_runtime.evaluate.folder import RunFolder, write_atomically
from hermes_runtime.evaluate.instances import Instance, read_instances, to_line
from hermes_runtime.models import tree as model_tree
from hermes_runtime.sandbox.choose import choose


class Prepared(BaseModel):
    """What preparing found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_path: Path
    dialect: str
    """"line_repair" or "chat"."""
    sandbox: Literal["bubblewrap", "landlock"]
    dataset_sha256: str
    """Of instances.jsonl as it was given or built, before paths were made absolute."""


def prepare(
    document: HermesRun,
    folder: RunFolder,
    *,
    base: Path,
    cache: Path,
    models: Path | None = None,
    part: slice = slice(None),
    say: Callable[[str], None],
) -> Prepared:
    """Prepare `folder` for `document`, whose relative paths start at `base`. Idempotent.

    `models`: where models of the Hub are; by default in the cache. Only the trees of the instances in
    `part` are made; the file has them all.

    Raises what a user can mend: a missing file, a damaged model, no sandbox, a registry out of reach.
    """
    if folder.prepared.exists():
        return Prepared.model_validate_json(folder.prepared.read_bytes())
    sandbox = choose(document.spec.evaluate.sandbox)
    say(f"sandbox: {sandbox.name}")
    model_path, dialect = _model(document, base, models or cache / "models", say)
    dataset_sha256 = _instances(document, folder, base, cache, say)
    instances = list(read_instances(folder.instances))[part]
    for number, instance in enumerate(instances, start=1):
        tree = folder.trees / instance.instance_id
        if not tree.exists():
            checkout(instance, tree)
        if number % 20 == 0 or number == len(instances):
            say(f"trees: {number} of {len(instances)}")
    prepared = Prepared(
        model_path=model_path, dialect=dialect, sandbox=sandbox.name, dataset_sha256=dataset_sha256
    )
    write_atomically(folder.prepared, prepared.model_dump_json(indent=2).encode())
    return prepared


def _model(
    document: HermesRun, base: Path, models: Path, say: Callable[[str], None]
) -> tuple[Path, str]:  # fmt: skip
    """The model's folder or script, verified, and the dialect to speak to it."""
    part = document.spec.model
    if part.backend is ModelBackend.SCRIPTED:
        if part.source.path is None:
            raise BadInput("spec.model.source: a scripted model needs path, the file with its script")
        script = (base / part.source.path).resolve()
        if not script.is_file():
            raise NotFound(f"spec.model.source.path: {script} is not there")
        return script, "chat" if part.dialect == "auto" else part.dialect
    path = _model_folder(part.source, base, models)
    manifest = model_tree.verify(path).manifest
    say(f"model: {path.name}, {len(manifest.files)} files verified")
    return path, (manifest.dialect or "chat") if part.dialect == "auto" else part.dialect


def _model_folder(source: ModelSource, base: Path, models: Path) -> Path:
    if source.repo is None or source.revision is None:
        return model_tree.resolve(source.bundled or base / (source.path or ""))
    found = model_tree.cached(models, source.repo, source.revision)
    if not found.is_dir():
        raise NotFound(
            f"spec.model.source: {source.repo} is not in the model cache; fetch it with `hermes model pull "
            f"{source.repo} --revision {source.revision} --to {found}`"
        )
    return found


def _instances(
    document: HermesRun, folder: RunFolder, base: Path, cache: Path, say: Callable[[str], None]
) -> str:
    """Write instances.jsonl with absolute paths; the digest of the dataset as it was given."""
    wanted = document.spec.evaluate.instances
    if wanted.mutants is not None:
        # beside the run where the cache is an image's: it holds what is fetched, and may not be written
        dataset = mutants.build(
            (folder.root if is_read_only(cache) else cache) / "mutants",
            count=wanted.mutants.count,
            seed=document.spec.seed,
            packages=wanted.mutants.packages,
            cache=cache,
            say=say,
        )
    else:
        dataset = (base / (wanted.file or "")).resolve()
    instances = [_with_defaults(instance) for instance in read_instances(dataset)]
    if not instances:
        raise BadInput(f"{dataset} holds no instances")
    text = "".join(to_line(instance) + "\n" for instance in instances)
    write_atomically(folder.instances, text.encode())
    return sha256_of(dataset)


def _with_defaults(instance: Instance) -> Instance:
    """The instance with its interpreter named and checked."""
    python = instance.python or sys.executable
    if not Path(python).exists():
        raise NotFound(f"{instance.instance_id}: its interpreter {python} is not there")
    if not Path(instance.source).exists():
        raise NotFound(f"{instance.instance_id}: its source {instance.source} is not there")
    return instance.model_copy(update={"python": python})
