"""A test cluster's programs, built from source with Go: there may be no image and no release to fetch.

One Go program holds them all (main.go says why) and is linked under each of their names. What was built
is kept in a folder named by the content that it was built from, so a second call returns at once. Who
needs a program asks `programs()`; nothing here starts one.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ("go.mod", "go.sum", "main.go", "pause/main.go")
KUBERNETES_VERSION = "v1.34.4"
"""The version of k8s.io/kubernetes in go.mod."""
STAMPS = {
    "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
    "k8s.io/component-base/version.gitMajor": "1",
    "k8s.io/component-base/version.gitMinor": "34",
    "helm.sh/helm/v4/internal/version.version": "v4.0.5",
    "helm.sh/helm/v4/internal/version.kubeClientVersionMajor": "1",
    "helm.sh/helm/v4/internal/version.kubeClientVersionMinor": "34",
    "helm.sh/helm/v4/pkg/chart/common.k8sVersionMajor": "1",
    "helm.sh/helm/v4/pkg/chart/common.k8sVersionMinor": "34",
    "helm.sh/helm/v4/pkg/chart/v2/lint/rules.k8sVersionMajor": "1",
    "helm.sh/helm/v4/pkg/chart/v2/lint/rules.k8sVersionMinor": "34",
}
"""What the linker writes into variables: a program built from modules cannot know its own version."""
NAMES = (
    "coredns",
    "etcd",
    "helm",
    "kind",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
)
PROGRAM = "cluster-programs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where the built programs lie: one file, and a link to it under each of NAMES."""

    folder: Path

    def path(self, name: str) -> Path:
        if name not in NAMES and name not in ("pause", PROGRAM):
            raise KeyError(name)
        return self.folder / name

    def kubectl(self, kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl printed; a refusal carries what it said."""
        done = subprocess.run(
            [self.path("kubectl"), "--kubeconfig", kubeconfig, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def cluster_cache(environment: Mapping[str, str]) -> Path:
    """Where what a test cluster is made of is kept: $HERMES_CACHE/cluster, else build/cache/cluster."""
    return Path(environment.get("HERMES_CACHE") or ROOT / "build" / "cache").absolute() / "cluster"


def content_key(files: Mapping[str, bytes]) -> str:
    """A name for this content: the same files, the same name."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()[:16]


def missing_go() -> str | None:
    """What stands in the way of building the programs."""
    return (
        None
        if shutil.which("go")
        else "the program `go` (1.24 or newer) is missing: a test cluster is built with it"
    )


def programs(environment: Mapping[str, str] = os.environ) -> Programs:
    """Build the programs unless they are there already. Safe to call from several processes at once."""
    if (missing := missing_go()) is not None:
        raise RuntimeError(missing)
    cache = cluster_cache(environment)
    made_of = {name: (HERE / name).read_bytes() for name in SOURCES}
    folder = cache / content_key({**made_of, "stamps": repr(sorted(STAMPS.items())).encode()}) / "bin"
    built = Programs(folder=folder)
    if not folder.is_dir():
        with locked(cache / "programs.lock"):
            if not folder.is_dir():
                _build(folder, environment)
    return built


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this name against every other process; who comes second waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on stderr what begins, and what it took when it is over."""
    print(f"cluster: {what} …", file=sys.stderr, flush=True)
    begun = time.monotonic()
    yield
    print(f"cluster: {what}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)


def _build(folder: Path, environment: Mapping[str, str]) -> None:
    """Into a folder beside it, renamed at the end: what exists under the name is whole."""
    fresh = folder.with_name(f"bin.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    settings = {**environment, "CGO_ENABLED": "0", "GOWORK": "off"}
    with step("downloading the programs' modules"):
        needed = ["go", "list", "-deps", ".", "./pause"]  # `go mod download` would fetch as much again
        done = subprocess.run(needed, cwd=HERE, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the modules could not be downloaded:\n{done.stderr[-2000:]}")
    with step("compiling the programs (minutes, once)"):
        _compile(".", fresh / PROGRAM, settings)
        _compile("./pause", fresh / "pause", settings)
    for name in NAMES:
        (fresh / name).symlink_to(PROGRAM)
    fresh.rename(folder)


def _compile(package: str, target: Path, settings: Mapping[str, str]) -> None:
    linker = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in STAMPS.items())])
    command = ["go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", str(target)]
    compiler = subprocess.Popen(
        [*command, package], cwd=HERE, env=settings, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    assert compiler.stderr is not None
    packages = 0
    said: list[str] = []
    with compiler:
        for line in compiler.stderr:
            said.append(line)
            packages += 1
            if packages % 200 == 0:
                print(f"cluster: {packages} packages compiled", file=sys.stderr, flush=True)
    if compiler.returncode:
        raise RuntimeError(f"go build {package} failed:\n{''.join(said[-40:])}")
