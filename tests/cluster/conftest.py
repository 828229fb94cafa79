"""The fixtures of this folder: API servers, the release with its runs, an installation beside it."""

from tests.cluster.fixtures import bare_api, kind_cluster, live_api
from tests.cluster.installation import installation
from tests.cluster.runs import hermes, on_this_machine, run, script

__all__ = [
    "bare_api",
    "hermes",
    "installation",
    "kind_cluster",
    "live_api",
    "on_this_machine",
    "run",
    "script",
]
