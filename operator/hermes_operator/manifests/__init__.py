"""The objects that are made for a run, as functions from the run to a manifest.

No client, no clock, no randomness: the same run gives the same objects, under names computed from it, and
each is owned by it.

access     who the run's pods are, and whom they may talk to
jobs       the Job of an attempt, and the Job that pulls a model
pod        the pods of both: containers, volumes, walls
owned      names, labels and the owner of all of them
possible   what a document may not ask for on a cluster
"""

from hermes_operator.manifests.access import run_account, run_policy
from hermes_operator.manifests.jobs import pull_job, run_job
from hermes_operator.manifests.possible import problems_on_a_cluster

__all__ = ["problems_on_a_cluster", "pull_job", "run_account", "run_job", "run_policy"]
