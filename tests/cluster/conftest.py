"""The API servers of tests.cluster.fixtures, for the tests of this folder."""

from tests.cluster.fixtures import bare_api, kind_cluster, live_api

__all__ = ["bare_api", "kind_cluster", "live_api"]
