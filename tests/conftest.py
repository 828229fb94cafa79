"""Which tests need the programs of Kubernetes, and which may not run side by side."""

import pytest

NEEDS_PROGRAMS = frozenset({"helm", "bare_api", "live_api", "kind_cluster"})
"""Fixtures that build or start programs of Kubernetes."""
NEEDS_NODES = "kind_cluster"
"""The fixture of the one cluster with nodes: some of its tests take a part of it away."""


@pytest.hookimpl(tryfirst=True)  # the groups must be there when xdist asks for them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if NEEDS_PROGRAMS & fixtures:
            item.add_marker(pytest.mark.cluster)
        if config.pluginmanager.hasplugin("xdist"):
            group = NEEDS_NODES if NEEDS_NODES in fixtures else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))
