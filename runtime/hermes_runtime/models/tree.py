"""A model's folder: which bytes are the model, and the proof that these are they.

`manifest.json` lists every other file of the folder with size and SHA-256. `verify` reads every byte
before a loader maps any; `Tree.still` is asked again after the load. Not covered: somebody who may write
to the folder and changes a file, loads, and puts back bytes *and* change time (that needs root), or who
writes to a mapped file after the load. Mount the folder read-only against both.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hermes_runtime import errors

MANIFEST = "manifest.json"

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
"""Suffixes of files that a loader would unpickle, which runs what is in them."""

_TOKENIZER_NAMES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_READ_BYTES = 1024 * 1024


class Entry(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Relative to the folder, with slashes."""
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != value:
            raise ValueError(f"{value!r} is not a plain path inside the folder")
        return value


class Manifest(BaseModel):
    """What `manifest.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: tuple[Entry, ...]
    licence: str = ""
    source: str = ""
    dialect: str = ""

    @field_validator("files")
    @classmethod
    def _sorted(cls, value: tuple[Entry, ...]) -> tuple[Entry, ...]:
        paths = [entry.path for entry in value]
        if paths != sorted(set(paths)) or MANIFEST in paths:
            raise ValueError("files must be sorted by path, each once, without the manifest itself")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stamp:
    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder whose every byte has been read and found as its manifest says."""

    folder: Path
    manifest: Manifest
    sha256: str
    """Digest of the file list: the name of these weights, whatever the folder is called."""
    tokenizer_sha256: str
    """Digest of the list of the tokenizer's files alone."""
    stamps: tuple[tuple[str, _Stamp], ...]

    def still(self) -> None:
        """Raise Damaged if a file was replaced, written to, added or removed since `verify`."""
        if sorted(_paths(self.folder)) != [path for path, _ in self.stamps]:
            raise errors.Damaged(
                f"files came or went in {self.folder} while the model was loaded: load it again"
            )
        for path, stamp in self.stamps:
            if _stamp((self.folder / path).lstat()) != stamp:
                raise errors.Damaged(
                    f"{self.folder / path} changed while the model was loaded: load it again"
                )


