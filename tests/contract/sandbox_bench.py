"""A small environment and tree for the sandbox suites: pytest and coverage, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

_PACKAGES = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "coverage")

TREE = {
    "pkg/__init__.py": "",
    "pkg/sums.py": (
        "LIMIT = 100\n\n\ndef add(a, b):\n    if a > LIMIT:\n        return 0\n    return a + b\n\n\n"
        "class Box:\n    size = 3\n\n    def items(self):\n        return list(range(self.size))\n"
    ),
    "tests/test_sums.py": (
        "import pytest\nfrom pkg.sums import Box, add\n\n"
        "@pytest.mark.parametrize(('a', 'b'), [(1, 2), (101, 2)], ids=['a[x]', 'b::c/d'])\n"
        "def test_add(a, b):\n    assert add(a, b) == a + b\n\n"
        "def test_box(tmp_path):\n    assert Box().items() == [0, 1, 2]\n\n"
        "@pytest.mark.skip\ndef test_skipped():\n    pass\n\n"
        "@pytest.mark.xfail\ndef test_xfailed():\n    assert False\n\n"
        "@pytest.fixture\ndef broken():\n    raise ValueError\n\n"
        "def test_error(broken):\n    pass\n\n"
        "def test_prints():\n    print('hello')\n    assert [1, 2, object()] == [1, 2, 3]\n"
    ),
}


def make_environment(folder: Path, python: str) -> Path:
    """A virtual environment of `python` at `folder`; returns its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    installed = Path(sysconfig.get_paths()["purelib"])
    shutil.copy(installed / "py.py", site)
    for name in _PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(installed / name, site / name, ignore=ignore)
        for about in installed.glob(f"{name}-*.dist-info"):
            shutil.copytree(about, site / about.name)
    return folder / "bin" / "python"


def make_tree(folder: Path) -> Path:
    """The tree at `folder`."""
    for path, text in TREE.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
