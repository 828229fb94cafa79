"""Which tests need the programs of Kubernetes, and which may not run side by side."""

from __future__ import annotations

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]  # it has no types
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

NEEDS_PROGRAMS = frozenset({"helm", "bare_api", "live_api", "kind_cluster"})
"""Fixtures that build or start programs of Kubernetes."""
ON_NODES = "tests/cluster/"
"""Where tests of the one cluster with nodes are: some of them take a part of it away."""
WITHOUT_NODES = frozenset(
    ON_NODES + name for name in ("test_apiserver.py", "test_engine.py", "test_job_controller.py")
)
"""Files in that folder whose tests know no node."""


class OneByOne(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """The tests of a file on one worker; all those on nodes on one, one after the other.

    xdist 3.8 has marks for such groups, but under pytest 9.2 they do nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = nodeid.partition("::")[0]
        return ON_NODES if file.startswith(ON_NODES) and file not in WITHOUT_NODES else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneByOne:
    return OneByOne(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NEEDS_PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
