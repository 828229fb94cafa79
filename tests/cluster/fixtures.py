"""Fixtures for tests that need a Kubernetes API; a conftest.py takes them by importing them.

With CI=true a missing program fails the test; elsewhere it skips it. A cluster with nodes is brought up
only where HERMES_CLUSTER=1 says so, and is left up for the next test: `python -m tests.cluster down`.
"""

import os
from collections.abc import Iterator

import pytest

from tests.cluster import kind
from tests.cluster.apiserver import ApiServer, api_server
from tests.cluster.binaries import go_is_there


def require_go() -> None:
    if not go_is_there():
        reason = "the program `go` is missing: the API server is built with it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def bare_api() -> Iterator[ApiServer]:
    """An API server alone: what is written stays as it is, for no controller looks at it."""
    require_go()
    with api_server() as server:
        yield server


@pytest.fixture(scope="session")
def live_api() -> Iterator[ApiServer]:
    """An API server with Kubernetes' controllers: Jobs get pods, owners' children are collected."""
    require_go()
    with api_server(controllers=True) as server:
        yield server


@pytest.fixture(scope="session")
def kind_cluster() -> kind.Cluster:
    """A cluster that runs pods: the one that is up, or one brought up where that is wanted."""
    if os.environ.get("HERMES_CLUSTER") == "1":
        return kind.up()
    cluster = kind.running() if go_is_there() else None
    if cluster is None:
        pytest.skip("no cluster is up: HERMES_CLUSTER=1, or python -m tests.cluster up")
    return cluster
