"""The served store against a real API server: whose a token is, asked with the chart's rights and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import tcp
from tests.cluster import audit
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import bare_api as bare_api
from tests.cluster.rights import Account, chart_access, rights, unused, without
from tests.e2e.served import serving

STORE = Account("store-home", "hermes-store")
READER = Account("store-home", "hermes-reader")
BACKUP = Account("store-home", "hermes-backup")
RUN, OTHER_RUN = Account("store-team", "hermes-run-night"), Account("store-team", "hermes-run-day")
AUDIENCE = "hermes-store"


async def test_the_charts_role_gives_the_store_token_reviews_and_its_callers_nothing(
    bare_api: ApiServer, tmp_path: Path
):
    access = chart_access(bare_api.programs, tmp_path, STORE.namespace, "backup.enabled=true")
    for namespace in (STORE.namespace, RUN.namespace):
        bare_api.kubectl("create", "namespace", namespace)
    bare_api.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in access))
    for run in (RUN, OTHER_RUN):
        bare_api.kubectl("-n", run.namespace, "create", "serviceaccount", run.name)
    kubeconfig = bare_api.kubeconfig_of(bare_api.service_account(*STORE), tmp_path / "kubeconfig")
    words = ("store", "serve", "--folder", tmp_path / "store", "--listen", "127.0.0.1:0")
    readers = ("--reader", READER.user, "--reader", BACKUP.user)
    reviewed = (*words, "--authenticate", "token-review", *readers)
    served = serving(*reviewed, ready=tmp_path / "ready", KUBECONFIG=str(kubeconfig))

    async with served as (_, where):

        def caller(account: Account, audience: str = AUDIENCE) -> StoreClient:
            token = bare_api.service_account(*account, audience=audience)
            return StoreClient(tcp.channel(where, token=lambda: token))

        async with caller(RUN) as night, caller(OTHER_RUN) as other, caller(READER) as reader:
            digest, _ = await night.put(b"words", lease="store-team.night.0a1b2c3d/a")
            assert (await reader.get(digest))[0] == b"words"
            with pytest.raises(errors.Denied, match=OTHER_RUN.name):
                await other.head("store-team.night.0a1b2c3d/x")
        async with caller(RUN, audience="") as of_the_api_server, caller(BACKUP) as backup:
            with pytest.raises(errors.Unauthenticated, match="not valid for audience hermes-store"):
                await of_the_api_server.put(b"more")
            assert (await backup.get(digest))[0] == b"words"
            with pytest.raises(errors.Denied, match="write nothing"):
                await backup.put(b"more")

    held, asked = rights(access, STORE), audit.recorded(bare_api, STORE.user)
    assert unused(held, asked) == set()
    assert without(held, asked) == []
    # Readers and backups call the store and nothing else.
    for account in (READER, BACKUP):
        assert rights(access, account) == set()
        assert audit.recorded(bare_api, account.user) == []
