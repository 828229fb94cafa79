"""Whose code the model learns from: the standard library of the running Python and pinned packages.

The packages are read from their archives, never installed or imported. Packages that instances are
made of are kept out, also where another package carries a copy of them. Fetching needs a package
index; everything after it works offline.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hermes_runtime.errors import BadInput, Unsupported

EXCLUDED = frozenset(
    [
        "boltons",
        "humanize",
        "inflection",
        "more_itertools",
        "tabulate",
        "toolz",
        "cytoolz",
        "cachetools",
        "parse",
        "semver",
        "jmespath",
        "slugify",
        "python_slugify",
        "textdistance",
        "webcolors",
        "natsort",
        "xmltodict",
        "sortedcontainers",
        "wcwidth",
        "mistune",
        "iniconfig",
        "pyparsing",
    ]
)
"""Instances come from these: never trained on."""

VALIDATION = ("arrow", "marshmallow", "sqlparse")
"""Held out by package: the loop's own measurements."""

_SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "_vendor",
        "vendor",
        "vendored",
        "_vendored",
        "extern",
        "externals",
        "idle_test",
        "site-packages",
        "__pycache__",
        "bench",
        "benchmarks",
    ]
)
_MODULE_BYTES_MAX = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One file of source."""

    package: str
    path: str
    text: str


def fetch(lists: tuple[str, ...], into: Path) -> None:
    """Download the pinned wheels of `train/<list>.txt` into a folder; what is there is kept.

    Raises Unsupported where the index cannot be reached or a hash does not match (pip's words).
    """
    into.mkdir(parents=True, exist_ok=True)
    for name in lists:
        with resources.as_file(resources.files(__package__) / f"{name}.txt") as pinned:
            wanted = len(re.findall(r"^\S+==", pinned.read_text(encoding="utf-8"), flags=re.MULTILINE))
            target = into / name
            if target.is_dir() and len(list(target.glob("*.whl"))) == wanted:
                continue
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
            command += ["--only-binary", ":all:", "--dest", str(target), "--requirement", str(pinned)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unsupported(
                f"the packages of {name}.txt could not be fetched: {done.stderr.strip()[-400:]}; "
                "fetch them where a package index can be reached, or train with small=True"
            )


def package_of(archive: Path) -> str:
    """`python_dateutil` of `python_dateutil-2.9.0-py3-none-any.whl`."""
    name = re.split(r"-\d", archive.name, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "_", name).lower()


def modules_of_archive(archive: Path, keep_excluded: bool = False) -> Iterator[Module]:
    """The package's own modules, by path. BadInput for an archive that is neither wheel nor sdist.

    `keep_excluded`: also those of the packages that are never trained on.
    """
    package = package_of(archive)
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                if _is_wanted(name, keep_excluded):
                    yield from _module(package, name, opened.read(name))
    elif archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as opened_tar:
            for member in sorted(opened_tar.getmembers(), key=lambda m: m.name):
                inside = member.name.partition("/")[2]
                if member.isfile() and _is_wanted(inside, keep_excluded):
                    file = opened_tar.extractfile(member)
                    if file is not None:
                        yield from _module(package, inside, file.read())
    else:
        raise BadInput(f"{archive.name} is neither a wheel nor an sdist; give one of the two")


def modules_of_stdlib() -> Iterator[Module]:
    """The standard library of the running Python without its tests, by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if _is_wanted(name):
            yield from _module("stdlib", name, file.read_bytes())


def _is_wanted(name: str, keep_excluded: bool = False) -> bool:
    if not name.endswith(".py"):
        return False
    parts = name.removesuffix(".py").split("/")
    if any(part in _SKIPPED_FOLDERS or ".data" in part for part in parts[:-1]):
        return False
    return keep_excluded or not EXCLUDED.intersection(part.lower() for part in parts)


def _module(package: str, path: str, data: bytes) -> Iterator[Module]:
    if len(data) > _MODULE_BYTES_MAX:
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return
    yield Module(package=package, path=path, text=text.replace("\r\n", "\n"))
