"""Which paths of the host an instance's interpreter needs to be seen at, and no more.

Found from links and `pyvenv.cfg` alone: nothing of the environment is run to learn it. A folder is
taken whole only where it is a virtual environment or an installation of Python; a link is taken as a
link, so that `~/.local/bin/python` does not bring `~/.local` with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermes_runtime.errors import BadInput

SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Read and executed by every program; links to `/usr` on a merged system."""
ETC: Final = tuple(
    f"/etc/{name}"
    for name in [
        "alternatives",
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "localtime",
        "mime.types",
        "nsswitch.conf",
        "os-release",
        "passwd",
        "group",
        "protocols",
        "services",
        "ssl",
        "timezone",
    ]
)
_HOPS_MAX = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """Paths to show at the same place; in order."""

    folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    """(where, what it says), none below `folders` or the system."""


def interpreter_of(python: Path) -> Interpreter:
    """What `python` needs. BadInput if it is not there."""
    if not python.exists():
        raise BadInput(f"interpreter {python} is not there; install the instance's environment first")
    folders: list[str] = []
    links: dict[str, str] = {}
    real, hops = _follow(python.absolute())
    for environment in dict.fromkeys(hop.parent.parent for hop in (*hops, real)):
        if (environment / "pyvenv.cfg").is_file():
            folders.append(str(_follow(environment, links)[0]))
            home = _home(environment)
            if home is not None:
                _follow(home, links)
                _follow(home / "python3", links)
    _follow(python.absolute(), links)
    prefix = real.parent.parent
    folders.append(str(prefix if _is_installation(prefix) else real))
    wanted = [one for one in dict.fromkeys(folders) if not _is_below(one, SYSTEM)]
    return Interpreter(
        folders=tuple(wanted),
        links=tuple(item for item in links.items() if not _is_below(item[0], (*SYSTEM, *wanted))),
    )


def _follow(path: Path, links: dict[str, str] | None = None) -> tuple[Path, list[Path]]:
    """The real path and the file's links on the way to it; notes every link, also of folders, in `links`."""
    hops: list[Path] = []
    here, rest = Path("/"), list(path.parts[1:])
    for _ in range(_HOPS_MAX * 16):
        if not rest:
            return here, hops
        part = rest.pop(0)
        if part == "..":
            here = here.parent
            continue
        step = here / part
        if step.is_symlink():
            target = step.readlink()
            if links is not None:
                links[str(step)] = str(target)
            if not rest:
                hops.append(step)
            if target.is_absolute():
                here = Path("/")
            rest = [*(one for one in target.parts if one != "/"), *rest]
        else:
            here = step
    raise BadInput(f"interpreter {path} is a circle of links")


def _home(environment: Path) -> Path | None:
    for line in (environment / "pyvenv.cfg").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home":
            return Path(value.strip())
    return None


def _is_installation(prefix: Path) -> bool:
    return any((prefix / "lib").glob("python3*/os.py"))


def _is_below(path: str, folders: tuple[str, ...] | list[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)
