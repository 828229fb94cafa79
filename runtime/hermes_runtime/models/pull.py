"""A model from the Hugging Face Hub, pinned by its commit, into a folder that `tree.verify` accepts.

Decided here: which files a model is (never code, never a pickle), that each is compared with the digest
that the Hub tells for that commit, and what a failure is called. The manifest is written last: with it
the folder is a model and is only verified, offline; without it a pull goes on where it was cut off.
What the Hub itself hands out under that commit is trusted. Called by `hermes model pull`.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from hermes_runtime import errors
from hermes_runtime.document import HUB_NAME
from hermes_runtime.models import tree

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)
"""Weights, their configuration, the tokenizer, and the terms under which all of it comes."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAY_SECONDS = 10.0
_FREE_BYTES_MIN = 64 << 20
"""What a pull leaves free: for the manifest, and for others."""

Say = Callable[[str], None]
Who = Literal["user", "cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file as the Hub tells it: a large one by its SHA-256, a small one by Git's digest."""

    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong, whose it is to mend, and the exit code that says so."""

    who: Who
    reason: str
    message: str
    exit_code: int


def wanted(paths: list[str]) -> list[str]:
    """The files of a repository that are the model, sorted.

    Only the top folder: what lies below is the same model for another program. Weights that come a second
    time under the name that Mistral's own program expects are left out.
    """
    found = [
        path
        for path in sorted(paths)
        if "/" not in path and path != tree.MANIFEST and any(fnmatchcase(path, pattern) for pattern in WANTED)
    ]
    if any(fnmatchcase(path, "model*.safetensors") for path in found):
        found = [path for path in found if not path.startswith("consolidated")]
    return found


def failure_of(error: errors.HermesError) -> Failure:
    """The failure that an error of `pull` stands for, in the operator's words."""
    who: Who = "user"
    reason, exit_code = "PullFailed", 2
    match error:
        case errors.Denied():
            reason = "Gated"
        case errors.NotFound():
            reason = "RevisionNotFound"
        case errors.BadInput() | errors.Unsupported():
            pass
        case errors.Damaged():
            who, reason, exit_code = "cluster", "TreeDamaged", 3
        case _:
            who, exit_code = "cluster", 1
    return Failure(who=who, reason=reason, message=str(error), exit_code=exit_code)


def termination_message(found: tree.Tree | None, failure: Failure | None) -> dict[str, Any]:
    """What the pull tells Kubernetes; well below the 4,096 bytes that it keeps."""
    files = found.manifest.files if found else ()
    return {
        "version": 1,
        "treeSha256": found.sha256 if found else None,
        "bytes": sum(file.size_bytes for file in files),
        "files": len(files),
        "licence": found.manifest.licence[:200] if found else None,
        "failure": None
        if failure is None
        else {
            "who": failure.who,
            "reason": failure.reason,
            "message": failure.message.encode()[:1500].decode(errors="ignore"),
        },
    }


def pull(repo: str, revision: str, to: Path, *, say: Say = lambda text: None) -> tree.Tree:
    """Bring the commit `revision` of `repo` to the folder `to`, or verify it where it is already.

    Another pull to the same folder is waited for.

    Raises:
        BadInput: no name of a repository, no commit, or another model is in `to`.
        Denied: the Hub does not give this model to this user.
        NotFound: no such repository or commit.
        Unsupported: the repository holds no safetensors.
        Damaged: what is in `to` is not what its manifest says; or the Hub sent other bytes, twice.
        Exhausted: no room on the disk.
        PeerLost: the Hub cannot be reached; what came is kept for the next try.
    """
    if not re.fullmatch(HUB_NAME, repo) or ".." in repo:
        raise errors.BadInput(f"{repo!r} is no repository: give owner/name, as the Hub shows it")
    if not _COMMIT.fullmatch(revision):
        raise errors.BadInput(
            f"revision {revision!r} is no commit: give its 40 hexadecimal digits; a branch or a tag moves"
        )
    source = f"{repo}@{revision}"
    with _of_the_disk(source, to), _alone(to, say):
        if not (to / tree.MANIFEST).exists():
            with _of_the_hub(source):
                _fetch(repo, revision, to, source, say)
        return _verified(to, source, say)


def _verified(to: Path, source: str, say: Say) -> tree.Tree:
    try:
        found = tree.verify(to)
    except (errors.NotFound, errors.Unsupported) as error:  # here too the folder is not as it was written
        raise errors.Damaged(str(error)) from error
    if found.manifest.source != source:
        raise errors.BadInput(
            f"{to} holds {found.manifest.source or 'a model of unknown origin'} and not {source}: "
            "give another folder"
        )
    size_bytes = sum(file.size_bytes for file in found.manifest.files)
    say(f"verified: {len(found.manifest.files)} files, {_amount(size_bytes)}, tree {found.sha256}")
    return found


def _fetch(repo: str, revision: str, to: Path, source: str, say: Say) -> None:
    remote, licence = _listing(repo, revision)
    paths = set(wanted(list(remote)))
    if not any(path.endswith(".safetensors") for path in paths):
        raise errors.Unsupported(
            f"{source} holds no safetensors at its top: only such weights are loaded, never pickles; "
            "choose a repository that has them"
        )
    files = {path: remote[path] for path in paths}
    size_bytes = sum(file.size_bytes for file in files.values())
    say(f"{source}: {len(files)} files, {_amount(size_bytes)}, licence {licence or 'not told'}")
    _check_folder(to, paths)
    _check_room(to, size_bytes)
    for is_last in (False, True):
        with _telling(to, size_bytes, say):
            _download(repo, revision, to, sorted(paths))
        shutil.rmtree(to / ".cache", ignore_errors=True)
        entries = tree.entries(to)
        wrong = [entry.path for entry in entries if not _is_as_told(to, entry, files[entry.path])]
        if not wrong:
            break
        for path in wrong:  # or the library would take it for done
            (to / path).unlink()
        text = f"{', '.join(wrong[:3])} of {source} came with other bytes than the Hub lists"
        if is_last:
            raise errors.HermesError(f"{text}, twice: removed; pull again, or through another network")
        say(f"{text}: fetching again")
    _make_durable(to, paths)
    tree.put_manifest(to, tree.Manifest(files=entries, licence=licence, source=source, dialect="chat"))


def _listing(repo: str, revision: str) -> tuple[dict[str, Remote], str]:
    """The files of a commit by path, and the licence that the model card names."""
    from huggingface_hub import HfApi

    found = HfApi().model_info(repo, revision=revision, files_metadata=True)
    if found.sha != revision:
        raise errors.HermesError(f"the Hub answers with commit {found.sha} to a question about {revision}")
    files: dict[str, Remote] = {}
    for file in found.siblings or ():
        lfs = file.lfs
        files[file.rfilename] = Remote(
            path=file.rfilename,
            size_bytes=file.size or 0,
            sha256=lfs.sha256 if lfs is not None else None,
            git_sha1=file.blob_id or "",
        )
    card: Mapping[str, object] = {} if found.card_data is None else vars(found.card_data)
    return files, _licence(card)


def _licence(card: Mapping[str, object]) -> str:
    """The licence of a model card; one outside the Hub's list by its own name."""
    told = card.get("license")
    names = told if isinstance(told, list) else [told] if told else []
    own = card.get("license_name")
    return ", ".join(str(own if name == "other" and own else name) for name in names)


def _download(repo: str, revision: str, to: Path, paths: list[str]) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    snapshot_download(
        repo,
        revision=revision,
        local_dir=to,
        allow_patterns=[glob.escape(path) for path in paths],
        max_workers=4,
    )


def _is_as_told(folder: Path, entry: tree.Entry, remote: Remote) -> bool:
    if entry.size_bytes != remote.size_bytes:
        return False
    if remote.sha256 is not None:
        return entry.sha256 == remote.sha256
    data = (folder / entry.path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == remote.git_sha1


def _check_folder(to: Path, paths: set[str]) -> None:
    """Refuse a folder that is not the beginning of this pull; drop what a killed one left half-written,
    for the Hub's library takes up whole files only."""
    for half in (to / ".cache").rglob("*.incomplete"):
        half.unlink()
    foreign = sorted(path.name for path in to.iterdir() if path.name not in {*paths, ".cache"})
    if foreign:
        raise errors.BadInput(
            f"{to} holds {', '.join(foreign[:3])}, which is no part of this model: give another folder"
        )


def _check_room(to: Path, size_bytes: int) -> None:
    there = _bytes_below(to)
    free = shutil.disk_usage(to).free
    if size_bytes - there > free - _FREE_BYTES_MIN:
        raise errors.Exhausted(
            f"{to} has no room: {_amount(size_bytes - there)} are still to come and {_amount(free)} are "
            "free; free some space, or give a larger volume"
        )


def _make_durable(to: Path, paths: set[str]) -> None:
    for path in (*(to / name for name in sorted(paths)), to):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _alone(to: Path, say: Say) -> Iterator[None]:
    """One pull at a time to a folder; the lock lies beside it, for all that is in it is the model."""
    to.mkdir(parents=True, exist_ok=True)
    with (to.parent / f".{to.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another pull to {to} is on its way: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _telling(to: Path, size_bytes: int, say: Say) -> Iterator[None]:
    """Say from time to time how much has come."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(_SAY_SECONDS):
            say(f"{_amount(min(_bytes_below(to), size_bytes))} of {_amount(size_bytes)}")

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


@contextmanager
def _of_the_hub(source: str) -> Iterator[None]:
    """Raise what the Hub's library and the network raise as the error of ours it stands for."""
    try:
        from httpx2 import HTTPError
        from huggingface_hub import errors as hub
    except ImportError as error:
        raise errors.Unsupported(
            f"{source}: pulling from a Hub needs packages that are not installed ({error.name}): on a "
            "cluster use the whole runtime image; elsewhere install hermes-operator[model]"
        ) from error

    try:
        yield
    except hub.GatedRepoError as error:
        raise errors.Denied(
            f"{source}: the Hub gives this model only to those who have accepted its terms: accept them on "
            "the model's page, and give a token of that account in HF_TOKEN"
        ) from error
    except hub.DisabledRepoError as error:
        raise errors.Denied(f"{source}: the Hub has disabled this repository; choose another") from error
    except hub.RevisionNotFoundError as error:
        raise errors.NotFound(
            f"{source}: the repository has no such commit; copy the 40 digits from its history on the Hub"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise errors.NotFound(
            f"{source}: the Hub knows no such repository, or it is private: check owner/name, or give a "
            "token of its owner in HF_TOKEN"
        ) from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise errors.PeerLost(
            f"{source}: the Hub cannot be reached ({type(error).__name__}: {reason}); what came is kept: "
            "pull again once it can"
        ) from error


@contextmanager
def _of_the_disk(source: str, to: Path) -> Iterator[None]:
    """The same for what the disk raises."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise errors.Exhausted(
                f"{to} is full; what came is kept: free some space, or give a larger volume, and pull again"
            ) from error
        raise errors.HermesError(f"{source} to {to}: {error}") from error


def _bytes_below(folder: Path) -> int:
    """What the files below `folder` take, holes not counted; files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = Path(parent, name).lstat()
            except FileNotFoundError:
                continue
            total += min(found.st_size, found.st_blocks * 512)
    return total


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**29 else f"{size_bytes / 2**20:.1f} MiB"
