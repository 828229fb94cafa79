"""A Docker engine for the cluster: the one that runs here, else one started by hand and stopped again.

`found()` looks for an engine that somebody runs already (DOCKER_HOST, or the usual socket), which is used
and never stopped. Otherwise `start()` runs Debian's dockerd with everything of its own under two folders:
images in the cache, where they survive, and sockets and state under RUN, which `stop()` removes with the
firewall chains that dockerd leaves behind. Where root lacks CAP_SYS_RESOURCE, runc goes through
runc_within_bounds.py. Called by tests.cluster.kind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import cluster_cache, step
from tests.cluster.packages import missing_packages, which

RUN = Path("/run/hermes-cluster")
READY_SECONDS_MAX = 60.0
STOPPED_SECONDS_MAX = 60.0
CAP_SYS_RESOURCE = 24
CGROUP = "/hermes-cluster"
"""The engine's own part of the tree of cgroups, so that it is known what to take away."""
CHAINS = ("DOCKER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER-USER")
SETTINGS_OF_THE_KERNEL = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
"""What dockerd sets and never sets back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine and how to reach it."""

    host: str
    """Its DOCKER_HOST."""
    is_ours: bool
    """Whether `stop` may stop it."""

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """What a process needs that talks to it: the legacy builder, for there may be no BuildKit."""
        return {**given, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}

    def docker(self, *arguments: str) -> str:
        """What the client printed."""
        done = subprocess.run(
            [which("docker") or "docker", *arguments],
            env=self.environment(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def has_image(self, name: str) -> bool:
        return bool(self.docker("images", "--quiet", name).strip())


def found(environment: Mapping[str, str]) -> Engine | None:
    """An engine that is running here already: ours from an earlier `start`, or somebody else's."""
    ours = Engine(host=f"unix://{RUN}/docker.sock", is_ours=True)
    theirs = Engine(host=environment.get("DOCKER_HOST") or "unix:///var/run/docker.sock", is_ours=False)
    for engine in (ours, theirs):
        if which("docker") and _answers(engine):
            return engine
    return None


def missing() -> str | None:
    """What stands in the way of starting an engine here."""
    if os.geteuid() != 0:
        return "no Docker engine answers, and only root can start one"
    if packages := missing_packages():
        return f"no engine; install with: apt-get install --no-install-recommends {' '.join(packages)}"
    return None


def start(environment: Mapping[str, str]) -> Engine:
    """Start one, or return what `found` finds. Needs root."""
    engine = found(environment)
    if engine is not None:
        return engine
    if (without := missing()) is not None:
        raise RuntimeError(without)
    with step("starting the engine"):
        return _start(environment)


def _start(environment: Mapping[str, str]) -> Engine:
    RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remember(RUN / "before.json")
    data = cluster_cache(environment) / "engine"
    data.mkdir(mode=0o711, parents=True, exist_ok=True)
    configuration: dict[str, object] = {
        "data-root": str(data),
        "exec-root": str(RUN / "exec"),
        "pidfile": str(RUN / "docker.pid"),
        "hosts": [f"unix://{RUN}/docker.sock"],
        "cgroup-parent": CGROUP,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "bridge": "none",  # kind brings its own network; docker0 would only be left behind
        "log-level": "warn",
    }
    if not has_capability(Path("/proc/self/status").read_text(encoding="utf-8"), CAP_SYS_RESOURCE):
        runc = _bounded_runc(RUN / "runc")
        configuration |= {"runtimes": {"bounded": {"path": str(runc)}}, "default-runtime": "bounded"}
    (RUN / "daemon.json").write_text(json.dumps(configuration), encoding="utf-8")
    log = RUN / "dockerd.log"
    # By a shell that ends at once: the daemon is nobody's child, and outlives who started it.
    detached = 'setsid "$0" --config-file "$1" >"$2" 2>&1 </dev/null & echo $!'
    pid = subprocess.run(
        ["sh", "-c", detached, str(which("dockerd")), str(RUN / "daemon.json"), str(log)],
        env={**environment, "PATH": f"{environment.get('PATH', '')}:/usr/sbin:/sbin"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    engine = Engine(host=f"unix://{RUN}/docker.sock", is_ours=True)
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not _answers(engine):
        if not Path(f"/proc/{pid}").exists() or time.monotonic() > deadline:
            said = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RuntimeError(f"dockerd did not start:\n{said}")
        time.sleep(0.1)
    return engine


def stop() -> None:
    """Stop the engine that `start` started, and take back what it changed; nothing where none runs."""
    if not RUN.is_dir():
        return
    with step("stopping the engine"):
        pid = _daemon_pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOPPED_SECONDS_MAX
            while _daemon_pid() is not None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"dockerd (pid {pid}) does not stop")
                time.sleep(0.1)
        for mount in reversed(_mounts_under(RUN, cluster_cache(os.environ) / "engine")):
            subprocess.run(["umount", "--lazy", mount], check=True)
        if (RUN / "before.json").exists():
            _restore(RUN / "before.json")
        _remove_cgroups()
        shutil.rmtree(RUN)


def has_capability(status: str, number: int) -> bool:
    """Whether this /proc/<pid>/status has the capability of this number in effect."""
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> number & 1)


def iptables(*arguments: str) -> str:
    """What iptables printed; through sudo where this is not root."""
    command = [*(["sudo", "--non-interactive"] if os.geteuid() else []), str(which("iptables")), "--wait"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"iptables {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _answers(engine: Engine) -> bool:
    try:
        engine.docker("version", "--format", "{{.Server.Version}}")
    except RuntimeError:
        return False
    return True


def _bounded_runc(path: Path) -> Path:
    """-I -S: no site packages, for this starts with every exec into a container."""
    wrapper = Path(__file__).with_name("runc_within_bounds.py")
    path.write_text(
        f'#!/bin/sh\nHERMES_RUNC={which("runc")} exec {sys.executable} -I -S {wrapper} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def _daemon_pid() -> int | None:
    """The pid in our pid file, if that process is still a dockerd."""
    try:
        pid = int((RUN / "docker.pid").read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(RUN).encode() in command else None


def _mounts_under(*folders: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    targets = [line.split()[1] for line in lines]
    return [target for target in targets if any(target.startswith(f"{folder}/") for folder in folders)]


def _remove_cgroups() -> None:
    """Of every hierarchy, innermost first; they are empty, for their processes have ended."""
    hierarchies = Path("/sys/fs/cgroup")
    name = CGROUP.lstrip("/")
    for top in (*hierarchies.glob(name), *hierarchies.glob(f"*/{name}")):
        if not top.parent.is_symlink():  # cpu and cpuacct may be one hierarchy under two names
            for folder, _, _ in os.walk(top, topdown=False):
                Path(folder).rmdir()


def _firewall_chains() -> list[str]:
    """`table chain` for each chain there is."""
    names = []
    for table in ("filter", "nat"):
        for rule in iptables("--table", table, "--list-rules").splitlines():
            if rule.startswith("-N "):
                names.append(f"{table} {rule.split()[1]}")
    return names


def _remember(path: Path) -> None:
    """What `_restore` will put back; kept if it is there: then an earlier engine was not stopped."""
    if path.exists():
        return
    kernel = {}
    for name in SETTINGS_OF_THE_KERNEL:
        setting = Path("/proc/sys") / name
        if setting.exists():
            kernel[name] = setting.read_text(encoding="utf-8").strip()
    policy = iptables("--list-rules", "FORWARD").split()[2]
    content = {
        "chains": _firewall_chains(),
        "forward": policy,
        "kernel": kernel,
        "key": Path("/etc/docker/key.json").exists(),
        "folders": [str(folder) for folder in (Path("/etc/docker"), Path("/run/docker")) if folder.exists()],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _restore(path: Path) -> None:
    """Take away the chains that came since, every rule that jumps to them, and what else dockerd sets."""
    before = json.loads(path.read_text(encoding="utf-8"))
    added = [name.split() for name in _firewall_chains() if name not in before["chains"]]
    ours = [(table, chain) for table, chain in added if chain in CHAINS]
    for table in ("filter", "nat"):
        for rule in iptables("--table", table, "--list-rules").splitlines():
            parts = rule.split()
            if parts[0] == "-A" and any(parts[-1] == chain and table == of for of, chain in ours):
                iptables("--table", table, "--delete", *parts[1:])
    for table, chain in ours:
        iptables("--table", table, "--flush", chain)
    for table, chain in ours:
        iptables("--table", table, "--delete-chain", chain)
    iptables("--policy", "FORWARD", before["forward"])
    for name, value in before["kernel"].items():
        (Path("/proc/sys") / name).write_text(value, encoding="utf-8")
    if not before["key"]:
        Path("/etc/docker/key.json").unlink(missing_ok=True)
    for folder in ("/run/docker", "/etc/docker"):
        if folder not in before["folders"] and Path(folder).is_dir():
            shutil.rmtree(folder)
