"""The store behind a certificate: for runs and for `hermes fetch`; nobody else's authority will do."""

import subprocess
from pathlib import Path

import pytest

from hermes_runtime.errors import PeerLost
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import tcp
from tests.cluster.installation import NAMESPACE, ONE_DEFECT, Installation

SERVER = f"hermes-store.{NAMESPACE}.svc"


def authority(folder: Path) -> Path:
    """ca.crt and ca.key of a new certificate authority, in a new folder."""
    folder.mkdir()
    _openssl("req", "-x509", *_new_key(folder / "ca.key"), "-subj", "/CN=a test", "-out", folder / "ca.crt")
    return folder


def certificate(signer: Path, name: str) -> None:
    """tls.crt and tls.key for this host's name, signed by the authority in `signer`."""
    signed: list[str | Path] = [
        "-CA",
        signer / "ca.crt",
        "-CAkey",
        signer / "ca.key",
        "-out",
        signer / "tls.crt",
    ]
    named: list[str | Path] = ["-subj", "/CN=store", "-addext", f"subjectAltName=DNS:{name}"]
    _openssl("req", "-x509", *_new_key(signer / "tls.key"), *named, *signed)


def _new_key(file: Path) -> list[str | Path]:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    return [*curve, "-days", "2", "-keyout", file]


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


async def test_a_run_and_its_fetch_go_by_tls_and_another_authority_is_refused(
    installation: Installation, tmp_path: Path
) -> None:
    ours, foreign = authority(tmp_path / "ours"), authority(tmp_path / "foreign")
    certificate(ours, SERVER)
    files = ["--cert", str(ours / "tls.crt"), "--key", str(ours / "tls.key")]
    installation.kubectl("create", "secret", "tls", "store-tls", *files)
    for name, folder in (("store-ca", ours), ("foreign-ca", foreign)):
        installation.kubectl("create", "configmap", name, "--from-file", str(folder / "ca.crt"))
    installation.be(store={"tls": {"secret": "store-tls", "caConfigMap": "store-ca"}})
    run = installation.start("by-tls", evaluate=ONE_DEFECT)
    run.succeeds()
    [relay] = {
        tuple(one["args"])
        for pod in run.pods()
        for one in pod["spec"]["initContainers"]
        if one["name"] == "store"
    }
    assert "--ca-file" in relay
    fetched = installation.folder_of("by-tls", tmp_path / "run")
    assert len(fetched.recorded()) == run.status["progress"]["total"]

    refused = installation.fetched("by-tls", "--out", str(tmp_path / "no"), "--store-ca", "foreign-ca")
    assert refused.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    reader = installation.kubectl("create", "token", "hermes-reader", "--audience", "hermes-store").strip()
    with installation.store_address() as address:
        trusting_nobody = tcp.channel(address, token=lambda: reader)
        async with StoreClient(trusting_nobody, timeout_seconds=10) as client:
            with pytest.raises(PeerLost):
                await client.head(f"{run.status['runId']}/shard/0")
    run.delete()