def list_sha256(listed: Iterable[Entry]) -> str:
    """SHA-256 of the canonical JSON of a file list."""
    plain = [entry.model_dump() for entry in listed]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(folder: Path) -> Tree:
    """Read every file of `folder` and compare it with the manifest.

    Raises:
        NotFound: no folder, no manifest, or a listed file is missing.
        Damaged: a file is changed, or is not listed, or the manifest cannot be read.
        Unsupported: a symbolic link, something that is not a plain file, or a pickle.
    """
    manifest = read_manifest(folder)
    present = set(_paths(folder))
    stamps: list[tuple[str, _Stamp]] = []
    for entry in manifest.files:
        if entry.path not in present:
            raise errors.NotFound(f"{folder / entry.path} is missing: fetch the model again")
        stamps.append((entry.path, _check(folder, entry)))
    if extra := sorted(present - {entry.path for entry in manifest.files}):
        raise errors.Damaged(f"{folder / extra[0]} is not in {MANIFEST}: remove it, or fetch the model again")
    tokenizer = [entry for entry in manifest.files if entry.path in _TOKENIZER_NAMES]
    return Tree(
        folder=folder,
        manifest=manifest,
        sha256=list_sha256(manifest.files),
        tokenizer_sha256=list_sha256(tokenizer),
        stamps=tuple(stamps),
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, parsed but not compared with the files."""
    if not folder.is_dir():
        raise errors.NotFound(f"no model folder {folder}: check the path")
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise errors.NotFound(
            f"{path} is missing, so nothing says which bytes are the model: "
            f"if you vouch for them, write one with `hermes model manifest {folder}`"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise errors.Damaged(
            f"{path} at {where or 'its top'}: {problem['msg']}; fetch the model again"
        ) from error


def write_manifest(folder: Path, *, licence: str = "", source: str = "", dialect: str = "") -> Manifest:
    """Write the manifest of what `folder` holds now. The caller vouches for the bytes."""
    manifest = Manifest(files=entries(folder), licence=licence, source=source, dialect=dialect)
    put_manifest(folder, manifest)
    return manifest


def entries(folder: Path) -> tuple[Entry, ...]:
    """What `folder` holds now, every file read."""
    found: list[Entry] = []
    for path in sorted(_paths(folder)):
        sha256, stamp = _read(folder / path)
        found.append(Entry(path=path, size_bytes=stamp.size_bytes, sha256=sha256))
    return tuple(found)


def put_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest into its folder, whole or not at all."""
    draft = folder / f".{MANIFEST}.draft"
    with draft.open("w") as file:
        file.write(json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)


def cached(cache: Path, repo: str, revision: str) -> Path:
    """Folder of a repository's commit in the cache of models, where `hermes model pull` puts it."""
    return cache / f"{repo.replace('/', '--')}@{revision}"


def bundled() -> list[str]:
    """Names of the models that come with this package."""
    root = importlib.resources.files("hermes_runtime.models") / "bundled"
    if not root.is_dir():
        return []
    return sorted(item.name for item in root.iterdir() if (item / MANIFEST).is_file())


def resolve(source: str | Path) -> Path:
    """The folder of a bundled model's name or of a path. Raises NotFound."""
    if isinstance(source, str) and source in bundled():
        found = importlib.resources.files("hermes_runtime.models") / "bundled" / source
        with importlib.resources.as_file(found) as folder:
            return folder.resolve()
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    names = ", ".join(bundled()) or "none"
    raise errors.NotFound(
        f"no model {str(source)!r}: neither a folder nor a bundled model (bundled: {names}); "
        "give the path of its folder"
    )


def _paths(folder: Path) -> Iterator[str]:
    """Every plain file below `folder` but the manifest. Raises Unsupported at anything else."""
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                raise errors.Unsupported(f"{path} is a symbolic link: put the file itself there")
        for name in files:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if relative == MANIFEST:
                continue
            if not stat.S_ISREG(path.lstat().st_mode):
                raise errors.Unsupported(f"{path} is not a plain file: remove it")
            if path.suffix.lower() in PICKLES:
                raise errors.Unsupported(
                    f"{path} is a pickle, which can run code when loaded: "
                    "convert it to safetensors and remove it"
                )
            yield relative


def _unreadable(error: OSError) -> None:
    raise errors.NotFound(f"cannot read {error.filename}: {error.strerror}") from error


def _check(folder: Path, entry: Entry) -> _Stamp:
    path = folder / entry.path
    size_bytes = path.lstat().st_size
    if size_bytes != entry.size_bytes:
        raise errors.Damaged(
            f"{path} has {size_bytes} bytes and not {entry.size_bytes}: it is not the file of the manifest; "
            "fetch the model again"
        )
    sha256, stamp = _read(path)
    if sha256 != entry.sha256:
        raise errors.Damaged(
            f"{path} has SHA-256 {sha256[:12]}… and not {entry.sha256[:12]}…: its bytes changed; "
            "fetch the model again"
        )
    return stamp


def _read(path: Path) -> tuple[str, _Stamp]:
    """Digest of a file, and what tells that it is the same file with the same bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = _stamp(os.fstat(descriptor))
        digest = hashlib.sha256()
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
        if _stamp(os.fstat(descriptor)) != before:
            raise errors.Damaged(f"{path} changed while it was read: stop what writes to it, and try again")
    return digest.hexdigest(), before


def _stamp(found: os.stat_result) -> _Stamp:
    return _Stamp(
        device=found.st_dev,
        inode=found.st_ino,
        size_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        changed_ns=found.st_ctime_ns,
    )
