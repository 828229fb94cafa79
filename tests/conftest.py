"""Which tests need the programs of Kubernetes, built from source with Go in minutes: they run apart."""

import pytest

NEEDS_PROGRAMS = frozenset({"helm", "bare_api", "live_api", "kind_cluster"})
"""Fixtures that build or start programs of Kubernetes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NEEDS_PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
