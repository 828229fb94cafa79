"""Which packages mutants are made of: source distributions pinned by sha256, a test environment each.

Fetched by pip, which checks the hashes and knows this host's index, proxy and certificates. Nothing
of a source distribution is built or run for that: pip is given stand-ins for the build back ends that
read PKG-INFO and nothing else. What is ready lies in a cache folder under names made of contents,
appears there whole or not at all, and is not fetched twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from hermes_runtime.errors import BadInput, Damaged, HermesError, PeerLost, Unsupported

Say = Callable[[str], None]
"""Takes one line of progress."""

PIP_TIMEOUT_SECONDS = 600
SDIST_BYTES_MAX = 64 << 20
"""Most bytes that one source distribution may unpack to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A source distribution whose tests run offline, in seconds, from the unpacked tree."""

    name: str
    licence: str
    code: str
    """Folder of the code, relative to the tree."""
    tests: tuple[str, ...]
    """Test files, or folders that are searched for test_*.py."""
    import_roots: tuple[str, ...] = (".",)
    skip: tuple[str, ...] = ()
    """Beginnings of test ids that are left out: slow, timing, subprocesses, network."""


PACKAGES: tuple[Package, ...] = (
    Package(
        name="boltons",
        licence="BSD-3-Clause",
        code="boltons",
        tests=("tests",),
        skip=(
            "tests/test_funcutils.py::test_once_thread_safety",
            "tests/test_funcutils_fb_py3.py::test_wraps_async",
            "tests/test_gcutils.py",
            "tests/test_socketutils.py",
            "tests/test_debugutils_trace.py",
            "tests/test_ecoutils.py",
            "tests/test_listutils.py::test_barrel_list",
        ),
    ),
    Package(
        name="cachetools",
        licence="MIT",
        code="src/cachetools",
        tests=("tests",),
        import_roots=("src", "."),
        skip=("tests/test_threading.py",),
    ),
    Package(
        name="humanize",
        licence="MIT",
        code="src/humanize",
        tests=("tests",),
        import_roots=("src", "."),
        skip=("tests/test_benchmarks.py", "tests/test_i18n.py"),
    ),
    Package(name="inflection", licence="MIT", code="inflection", tests=("test_inflection.py",)),
    Package(
        name="more-itertools",
        licence="MIT",
        code="more_itertools",
        tests=("tests",),
        skip=(
            "tests/test_recipes.py::PrimeFunctionTests",
            "tests/test_recipes.py::PolynomialFromRootsTests::test_large",
            "tests/test_recipes.py::RunningMedianTests::test_vs_statistics_median",
            "tests/test_recipes.py::FactorTests::test_cross_check",
            "tests/test_more.py::DiscreteFourierTransformTests::test_roundtrip",
            "tests/test_more.py::TestConcurrentTee",
            "tests/test_more.py::TestSerialize",
            "tests/test_more.py::TestSynchronized",
            "tests/test_more.py::TestRandomOrderedRange::test_lcg_mitigation",
            "tests/test_more.py::CallbackIterTests",
            "tests/test_more.py::TimeLimitedTests",
            "tests/test_more.py::ExtractTests",
            "tests/test_more.py::DistinctPermutationsTests::test_r",
            "tests/test_more.py::TestSubfactorial::test_vs_derangements",
            "tests/test_more.py::IsliceExtendedTests::test_all",
            "tests/test_more.py::DerangementsTests::test_unique_values",
            "tests/test_more.py::MinMaxTests::test_key_matches_builtins",
        ),
    ),
    Package(
        name="tabulate",
        licence="MIT",
        code="tabulate",
        tests=("test",),
        skip=("test/test_cli.py", "test/test_api.py"),
    ),
    Package(
        name="toolz",
        licence="BSD-3-Clause",
        code="toolz",
        tests=("toolz",),
        skip=("toolz/sandbox", "toolz/tests/test_inspect_args.py", "toolz/tests/test_tlz.py"),
    ),
    Package(
        name="webcolors",
        licence="BSD-3-Clause",
        code="src/webcolors",
        tests=("tests",),
        import_roots=("src", "."),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A tree with tests and an interpreter that runs them: what mutants are made of."""

    name: str
    version: str
    """Version and digest of the source; goes into the instances' base_commit."""
    tree: Path
    python: Path
    code: str
    tests: tuple[str, ...]
    import_roots: tuple[str, ...] = (".",)
    skip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One line of packages.txt."""

    version: str
    sha256: str


def package(name: str) -> Package:
    """The package of that name; BadInput that lists those there are."""
    for known in PACKAGES:
        if known.name == name:
            return known
    raise BadInput(f"package {name!r} is not one that mutants are made of; there are {', '.join(names())}")


def names() -> tuple[str, ...]:
    """Names of all packages, in order."""
    return tuple(known.name for known in PACKAGES)


def pins() -> dict[str, Pin]:
    """Version and sha256 of each package's source distribution."""
    text = _resource("packages.txt")
    found = re.findall(r"^([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", text, flags=re.MULTILINE)
    return {name: Pin(version=version, sha256=sha256) for name, version, sha256 in found}


