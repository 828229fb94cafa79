"""A run's folder: where each thing lies, who may write it now, and whether it is this run's.

run.yaml        the document, every default written out
prepared.json   what preparing found; its presence means that preparing is done
instances.jsonl, trees/<instance>/   the instances and their unpatched trees
store/          blobs, events, results: the truth; all that follows is a view of it
manifest.json, summary.json, predictions/, ledger.parquet, results.parquet, report.html
logs/           what each process printed
fetched.json    only where the run was fetched from a cluster's store: its id there, how far the copy is
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hermes_runtime.document import HermesRun, parse
from hermes_runtime.errors import BadInput, Busy, NotFound


class Fetched(BaseModel):
    """What fetched.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    """What the run is called in the store."""
    copied_to: int = 0
    """Place in the log of the cluster's store up to which the run's events are here."""
    instances: int = 0
    """Instances of the run; 0: not known."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run's folder."""

    root: Path

    @property
    def document(self) -> Path:
        return self.root / "run.yaml"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared.json"

    @property
    def instances(self) -> Path:
        return self.root / "instances.jsonl"

    @property
    def trees(self) -> Path:
        return self.root / "trees"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def claim(self, document: HermesRun) -> None:
        """Make the folder this document's. BadInput if it is another's."""
        self.root.mkdir(parents=True, exist_ok=True)
        resolved = document.to_yaml()
        if self.document.exists():
            if parse(self.document.read_text(encoding="utf-8"), name=str(self.document)) != document:
                raise BadInput(
                    f"{self.root} holds a run of another document (see {self.document}); "
                    "give another folder with --out, or remove this one"
                )
            return
        write_atomically(self.document, resolved.encode())

    def read_document(self) -> HermesRun:
        """The document of a run that was started. NotFound if there is none."""
        if not self.document.is_file():
            raise NotFound(f"{self.root} is no run's folder: {self.document.name} is not in it")
        return parse(self.document.read_text(encoding="utf-8"), name=str(self.document))

    def read_fetched(self) -> Fetched | None:
        """Where the run was fetched from; None for a run of this machine."""
        path = self.root / "fetched.json"
        return Fetched.model_validate_json(path.read_bytes()) if path.exists() else None

    def write_fetched(self, fetched: Fetched) -> None:
        """Say where the run was fetched from, and how far the copy is."""
        write_atomically(self.root / "fetched.json", fetched.model_dump_json(indent=1).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; Busy, with the other's process id, if another process does."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                owner = lock.read().decode(errors="replace").strip() or "unknown"
                raise Busy(
                    f"{self.root} is in use by the run of process {owner}; "
                    "wait for it, stop it, or give another folder with --out"
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
            lock.flush()
            yield


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
