"""What a document may not ask for on a cluster, though it may on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from hermes_operator.observed import Installation
from hermes_runtime.document import HermesRun


def problems_on_a_cluster(document: HermesRun, installation: Installation) -> list[str]:
    """One sentence for each thing that cannot be done, with its path and its remedy; [] for none."""
    return list(_problems(document, installation))


def _problems(document: HermesRun, installation: Installation) -> Iterator[str]:
    evaluate, model = document.spec.evaluate, document.spec.model
    if evaluate.instances.file is not None:
        yield (
            "spec.evaluate.instances.file: a file of one machine is on no cluster; use mutants, "
            "or `hermes run` on that machine"
        )
    if evaluate.sandbox == "bubblewrap":
        yield "spec.evaluate.sandbox: bubblewrap needs rights that pods do not have; use auto or landlock"
    if model.device == "mps":
        yield "spec.model.device: no node of a cluster has mps; use auto, cpu, cuda or xpu"
    path = model.source.path
    if path is not None and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
        yield f"spec.model.source.path: {path} is outside the model cache; give a path that starts in it"
    if model.source.bundled is None and not installation.model_claim:
        yield (
            "spec.model.source: this installation has no model cache; use {bundled: repair}, "
            "or ask for modelCache.enabled in the chart's values"
        )