def prepare(wanted: Sequence[str], cache: Path, say: Say) -> list[Subject]:
    """Fetch and set up what is not in the cache yet; the network is needed for that alone.

    Raises:
        BadInput: no such package. PeerLost: the package index cannot be reached.
        Damaged: the index has other bytes than the pinned ones. Unsupported: no pip here.
    """
    chosen = [package(name) for name in wanted]
    sources = _sources(chosen, cache, say)
    environments = _environments(chosen, sources, cache, say)
    return [
        Subject(
            name=one.name,
            version=f"{pins()[one.name].version} sha256:{pins()[one.name].sha256}",
            tree=sources[one.name],
            python=environments[one.name] / "bin" / "python",
            code=one.code,
            tests=one.tests,
            import_roots=one.import_roots,
            skip=one.skip,
        )
        for one in chosen
    ]


def _sources(chosen: Sequence[Package], cache: Path, say: Say) -> dict[str, Path]:
    known = pins()
    folders = {
        one.name: cache / "sources" / f"{one.name}-{known[one.name].version}-{known[one.name].sha256[:16]}"
        for one in chosen
    }
    missing = [one for one in chosen if not folders[one.name].is_dir()]
    if not missing:
        return folders
    say(f"fetching sources of {', '.join(one.name for one in missing)}")
    with _scratch(cache) as scratch:
        lines = [f"{p.name}=={known[p.name].version} --hash=sha256:{known[p.name].sha256}\n" for p in missing]
        fetched = fetch_sdists("".join(lines), scratch)
        by_digest = {sha256_of(file): file for file in fetched}
        for one in missing:
            sdist = by_digest.get(known[one.name].sha256)
            if sdist is None:
                raise Damaged(f"pip brought no file with the pinned sha256 of {one.name}; clear pip's cache")
            tree = scratch / f"tree-{one.name}"
            unpack(sdist, tree, keep=(one.code, *one.tests))
            publish(tree, folders[one.name])
    return folders


