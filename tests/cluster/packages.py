"""Which Debian packages a cluster on this machine needs, and which of their programs are missing."""

import shutil
from collections.abc import Mapping

ENGINE_PACKAGES = {
    "dockerd": "docker.io",
    "docker-proxy": "docker.io",
    "docker": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "umount": "mount",
}
"""A program and the Debian package that brings it. Go is not among them: Debian's is too old."""

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def which(program: str) -> str | None:
    """Its path; also from the folders that only root has in its PATH."""
    return shutil.which(program) or shutil.which(program, path=SEARCHED)


def missing_packages(wanted: Mapping[str, str] = ENGINE_PACKAGES) -> list[str]:
    """What apt-get must install before `up`, each once."""
    return sorted({package for program, package in wanted.items() if which(program) is None})
