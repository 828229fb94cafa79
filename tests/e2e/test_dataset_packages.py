"""Sources fetched by the real pip, from a folder in place of an index."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from hermes_runtime.errors import Damaged, PeerLost
from hermes_runtime.evaluate.datasets.packages import fetch_sdists, pins, prepare

INFO = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
TRAP = "raise SystemExit('the source distribution was run')\n"


def sdist(folder: Path, name: str, version: str, backend: str) -> str:
    """Make one whose build would fail; returns its requirement line."""
    files = {
        "PKG-INFO": INFO.format(name=name, version=version),
        "setup.py": TRAP,
        "pyproject.toml": f'[build-system]\nrequires = ["nothing-there"]\nbuild-backend = "{backend}"\n',
    }
    file = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def test_sources_are_fetched_whatever_builds_them_and_nothing_of_them_runs(tmp_path, shelf):
    backends = ("setuptools.build_meta", "flit_core.buildapi", "hatchling.build", "pdm.backend")
    lines = [sdist(shelf, f"trap{n}", "1.0", backend) for n, backend in enumerate(backends)]
    found = fetch_sdists("".join(lines), tmp_path)
    assert [file.name for file in found] == [f"trap{n}-1.0.tar.gz" for n in range(4)]


def test_other_bytes_than_the_pinned_ones_are_damage_and_reach_no_cache(tmp_path, shelf):
    sdist(shelf, "inflection", pins()["inflection"].version, "setuptools.build_meta")
    with pytest.raises(Damaged, match="other bytes than the pinned"):
        prepare(["inflection"], tmp_path / "cache", print)
    assert not list((tmp_path / "cache").iterdir())


def test_an_index_that_cannot_be_reached_is_named_with_the_remedy(tmp_path, shelf):
    with pytest.raises(PeerLost, match="PIP_INDEX_URL"):
        prepare(["inflection"], tmp_path / "cache", print)
