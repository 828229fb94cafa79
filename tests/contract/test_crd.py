"""The custom resource definition says what the run document and the status say."""

import copy
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hermes_operator.crd import FIXED, crd, crd_yaml
from hermes_operator.names import Condition, Phase, Reason, Who
from hermes_operator.status import ArmProgress, ConditionStatus, Failure, Loaded, Shards, Status
from hermes_runtime.document import HermesRun, read
from tests.crd_cases import ACCEPTED, EVERYTHING, MINIMAL, REFUSED
from tests.structural import problems, with_defaults

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_committed_definition_is_fresh():
    committed = ROOT / "crds" / "hermesruns.hermes.dev.yaml"
    assert committed.read_text(encoding="utf-8") == crd_yaml(), (
        f"{committed.name} is stale: run `hermes-operator crd > crds/{committed.name}`"
    )


def test_the_definition_written_as_yaml_reads_back_whole():
    assert yaml.safe_load(crd_yaml()) == crd()


def nodes(schema, path="spec"):
    yield path, schema
    for name, node in schema.get("properties", {}).items():
        yield from nodes(node, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}[]")


def test_every_field_explains_itself():
    for path, node in nodes(SCHEMA["properties"]["spec"]):
        assert path.endswith("[]") or node.get("description"), path


def test_every_text_list_and_map_of_the_spec_is_bounded_so_that_rules_can_be_costed():
    for path, node in nodes(SCHEMA["properties"]["spec"]):
        match node.get("type"):
            case "string":
                assert "enum" in node or "maxLength" in node or node["pattern"].endswith("{40}$"), path
            case "array":
                assert "maxItems" in node, path
            case "object":
                assert "properties" in node or "maxProperties" in node, path


def test_every_default_passes_its_own_schema_as_it_stands():
    for path, node in nodes(SCHEMA["properties"]["spec"]):
        if "default" in node:
            assert not list(problems(node["default"], node, path))


def test_fields_that_stay_as_they_were_have_a_rule_and_are_never_absent():
    spec = SCHEMA["properties"]["spec"]
    for name in FIXED:
        assert any(
            rule["rule"] == "self == oldSelf" for rule in spec["properties"][name]["x-kubernetes-validations"]
        )
        assert "default" in spec["properties"][name] or name in spec["required"]


@pytest.mark.parametrize("document", [pytest.param(document, id=name) for name, document in ACCEPTED])
def test_what_the_document_accepts_the_schema_accepts_with_the_same_defaults(document):
    assert not list(problems(document, SCHEMA))
    read_as = read(document).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert with_defaults(document, SCHEMA)["spec"] == read_as["spec"]


@pytest.mark.parametrize(("document", "part"), [pytest.param(d, p, id=n) for n, d, p in REFUSED])
def test_what_the_document_refuses_the_schema_refuses_or_a_rule_does(document, part):
    rules = {
        rule["message"] for _, node in nodes(SCHEMA, "") for rule in node.get("x-kubernetes-validations", ())
    }
    assert list(problems(document, SCHEMA)) or any(part in message for message in rules)


def paths(value, here=()):
    yield here
    for key, below in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(below, (*here, key))


TEXTS = ["", "A", "PM", "auto", "chat", "2Gi", "1.5"]
NUMBERS = [0, 1, -1, 99, 100, 0.5, 2**31, 2**63]
WHOLES = [[], {}, ["A"], ["A", 1], {"cpu": 1}, {"a b": "c"}, {"count": 1}, [{"operator": "Exists"}]]
NAMES = ["sed", "seed", "nvidia.com/gpu", "gpu", "-a", "key", "path"]

VALUES = st.one_of(
    st.sampled_from([*TEXTS, *NUMBERS, *WHOLES, True, False]),
    st.integers(-5, 70_000),
    st.text(max_size=5),
    st.text(alphabet="a", min_size=62, max_size=1030),
)


@st.composite
def documents(draw):
    """A document that is right, with a few things in its spec put wrong or taken out."""
    document = copy.deepcopy(draw(st.sampled_from([MINIMAL, EVERYTHING])))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in paths(document["spec"]) if path]))
        here = document["spec"]
        for key in above:
            here = here[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "remove" if document["spec"].keys() != {last}:
                del here[last]
            case "add" if isinstance(here, dict):
                here[draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(VALUES))
            case _:
                here[last] = copy.deepcopy(draw(VALUES))
    return document


def documents_verdict(document) -> list[str]:
    """What the document says is wrong; what spans fields aside, for which the definition has rules."""
    try:
        HermesRun.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        return [str(one) for one in error.errors() if one["type"] != "value_error"]
    return []


@given(document=documents())
def test_the_schema_and_the_document_refuse_the_same(document):
    told = list(problems(document, SCHEMA))
    assert bool(told) == bool(documents_verdict(document)), told


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CONDITION = ConditionStatus(
    status="True", reason=Reason.IN_STEP, message="m", observed_generation=3, since=NOW
)
WHOLE_STATUS = Status(
    phase=Phase.FAILED,
    observed_generation=3,
    attempt=2,
    run_id="ns.name.12345678",
    attempt_started_at=NOW,
    running_at=NOW,
    finished_at=NOW,
    shards=Shards(total=4, active=1, succeeded=2, failed=1),
    done=20,
    total=40,
    arms=(ArmProgress(name="A", done=10, solved=5),),
    counted_indexes="0-1",
    counted_job="12345678-1234",
    hermetic_shards=2,
    moved_at=NOW,
    loaded=Loaded(device="cpu", dtype="float32", quantization="none", weight_bytes=1, load_seconds=1.5),
    manifest_ref="mcp://sha256/00",
    failure=Failure(who=Who.MODEL, reason=Reason.OUT_OF_MEMORY, message="m"),
    queue_position=1,
    conditions=dict.fromkeys(Condition, CONDITION),
)


def names(value, schema):
    """Names of the fields that `value` has, as the schema knows them."""
    if isinstance(value, list):
        return set().union(*(names(item, schema["items"]) for item in value))
    if not isinstance(value, dict):
        return set()
    below = (names(held, schema["properties"][name]) for name, held in value.items())
    return {id(schema["properties"][name]) for name in value}.union(*below)


@pytest.mark.parametrize("status", [Status(), WHOLE_STATUS], ids=["empty", "whole"])
def test_a_status_passes_its_schema(status):
    assert not list(problems(status.to_manifest(), SCHEMA["properties"]["status"]))


def test_the_schema_of_the_status_has_every_field_and_no_other():
    schema = SCHEMA["properties"]["status"]
    written = names(WHOLE_STATUS.to_manifest(), schema)
    known = {id(node) for path, node in nodes(schema, "") if path and not path.endswith("[]")}
    assert written == known


def test_every_column_shows_a_field_that_is_there():
    for column in crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        here = {"properties": {**SCHEMA["properties"], "metadata": {"properties": {"creationTimestamp": {}}}}}
        path, _, union = column["jsonPath"].lstrip(".").partition("[")
        for name in path.split("."):
            here = here["properties"][name]
        for name in union.rstrip("]").replace("'", "").split(",") if union else ():
            assert name in here["properties"]
