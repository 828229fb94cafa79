"""Metadata of what is made for a run: its name, its labels, and the run as its owner."""

from __future__ import annotations

from collections.abc import Mapping

from hermes_operator.names import API_VERSION, KIND
from hermes_operator.observed import Run
from hermes_operator.status import Manifest
from hermes_runtime.document import HermesRun


def metadata(run: Run, name: str, labels: Mapping[str, str]) -> Manifest:
    """The cluster collects the object once the run is gone; a run's deletion does not wait for it."""
    return {
        "name": name,
        "namespace": run.key.namespace,
        "labels": dict(labels),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": run.key.name,
                "uid": run.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }


def document_of(run: Run) -> HermesRun:
    """The run's document. Nothing is made for a run whose document cannot be read."""
    assert isinstance(run.document, HermesRun), run.document
    return run.document
