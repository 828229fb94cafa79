"""Edits of a run whose Job is there: parallelism, the deadline, suspension.

Decided here: which fields of a Job follow the document, and that only those that differ are patched; that
a Job is resumed without its deadline, which it gets back once it runs. In a queue the queue decides on
suspension and parallelism.
"""

from __future__ import annotations

from hermes_operator.decide.view import Step, View
from hermes_operator.observed import Patch
from hermes_operator.status import Manifest, Status


def edit(view: View, status: Status) -> Step:
    """Patch what differs."""
    job = view.job
    if job is None or job.ended is not None:
        return Step(status=status)
    wanted: Manifest = {"activeDeadlineSeconds": view.spec.active_deadline_seconds}
    if not view.is_queued:
        wanted |= {"parallelism": min(view.spec.parallelism, job.completions), "suspend": False}
        if job.has_old_start:
            # Its controller asks for the deadline before it counts from now on: the Job would fail at once.
            # Source: Kubernetes, pkg/controller/job/job_controller.go, syncJob: pastActiveDeadline.
            wanted["activeDeadlineSeconds"] = None
    found = job.manifest["spec"]
    # A field that is left out is as good as one that is false.
    changes = {
        name: value for name, value in wanted.items() if (found.get(name) or False) != (value or False)
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
