"""Fetching and verifying a model from a Hub before anything starts.

Decided here: when the pull Job is made, and that a model which is not verified never starts. How it is
fetched is the pull's own business.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.decide import end, report, waiting
from hermes_operator.decide.failure import of_pull, untold_pull
from hermes_operator.decide.view import PULL, Step, View
from hermes_operator.manifests import pull_job
from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.observed import Action, Apply
from hermes_operator.status import Status


def pull(view: View, status: Status) -> Step:
    """Go on with a verified model, or wait for it, or end."""
    now, generation = view.now, view.run.generation
    known = status.conditions.get(Condition.MODEL_VERIFIED)
    if known is not None and known.status == "True":
        return Step(status=status)
    source = view.spec.model.source
    if source.repo is None:
        verified, reason = (
            ("True", Reason.BUNDLED) if source.bundled else ("Unknown", Reason.VERIFIED_WHEN_LOADED)
        )
        return Step(
            status=status.with_condition(
                Condition.MODEL_VERIFIED, verified, reason, now=now, generation=generation
            )
        )
    ended = view.pull.ended if view.pull is not None else None
    if ended is not None and ended.is_complete:
        return Step(
            status=status.with_condition(
                Condition.MODEL_VERIFIED,
                "True",
                Reason.TREE_VERIFIED,
                _what_was_verified(view),
                now=now,
                generation=generation,
            )
        )
    if ended is not None:
        cause = of_pull(view.pull_pods)
        if cause is None and (wait := view.until_told(ended, status)) is not None:
            return wait
        why = cause or untold_pull(ended)
        broken = status.with_condition(
            Condition.MODEL_VERIFIED, "False", why.reason, now=now, generation=generation
        )
        return end.failed(view, broken, why, at=now)
    actions: tuple[Action, ...] = ()
    if not view.is_pull_there:
        actions = (Apply(manifest=pull_job(view.run, view.installation)),)
    pulling = replace(status, phase=Phase.PULLING).with_condition(
        Condition.MODEL_VERIFIED, "False", Reason.PULLING, now=now, generation=generation
    )
    trouble = waiting.trouble(view.pull_pods, view.installation.model_claim)
    reason, message = (trouble.reason, trouble.message) if trouble else (Reason.WAITING_FOR_MODEL, "")
    pulling, announcements = waiting.waits(view, pulling, reason, message)
    return Step(status=pulling, actions=actions, announcements=announcements, is_last=True)


def _what_was_verified(view: View) -> str:
    for pod in view.pull_pods:
        container = pod.container(PULL)
        if container is not None and container.exit is not None and container.exit.code == 0:
            told = report.read(report.PullReport, container.exit.message)
            if told is not None and told.tree_sha256:
                return f"tree {told.tree_sha256}"
    return ""
