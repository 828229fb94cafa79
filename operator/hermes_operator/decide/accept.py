"""Whether the document can be run here at all.

Decided here: that an unreadable document, and one that asks for what no cluster has, end the run before
anything is made. Asked once in an attempt: what runs is not stopped because the installation changed.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from hermes_operator.decide import end
from hermes_operator.decide.failure import failure
from hermes_operator.decide.view import Job, Step, View
from hermes_operator.manifests import problems_on_a_cluster
from hermes_operator.names import ENDED, Condition, Reason, Who
from hermes_operator.observed import Children, Decision, Run
from hermes_operator.status import ArmProgress, Shards, Status


def accept(view: View, status: Status) -> Step:
    """Take the document, or end the run."""
    known = status.conditions.get(Condition.ACCEPTED)
    if known is None or known.status != "True":
        problems = problems_on_a_cluster(view.document, view.installation)
        if problems:
            message = "; ".join(problems)
            refused = status.with_condition(
                Condition.ACCEPTED,
                "False",
                Reason.NOT_ON_A_CLUSTER,
                now=view.now,
                generation=view.run.generation,
            )
            why = failure(Who.USER, Reason.NOT_ON_A_CLUSTER, message)
            return end.failed(view, refused, why, at=view.now)
    accepted = status.with_condition(
        Condition.ACCEPTED, "True", Reason.DOCUMENT_VALID, now=view.now, generation=view.run.generation
    )
    return Step(status=accepted if accepted.total else _expected(view, accepted))


def unreadable(run: Run, problem: str, children: Children, now: datetime) -> Decision:
    """End a run whose document cannot be read. It begins once it can, if it never began before."""
    if run.status.phase in ENDED:
        return Decision(status=replace(run.status, observed_generation=run.generation))
    refused = replace(run.status, observed_generation=run.generation, run_id=run.run_id).with_condition(
        Condition.ACCEPTED, "False", Reason.DOCUMENT_INVALID, now=now, generation=run.generation
    )
    why = failure(Who.USER, Reason.DOCUMENT_INVALID, problem)
    jobs = (Job(one) for _, one in sorted(children.jobs.items()))
    return Decision(
        actions=tuple(job.delete(run.key.namespace) for job in jobs if not job.is_deleted and not job.ended),
        status=end.failed_status(refused, why, at=now, now=now, generation=run.generation),
        announcements=(end.failed_announcement(why),),
    )


def _expected(view: View, status: Status) -> Status:
    """What there will be to count."""
    evaluate = view.spec.evaluate
    mutants = evaluate.instances.mutants
    count = mutants.count if mutants is not None else 0
    arms = [arm.value for arm in evaluate.arms]
    if evaluate.control != "none":
        arms.append(evaluate.control)
    reason = Reason.NO_EVIDENCE_YET if view.spec.hermetic else Reason.NOT_ASKED_FOR
    return replace(
        status,
        total=count * len(arms),
        arms=tuple(ArmProgress(name=arm) for arm in arms),
        shards=Shards(total=-(-count // view.spec.shard_size)),
    ).with_condition(Condition.HERMETIC, "Unknown", reason, now=view.now, generation=view.run.generation)
