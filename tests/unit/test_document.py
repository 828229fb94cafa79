"""The run document: what is refused says where, why and what to do."""

from decimal import Decimal
from pathlib import Path

import pytest

from hermes_runtime.document import ArmName, DocumentError, HermesRun, amount, parse, read
from tests.crd_cases import ACCEPTED, COMMIT, REFUSED

MINIMAL = """\
apiVersion: hermes.dev/v1alpha1
kind: HermesRun
metadata: {name: tiny}
spec:
  evaluate:
    instances: {mutants: {count: 1}}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        parse(text, name="run.yaml")
    return str(caught.value).splitlines()


def test_defaults_are_written_out_and_read_back():
    document = parse(MINIMAL)
    assert document.spec.evaluate.arms == (ArmName.A, ArmName.C, ArmName.PM)
    assert parse(document.to_yaml()) == document


def test_the_examples_parse():
    for file in Path("examples").glob("*.yaml"):
        assert parse(file.read_text(), name=str(file)).kind == "HermesRun"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            ("spec:", "spec:\n  sed: 3"),
            "run.yaml: line 5: spec.sed: unknown field; did you mean 'seed'?",
            id="an unknown field is answered with the nearest name",
        ),
        pytest.param(
            ("{count: 1}}", "{count: 1}}\n    arms: [A, CM]"),
            "run.yaml: line 7: spec.evaluate.arms[1]: 'CM' is not one of A, C, PM; did you mean 'C'?",
            id="an unknown arm is named by its place",
        ),
        pytest.param(
            ("{count: 1}}", "{count: 1}, file: x.jsonl}"),
            "run.yaml: line 6: spec.evaluate.instances: exactly one of mutants, file must be set; "
            "found mutants and file",
            id="two members of a union",
        ),
        pytest.param(
            ("count: 1", "count: many"),
            "run.yaml: line 6: spec.evaluate.instances.mutants.count: input should be a valid integer, "
            "unable to parse string as an integer; found 'many'",
            id="a word for a number",
        ),
        pytest.param(
            ("name: tiny", "name: Tiny_Run"),
            "run.yaml: line 3: metadata.name: 'Tiny_Run' is no name for a run: lower-case letters, digits "
            "and dashes, first and last a letter or digit, at most 40 characters",
            id="a name that Kubernetes would refuse",
        ),
        pytest.param(
            ("{count: 1}}", "{count: 1}}\n    arms: [A, A]"),
            "run.yaml: line 5: spec.evaluate: arms named twice: A",
            id="an arm named twice",
        ),
        pytest.param(
            ("kind: HermesRun", "kind: Hermes"),
            "run.yaml: line 2: kind: 'Hermes' is not one of HermesRun; did you mean 'HermesRun'?",
            id="another kind",
        ),
        pytest.param(
            ("spec:", "spec:\n  model: {source: {repo: a/b, revision: main}}"),
            "run.yaml: line 5: spec.model.source.revision: 'main' is no commit: 40 hexadecimal digits; "
            "a branch or a tag moves",
            id="a branch for a commit",
        ),
        pytest.param(
            ("spec:", "spec:\n  pod: {resources: {model: {limits: {gpu: 1}}}}"),
            "run.yaml: line 5: spec.pod.resources.model.limits.gpu: 'gpu' is no resource: cpu, memory, "
            "ephemeral-storage, nvidia.com/gpu, …",
            id="a resource that Kubernetes would refuse",
        ),
        pytest.param(
            ("spec:", "spec:\n  pod: {resources: {driver: {limits: {cpu: 0.5}}}}"),
            "run.yaml: line 5: spec.pod.resources.driver.limits.cpu: expected a quantity, for example 2, "
            '"500m" or "16Gi"; found 0.5',
            id="a quantity that Kubernetes would refuse",
        ),
        pytest.param(
            ("spec:", "spec:\n  pod: {resources: {tester: {limits: {memory: 256Mi}}}}"),
            "run.yaml: line 5: spec.pod.resources.tester: a request is larger than its limit: memory, "
            "512Mi asked and 256Mi allowed",
            id="a limit below the default request",
        ),
        pytest.param(
            ("spec:", "spec:\n  pod: {tolerations: [{operator: Exists, effec: NoExecute}]}"),
            "run.yaml: line 5: spec.pod.tolerations[0].effec: unknown field; did you mean 'effect'?",
            id="an unknown field in a list",
        ),
    ],
)
def test_what_is_refused_says_where_and_what_to_do(change, expected):
    assert problems(MINIMAL.replace(*change)) == [expected]


def test_every_problem_is_told_at_once_in_the_order_of_the_file():
    text = MINIMAL.replace("name: tiny", "name: T").replace("spec:", "spec:\n  sed: 1\n  parallelism: 0")
    named = [line.split(": ")[2] for line in problems(text)]
    assert named == ["metadata.name", "spec.sed", "spec.parallelism"]


@pytest.mark.parametrize("text", ["", "3", "a: [", "- x", "\t"])
def test_what_is_no_document_at_all_is_refused_too(text):
    assert problems(text)


def test_a_missing_part_is_named():
    assert problems(MINIMAL.split("spec:")[0]) == ["run.yaml: line 1: spec: is missing; it has no default"]


def test_a_value_can_be_put_over_the_documents():
    document = parse(MINIMAL, overrides=["spec.evaluate.rounds=2", "spec.evaluate.arms=[PM]"])
    assert (document.spec.evaluate.rounds, document.spec.evaluate.arms) == (2, (ArmName.PM,))


@pytest.mark.parametrize("override", ["spec.rounds", "=3", "spec..x=1", "metadata.name.x=1"])
def test_an_override_that_cannot_be_put_is_refused(override):
    with pytest.raises(DocumentError, match="--set"):
        parse(MINIMAL, overrides=[override])


def test_a_status_from_a_cluster_is_let_through_unread():
    assert isinstance(parse(MINIMAL + "status: {phase: Running}\n"), HermesRun)


@pytest.mark.parametrize("document", [pytest.param(document, id=name) for name, document in ACCEPTED])
def test_what_the_api_gave_is_read_whatever_else_the_cluster_keeps_with_it(document):
    name = document["metadata"]["name"]
    metadata = {"name": name, "uid": "1", "managedFields": [{"manager": "kubectl"}]}
    known = read({**document, "metadata": metadata, "status": {"phase": "Running"}})
    assert known == read(document) == parse(known.to_yaml())
    assert known.metadata.model_dump() == {"name": name}


@pytest.mark.parametrize(("document", "part"), [pytest.param(d, p, id=n) for n, d, p in REFUSED])
def test_what_the_api_must_not_give_is_refused(document, part):
    with pytest.raises(DocumentError) as caught:
        read(document)
    assert part in str(caught.value)


def test_a_document_without_metadata_is_refused():
    with pytest.raises(DocumentError, match="metadata: is missing"):
        read({"apiVersion": "hermes.dev/v1alpha1", "kind": "HermesRun", "spec": {}})


def test_a_model_of_the_hub_is_pinned_by_its_commit():
    source = parse(MINIMAL + f"  model: {{source: {{repo: a/b, revision: {COMMIT}}}}}\n").spec.model.source
    assert (source.bundled, source.path, source.repo, source.revision) == (None, None, "a/b", COMMIT)


@pytest.mark.parametrize(
    ("quantity", "units"),
    [
        (2, "2"),
        ("2", "2"),
        ("500m", "0.5"),
        ("1.5", "1.5"),
        ("1k", "1000"),
        ("2Ki", "2048"),
        ("1Ei", str(2**60)),
    ],
)
def test_a_quantity_is_an_amount(quantity, units):
    assert amount(quantity) == Decimal(units)


def test_every_field_of_the_document_says_what_it_means():
    def undocumented(model, path):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{path}.{name}"
        for field in model.model_fields.values():
            part = field.annotation
            if isinstance(part, type) and hasattr(part, "model_fields") and part.__name__ != "Metadata":
                yield from undocumented(part, f"{path}.{part.__name__}")

    assert not list(undocumented(HermesRun, "HermesRun"))
