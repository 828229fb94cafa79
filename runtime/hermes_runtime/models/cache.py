"""The cache of models: what lies in it, how each is called, when it was last read whole, how it goes.

A model's folder is put there by `pull`; that it is sound is `tree.verify`'s to say, and only noted here,
beside the folder, for everything inside is the model. A note is a claim about the past: a load verifies
again whatever it says. Called by `hermes model list|verify|rm`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hermes_runtime import errors
from hermes_runtime.models import tensors, tree

_REMOVING = ".removing"


def cache_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Where things are kept unless the caller says otherwise: $HERMES_CACHE, else ~/.cache/hermes."""
    return Path(environment.get("HERMES_CACHE") or home / ".cache" / "hermes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A model of this machine, as its files say; nothing of it was verified just now."""

    name: str
    """"owner/name", or the name of a bundled model."""
    commit: str
    """40 hexadecimal digits; "" for a bundled model."""
    folder: Path
    is_whole: bool
    """Its manifest is there. Without one a pull was cut off, and goes on if it is asked for again."""
    licence: str
    size_bytes: int
    dtype: str
    """Type of most of the weights' bytes; "" if there are none yet."""
    verified_at: datetime | None
    """When every byte was last compared with the manifest, aware UTC."""


def models(cache: Path) -> list[Kept]:
    """Bundled models, then those in `cache`, sorted by name and commit."""
    found = [_kept(name, "", tree.resolve(name), verified_at=None) for name in tree.bundled()]
    if cache.is_dir():
        for folder in sorted(cache.iterdir()):
            name, mark, commit = folder.name.partition("@")
            if mark and not name.startswith(".") and folder.is_dir():
                at = _noted(folder)
                found.append(_kept(name.replace("--", "/", 1), commit, folder, verified_at=at))
    return found


def find(cache: Path, wanted: str) -> Kept:
    """The one model that `wanted` names: a bundled name, owner/name, or that with @ and a commit's start.

    Raises NotFound; BadInput where more than one is meant.
    """
    name, _, commit = wanted.partition("@")
    there = models(cache)
    meant = [each for each in there if each.name == name and each.commit.startswith(commit)]
    if not meant:
        names = ", ".join(_called(each) for each in there) or "none"
        raise errors.NotFound(
            f"no model {wanted!r} in {cache} (there: {names}); `hermes model pull` brings one"
        )
    if len(meant) > 1:
        raise errors.BadInput(
            f"{wanted!r} is {len(meant)} models: {', '.join(_called(each) for each in meant)}; "
            "add @ and the commit's first digits"
        )
    return meant[0]


def resolve(cache: Path, source: str) -> Path:
    """The folder of a path, a bundled model's name, or a model in `cache`. Raises NotFound, BadInput."""
    try:
        return tree.resolve(source)
    except errors.NotFound:
        return find(cache, source).folder


def note_verified(verified: tree.Tree, at: datetime) -> None:
    """Remember beside the folder that it was sound; where nobody may write there, it is not remembered."""
    note = {"tree_sha256": verified.sha256, "at": at.astimezone(UTC).isoformat(timespec="seconds")}
    draft = _note(verified.folder).with_suffix(".draft")
    try:
        draft.write_text(json.dumps(note) + "\n")
        draft.replace(_note(verified.folder))
    except OSError:
        return


def remove(cache: Path, wanted: str) -> Kept:
    """Take a model out of `cache`, whole or not at all: what was cut off is no model any more.

    Raises NotFound; BadInput for a bundled one; Busy while it is being pulled. Who has it loaded keeps it:
    the bytes go when the last process lets them go.
    """
    kept = find(cache, wanted)
    if not kept.commit:
        raise errors.BadInput(f"{kept.name} is part of HERMES and is not in the cache: it cannot be removed")
    folder = kept.folder
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.Busy(f"{_called(kept)} is being pulled: stop that, or wait for its end") from None
        _note(folder).unlink(missing_ok=True)
        going = folder.with_name(f".{folder.name}{_REMOVING}")
        if going.exists():  # cut off earlier
            shutil.rmtree(going)
        folder.rename(going)
        shutil.rmtree(going)
    return kept


def _kept(name: str, commit: str, folder: Path, *, verified_at: datetime | None) -> Kept:
    try:
        manifest = tree.read_manifest(folder)
    except errors.HermesError:
        manifest = None
    return Kept(
        name=name,
        commit=commit,
        folder=folder,
        is_whole=manifest is not None,
        licence=manifest.licence if manifest else "",
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        dtype=_dtype(folder),
        verified_at=verified_at if manifest else None,
    )


def _dtype(folder: Path) -> str:
    try:
        held = tensors.bytes_by_dtype(tensors.stored(folder))
    except errors.HermesError:
        return ""  # a file that has not come whole; verifying says which
    return max(held, key=lambda name: held[name], default="")


def _called(kept: Kept) -> str:
    return f"{kept.name}@{kept.commit[:12]}" if kept.commit else kept.name


def _note(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.verified"


def _noted(folder: Path) -> datetime | None:
    """When `folder` was verified, if its file list is still the one that was."""
    try:
        note = json.loads(_note(folder).read_text())
        if note["tree_sha256"] != tree.list_sha256(tree.read_manifest(folder).files):
            return None
        return datetime.fromisoformat(note["at"])
    except (OSError, ValueError, KeyError, TypeError, errors.HermesError):
        return None
