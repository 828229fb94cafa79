"""Edits of a run whose Job is there: parallelism, the deadline, suspension.

Decided here: which fields of a Job follow the document, and that only those that differ are patched. In a
queue the queue decides on suspension and parallelism.
"""

from __future__ import annotations

from hermes_operator.decide.view import Step, View
from hermes_operator.manifests import run_job
from hermes_operator.observed import Patch
from hermes_operator.status import Manifest, Status


def edit(view: View, status: Status) -> Step:
    """Patch what differs."""
    job = view.job
    if job is None or job.ended is not None:
        return Step(status=status)
    fields = (
        ("activeDeadlineSeconds",) if view.is_queued else ("activeDeadlineSeconds", "parallelism", "suspend")
    )
    wanted = run_job(view.run, view.installation, view.attempt)["spec"]
    found = job.manifest["spec"]
    changes: Manifest = {
        field: wanted.get(field)
        for field in fields
        if (wanted.get(field) or None) != (found.get(field) or None)
    }
    if not changes:
        return Step(status=status)
    patch = Patch(
        api_version="batch/v1",
        kind="Job",
        namespace=view.namespace,
        name=job.name,
        patch={"spec": changes},
    )
    return Step(status=status, actions=(patch,))
