"""A Kubernetes API without nodes: etcd and kube-apiserver as plain processes of this machine.

Ready in seconds; RBAC, admission, server-side apply, watches, TokenRequest and TokenReview are the real
ones. With `controllers` the controller manager runs too, so that Jobs get pods (which stay pending: no
node runs them), owners' children are collected and namespaces get their default ServiceAccount. Nothing
is kept: the data lie in a temporary folder without fsync. Tests and benchmarks of the operator call it.
"""

import json
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import Programs, programs

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}
"""What is written down: who of the installed ServiceAccounts asked for what. No bodies."""

ADMIN_TOKEN = "cluster-admin-of-a-cluster-that-is-gone-after-the-test"
READY_SECONDS_MAX = 60.0
LOOK_EVERY_SECONDS = 0.05
STARTS_MAX = 3
"""A free port may be taken before its server binds it: then all is started again on others."""


class Died(RuntimeError):
    """One of the processes ended by itself while it was waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """A running API server and its administrator's way in."""

    url: str
    token: str
    """A bearer token of the group system:masters."""
    certificate: Path
    """What a client must trust."""
    kubeconfig: Path
    programs: Programs
    audit_log: Path
    """What ServiceAccounts asked for, one JSON object a line; AUDIT_POLICY says more."""

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.programs.kubectl(self.kubeconfig, *arguments, stdin=stdin)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET by the administrator."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        trusted = urllib.request.HTTPSHandler(
            context=ssl.create_default_context(cafile=str(self.certificate))
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusted)
        try:
            with direct.open(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()

    def service_account(self, namespace: str, name: str, audience: str = "") -> str:
        """A token of this ServiceAccount, which must exist; for the API server, or for one audience."""
        wanted = ["--audience", audience] if audience else []
        return self.kubectl("--namespace", namespace, "create", "token", name, *wanted).strip()

    def kubeconfig_of(self, token: str, path: Path) -> Path:
        """Write the kubeconfig of whoever has this token."""
        return write_kubeconfig(path, self.url, self.certificate, token)


def write_kubeconfig(path: Path, url: str, certificate: Path, token: str) -> Path:
    named = {"cluster": "test", "user": "test"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": url, "certificate-authority": str(certificate)}},
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": named}],
        "current-context": "test",
    }
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML, and needs no quoting rules
    path.chmod(0o600)
    return path


@contextmanager
def api_server(*, controllers: bool = False, flags: Sequence[str] = ()) -> Iterator[ApiServer]:
    """Start one; it is ready when this enters, and gone with its data when it leaves.

    `flags` are kube-apiserver's, behind those that are given here.
    """
    built = programs()
    with ExitStack() as until_left:
        for start in range(1, STARTS_MAX + 1):
            attempt = ExitStack()
            try:
                server = _start(attempt, built, controllers=controllers, flags=flags)
            except Died:
                attempt.close()
                if start == STARTS_MAX:
                    raise
            except BaseException:
                attempt.close()
                raise
            else:
                until_left.enter_context(attempt)
                break
        yield server


def _start(running: ExitStack, built: Programs, *, controllers: bool, flags: Sequence[str]) -> ApiServer:
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="hermes-api-")))
    client_port, peer_port, port = _free_ports(3)
    etcd_url = f"http://127.0.0.1:{client_port}"
    peer_url = f"http://127.0.0.1:{peer_port}"
    etcd = [
        "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd_url}",
        f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    signing_key = folder / "service-accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", signing_key, "2048"], check=True, capture_output=True)
    tokens = folder / "tokens.csv"
    tokens.write_text(f"{ADMIN_TOKEN},administrator,administrator,system:masters\n", encoding="utf-8")
    policy, audit_log = folder / "audit-policy.json", folder / "audit.log"
    policy.write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")
    # Without its controller no namespace gets a ServiceAccount, and admission would refuse every pod.
    unneeded = [] if controllers else ["--disable-admission-plugins=ServiceAccount"]
    apiserver = [
        "kube-apiserver",
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={signing_key}",
        f"--service-account-signing-key-file={signing_key}",
        "--endpoint-reconciler-type=none",
        "--allow-privileged",
        "--profiling=false",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={audit_log}",
        *unneeded,
        *flags,
    ]
    certificate = folder / "certificates" / "apiserver.crt"
    url = f"https://127.0.0.1:{port}"
    server = ApiServer(
        url=url,
        token=ADMIN_TOKEN,
        certificate=certificate,
        kubeconfig=write_kubeconfig(folder / "kubeconfig", url, certificate, ADMIN_TOKEN),
        programs=built,
        audit_log=audit_log,
    )
    _run(running, built, folder, etcd)
    process = _run(running, built, folder, apiserver)
    _wait(
        lambda: certificate.exists() and _answers(server, "/readyz"), process, folder / "kube-apiserver.log"
    )
    if controllers:
        manager = [
            "kube-controller-manager",
            f"--kubeconfig={server.kubeconfig}",
            f"--service-account-private-key-file={signing_key}",
            f"--root-ca-file={certificate}",
            f"--cert-dir={folder / 'manager-certificates'}",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials",
            "--concurrent-job-syncs=20",
            "--profiling=false",
        ]
        process = _run(running, built, folder, manager)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        _wait(lambda: _answers(server, account), process, folder / "kube-controller-manager.log")
    return server


def _run(running: ExitStack, built: Programs, folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a program that also ends when this process does, however it does."""
    name, *arguments = command
    log = running.enter_context((folder / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", built.path(name), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def stop() -> None:
        process.kill()  # its data go with it: there is nothing to end gently
        process.wait()

    running.callback(stop)
    return process


def _answers(server: ApiServer, path: str) -> bool:
    try:
        return server.get(path)[0] == 200
    except OSError:
        return False


def _wait(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Look until it holds: another process's state is no event here."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not holds():
        if process.poll() is not None:
            raise Died(f"{log.stem} ended with {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log.stem} is not ready after {READY_SECONDS_MAX} s:\n{_tail(log)}")
        time.sleep(LOOK_EVERY_SECONDS)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
