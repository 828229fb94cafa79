"""Fixtures for tests that need a Kubernetes API; a conftest.py takes them by importing them.

With CI=true a machine that cannot have one fails the test; elsewhere it skips it, and says why.
"""

import os
from collections.abc import Iterator

import pytest

from tests.cluster import kind
from tests.cluster.apiserver import ApiServer, api_server
from tests.cluster.binaries import missing_go


def require(missing: str | None) -> None:
    """Skip where something is missing that this machine cannot have; with CI=true, fail."""
    if missing is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def bare_api() -> Iterator[ApiServer]:
    """An API server alone: what is written stays as it is, for no controller looks at it."""
    require(missing_go())
    with api_server() as server:
        yield server


@pytest.fixture(scope="session")
def live_api() -> Iterator[ApiServer]:
    """An API server with Kubernetes' controllers: Jobs get pods, owners' children are collected."""
    require(missing_go())
    with api_server(controllers=True) as server:
        yield server


@pytest.fixture(scope="session")
def kind_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kind.Cluster]:
    """A cluster that runs pods: the one that is up, else one that is taken down again at the end.

    HERMES_E2E_CONTEXT names another, of the user's kubeconfig; no other context is ever touched.
    """
    if context := os.environ.get("HERMES_E2E_CONTEXT"):
        require(missing_go())
        yield kind.given(context, os.environ, tmp_path_factory.mktemp("given"))
        return
    require(kind.missing())
    was_up = kind.running()
    yield was_up or kind.up()
    if was_up is None:
        kind.down()
