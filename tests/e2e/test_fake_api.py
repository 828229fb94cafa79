"""What the played API refuses, compared with a real API server: a write over what is not there any more."""

from __future__ import annotations

import json
import ssl

import aiohttp
import pytest

from hermes_operator.crd import crd_yaml
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import bare_api as bare_api
from tests.cluster_requests import APPLY, MERGE_PATCH
from tests.e2e.fake_api import FakeApi, Object, new_run

NAMESPACE = "refusals"
FIELDS = "?fieldManager=hermes&force=true"
OTHER = {"uid": "another"}


class Client:
    """Asks one of the two for one resource."""

    def __init__(self, session: aiohttp.ClientSession, path: str, manifest: Object) -> None:
        self._session = session
        self._path = path
        self.manifest = manifest

    async def ask(self, method: str, name: str, body: object, kind: str = "application/json") -> int:
        return (await self.answer(method, name, body, kind))[0]

    async def answer(
        self, method: str, name: str, body: object, kind: str = "application/json"
    ) -> tuple[int, Object]:
        async with self._session.request(
            method, f"{self._path}/{name}".rstrip("/"), data=json.dumps(body), headers={"Content-Type": kind}
        ) as answer:
            return answer.status, await answer.json()

    def named(self, name: str, **metadata: str) -> Object:
        return {**self.manifest, "metadata": {"name": name, **metadata}}


async def refusals(client: Client, has_status: bool) -> dict[str, int]:
    """What each write is answered, in this order."""
    named, ask = client.named, client.ask
    _, made = await client.answer("POST", "", named("x"))
    stale, uid = {"resourceVersion": made["metadata"]["resourceVersion"]}, made["metadata"]["uid"]
    _, now = await client.answer("PATCH", "x", {"metadata": {"labels": {"a": "b"}}}, MERGE_PATCH)

    def replaced(**metadata: str | None) -> Object:
        kept = {**now["metadata"], **metadata}
        return {**now, "metadata": {name: value for name, value in kept.items() if value is not None}}

    def labelled(**metadata: str) -> Object:
        return {"metadata": {"labels": {"a": "c"}, **metadata}}

    answers = {
        "create again": await ask("POST", "", named("x")),
        "create a version": await ask("POST", "", named("z", **stale)),
        "patch stale": await ask("PATCH", "x", labelled(**stale), MERGE_PATCH),
        "patch another": await ask("PATCH", "x", labelled(**OTHER), MERGE_PATCH),
        "patch what is not there": await ask("PATCH", "y", labelled(), MERGE_PATCH),
        "apply stale": await ask("PATCH", "x" + FIELDS, named("x", **stale), APPLY),
        "apply another": await ask("PATCH", "x" + FIELDS, named("x", **OTHER), APPLY),
        "apply another that is not there": await ask("PATCH", "y" + FIELDS, named("y", **OTHER), APPLY),
        "replace stale": await ask("PUT", "x", replaced(**stale)),
        "replace another": await ask("PUT", "x", replaced(**OTHER)),
        "replace what is not there": await ask("PUT", "y", named("y", **stale)),
        "replace blindly": await ask("PUT", "x", replaced(resourceVersion=None)),
        "delete another": await ask("DELETE", "x", {"preconditions": OTHER}),
        "delete stale": await ask("DELETE", "x", {"preconditions": stale}),
        "patch the same": await ask("PATCH", "x", labelled(uid=uid), MERGE_PATCH),
        "apply the same": await ask("PATCH", "x" + FIELDS, named("x", uid=uid), APPLY),
    }
    if has_status:

        def status(name: str, **metadata: str) -> Object:
            return {**named(name, **metadata), "spec": None, "status": {"phase": "Starting"}}

        path = f"/status{FIELDS}"
        answers |= {
            "status stale": await ask("PATCH", "x" + path, status("x", **stale), APPLY),
            "status of another": await ask("PATCH", "x" + path, status("x", **OTHER), APPLY),
            "status of what is not there": await ask("PATCH", "y" + path, status("y", uid=uid), APPLY),
        }
    background = {"propagationPolicy": "Background"}
    return answers | {
        "delete the same": await ask("DELETE", "x", {**background, "preconditions": {"uid": uid}}),
        "delete what is not there": await ask("DELETE", "x", {"preconditions": {"uid": uid}}),
    }


def api_version(path: str) -> str:
    return path.split("/namespaces")[0].removeprefix("/apis/").removeprefix("/api/")


RUNS = f"/apis/hermes.dev/v1alpha1/namespaces/{NAMESPACE}/hermesruns"
POD = {"restartPolicy": "Never", "containers": [{"name": "driver", "image": "hermes:test"}]}
RESOURCES: dict[str, Object] = {
    RUNS: {"kind": "HermesRun", "spec": new_run("x")["spec"]},
    f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs": {
        "kind": "Job",
        "spec": {"suspend": True, "template": {"spec": POD}},
    },
    f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases": {
        "kind": "Lease",
        "spec": {"holderIdentity": "hermes"},
    },
    f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts": {"kind": "ServiceAccount"},
}


@pytest.fixture(scope="module")
def real(bare_api: ApiServer) -> ApiServer:
    bare_api.kubectl("apply", "--server-side", "-f", "-", stdin=crd_yaml())
    bare_api.kubectl("wait", "--for=condition=Established", "crd/hermesruns.hermes.dev", "--timeout=30s")
    bare_api.kubectl("create", "namespace", NAMESPACE)
    return bare_api


@pytest.mark.parametrize("path", RESOURCES, ids=lambda path: path.rpartition("/")[2])
async def test_the_played_api_refuses_what_a_real_one_refuses(real: ApiServer, path: str):
    manifest = {"apiVersion": api_version(path), **RESOURCES[path]}
    trusted = ssl.create_default_context(cafile=str(real.certificate))
    headers = {"Authorization": f"Bearer {real.token}"}
    connector = aiohttp.TCPConnector(ssl=trusted)
    async with aiohttp.ClientSession(real.url, connector=connector, headers=headers) as session:
        wanted = await refusals(Client(session, path, manifest), path == RUNS)
    async with FakeApi().served() as fake, aiohttp.ClientSession(fake.url) as session:
        assert await refusals(Client(session, path, manifest), path == RUNS) == wanted