def fetch_sdists(requirements: str, scratch: Path) -> list[Path]:
    """Source distributions, pinned by hash in pip's format, as files in `scratch`; none is built or run."""
    pinned = scratch / "requirements.txt"
    pinned.write_text(requirements, encoding="utf-8")
    backends = scratch / "backends"
    for name in _BACKENDS:
        module = backends.joinpath(*name.split(".")).with_suffix(".py")
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(_STAND_IN, encoding="utf-8")
        # without it, a real back end that is installed here would win
        for folder in module.parents[: len(name.split(".")) - 1]:
            (folder / "__init__.py").touch()
    # `--no-deps`, no isolation: no build requirement is fetched either
    arguments = ["download", "--require-hashes", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    arguments += ["--dest", str(scratch / "sdists"), "--requirement", str(pinned)]
    _pip(arguments, what="sources of packages", python_path=str(backends))
    return sorted((scratch / "sdists").iterdir())


def _environments(
    chosen: Sequence[Package], sources: Mapping[str, Path], cache: Path, say: Say
) -> dict[str, Path]:
    base = f"{sys.implementation.cache_tag}\n{sys.base_prefix}\n{sys.version}\n{_resource('environment.txt')}"
    key = hashlib.sha256(base.encode()).hexdigest()[:16]
    known = pins()
    folders = {
        one.name: cache / "environments" / f"{one.name}-{known[one.name].version}-{key}" for one in chosen
    }
    missing = [one for one in chosen if not _runs(folders[one.name])]
    if not missing:
        return folders
    template = cache / "environments" / f"template-{key}"
    if not _runs(template):
        say("installing pytest and coverage for the test environments")
        with _scratch(cache) as scratch:
            requirements = scratch / "environment.txt"
            requirements.write_text(_resource("environment.txt"), encoding="utf-8")
            new = scratch / "template"
            _make_environment(new)
            arguments = ["--python", str(new / "bin" / "python"), "install", "--require-hashes", "--no-deps"]
            arguments += ["--only-binary", ":all:", "--requirement", str(requirements)]
            _pip(arguments, what="pytest and coverage")
            publish(new, template)
    for one in missing:
        with _scratch(cache) as scratch:
            new = scratch / one.name
            _make_environment(new)
            site, filled = _site_packages(new), _site_packages(template)
            site.rmdir()
            shutil.copytree(filled, site, copy_function=_link, symlinks=True)
            _note_installed(site, one, sources[one.name])
            publish(new, folders[one.name])
    return folders


def _make_environment(folder: Path) -> None:
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    # scripts would name the folder that the environment is made in
    for file in (folder / "bin").iterdir():
        if not file.name.startswith("python"):
            file.unlink()


def _site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _note_installed(site: Path, one: Package, tree: Path) -> None:
    """Let `importlib.metadata.version` find the package, as its code may ask; the code is in the tree."""
    version = pins()[one.name].version
    folder = site / f"{one.name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    shutil.copyfile(tree / "PKG-INFO", folder / "METADATA")
    (folder / "INSTALLER").write_text("hermes\n", encoding="utf-8")


def _runs(environment: Path) -> bool:
    """Whether an environment is there and its base interpreter still is."""
    return (environment / "bin" / "python").exists()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _pip(arguments: Sequence[str], *, what: str, python_path: str | None = None) -> None:
    program = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        outside = shutil.which("pip")
        if outside is None:
            raise Unsupported(
                f"pip is needed for {what}, and not there; `{sys.executable} -m ensurepip` installs it"
            )
        program = [outside]
    # older pips run setup.py where no back end is named, unless told otherwise; newer ones never do
    environment = {**os.environ, "PIP_USE_PEP517": "1"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    environment.pop("PYTHONPATH", None)
    if python_path is not None:
        environment["PYTHONPATH"] = python_path
    command = [*program, "--quiet", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PeerLost(f"pip brought no {what} within {PIP_TIMEOUT_SECONDS} s; check the network") from error
    if done.returncode != 0:
        raise refusal(what, done.stderr)


def refusal(what: str, stderr: str) -> HermesError:
    """What pip's complaint means."""
    lines = [re.sub(r"//[^/\s@]*@", "//", line.strip()) for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    said = "; ".join(errors[:2])[:500]
    if "DO NOT MATCH THE HASHES" in stderr:
        return Damaged(f"the package index has other bytes than the pinned {what}: {said}")
    unreachable = ("connection", "temporary failure", "timed out", "no matching distribution", "proxy", "ssl")
    if any(sign in stderr.lower() for sign in unreachable):
        return PeerLost(
            f"the package index could not give {what}: {said}. Check the network and pip's settings "
            "(PIP_INDEX_URL, PIP_PROXY), or set HERMES_CACHE to a folder that another host has filled"
        )
    return HermesError(f"pip could not get {what}: {said}")


def unpack(sdist: Path, folder: Path, *, keep: Sequence[str]) -> None:
    """Unpack the files of a source distribution's top level and of the folders in `keep`.

    Raises:
        BadInput: not a tar file, or one whose files would leave the folder or fill the disk.
    """
    kept = {PurePosixPath(name).parts[0] for name in keep}
    budget = SDIST_BYTES_MAX
    try:
        with tarfile.open(sdist) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise BadInput(f"{sdist.name} holds the path {member.name!r}, which leaves its folder")
                inner = path.parts[1:]
                if not member.isfile() or not inner or (len(inner) > 1 and inner[0] not in kept):
                    continue
                budget -= member.size
                if budget < 0:
                    raise BadInput(f"{sdist.name} unpacks to more than {SDIST_BYTES_MAX} bytes")
                stream = archive.extractfile(member)
                assert stream is not None
                target = folder.joinpath(*inner)
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except tarfile.TarError as error:
        raise BadInput(f"{sdist.name} is no tar file that can be read: {error}") from error


def sha256_of(file: Path) -> str:
    """Digest of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(new: Path, place: Path) -> None:
    """Move a finished folder to its place. Whoever comes second leaves the first one's."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        broken = new.parent / f"{new.name}-broken"
        if (place / "bin").is_dir() and not _runs(place):
            place.rename(broken)
        else:
            return
    try:
        new.rename(place)
    except OSError:
        if not place.is_dir():
            raise


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder on the cache's file system, gone at the end."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as folder:
        yield Path(folder)


def _resource(name: str) -> str:
    return resources.files("hermes_runtime.evaluate.datasets").joinpath(name).read_text(encoding="utf-8")


_BACKENDS = ("setuptools.build_meta", "flit_core.buildapi", "hatchling.build", "pdm.backend")
_STAND_IN = '''\
"""Stands in for a build back end: gives the metadata that the source distribution already holds."""
import email
import pathlib
import sys

__legacy__ = sys.modules[__name__]


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    said = email.message_from_bytes(pathlib.Path("PKG-INFO").read_bytes())
    folder = pathlib.Path(metadata_directory, f"{said['Name'].replace('-', '_')}-{said['Version']}.dist-info")
    folder.mkdir()
    text = f"Metadata-Version: 2.1\\nName: {said['Name']}\\nVersion: {said['Version']}\\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return folder.name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise SystemExit("nothing is built here")
'''
