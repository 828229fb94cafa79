"""An instance's unpatched tree, made on disk: its source, less caches, plus its setup patch.

A source is a folder, taken as it is, or a git repository, of which `base_commit` is taken where one is
named. Nothing may lead out of the tree: no link, and no path of a patch, not even through a link.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hermes_runtime.agents.patch import changes, check_path
from hermes_runtime.errors import BadInput, NotFound, TimedOut, Unsupported
from hermes_runtime.evaluate.instances import Instance

LEFT_OUT = frozenset(
    {".git", ".hg", ".svn", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
    | {".tox", ".nox", ".venv", "node_modules", ".eggs"}
)
"""Folders that are no part of a tree."""

GIT_SECONDS_MAX = 600


def checkout(instance: Instance, folder: Path) -> Path:
    """Make the unpatched tree as `folder`, which must not be there yet: all of it, or nothing.

    Raises:
        NotFound: no such source or commit. BadInput: a link or a patch leaves the tree, or the setup
        patch does not fit. Unsupported: the source is a git repository and git is not installed.
    """
    source = Path(instance.source)
    if not source.is_dir():
        raise NotFound(
            f"{instance.instance_id}: source {source} is no folder; correct `source` of the instance"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checkout-", dir=folder.parent) as scratch:
        tree = Path(scratch, "tree")
        if (source / ".git").exists() and instance.base_commit:
            _export(source, instance.base_commit, tree, name=instance.instance_id)
        else:
            copy_tree(source, tree)
        if instance.setup_patch:
            try:
                patch_tree(tree, instance.setup_patch)
            except BadInput as error:
                raise BadInput(f"{instance.instance_id}: setup_patch: {error}") from error
        return tree.rename(folder)


def copy_tree(source: Path, folder: Path) -> Path:
    """Copy a tree without caches. BadInput for a link that leads out of it."""
    for link in _links(source):
        target = link.resolve()
        if not target.is_relative_to(source.resolve()) or link.readlink().is_absolute():
            raise BadInput(f"{link} leads out of the tree; put a copy in its place")
    shutil.copytree(source, folder, symlinks=True, ignore=_left_out)
    return folder


def patch_tree(tree: Path, patch: str) -> list[str]:
    """Apply a patch to a tree on disk: all of it, or BadInput and nothing. Returns the paths touched."""
    done = changes(lambda path: read_text(tree, path), patch)
    for path, text in done.written.items():
        file = inside(tree, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    for path in done.deleted:
        inside(tree, path).unlink()
    return sorted({*done.written, *done.deleted})


def read_text(tree: Path, path: str) -> str | None:
    """Text of a file of the tree, line ends and bytes that are no UTF-8 kept; None if it is not there."""
    file = inside(tree, path)
    if not file.is_file():
        return None
    return file.read_bytes().decode("utf-8", "surrogateescape")


def inside(tree: Path, path: str) -> Path:
    """The file of the tree that `path` names. BadInput if a link is on the way."""
    check_path(path)
    file = tree
    for part in path.split("/"):
        file = file / part
        if file.is_symlink():
            raise BadInput(f"the path {path!r} goes through the link {part!r}: links are not followed")
    return file


def _left_out(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name in LEFT_OUT or name.endswith((".pyc", ".pyo"))}


def _links(source: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(source):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT]
        for name in (*subfolders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                yield path


def _export(repository: Path, commit: str, folder: Path, *, name: str) -> None:
    """The tree of a commit, by `git archive`: nothing of the repository's configuration is run."""
    git = shutil.which("git")
    if git is None:
        raise Unsupported(f"{name}: {repository} is a git repository and git is not installed")
    if commit.startswith("-"):
        raise BadInput(f"{name}: base_commit {commit!r} is no commit")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive, raw = Path(scratch, "tree.tar"), Path(scratch, "tree")
        command = [git, "-c", "safe.directory=*", "-C", str(repository), "archive", "--format=tar"]
        command += ["--output", str(archive), f"{commit}^{{commit}}"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=GIT_SECONDS_MAX, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"{name}: git took more than {GIT_SECONDS_MAX} s to export {commit}") from error
        if done.returncode != 0:
            raise NotFound(
                f"{name}: base_commit {commit} is not in {repository}: {done.stderr.strip()[:300]}; "
                "fetch it there, or leave base_commit empty to take the working tree"
            )
        raw.mkdir()
        with tarfile.open(archive) as tar:
            tar.extractall(raw, filter="data")
        copy_tree(raw, folder)
