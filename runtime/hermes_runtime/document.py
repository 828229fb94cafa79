"""THE definition of HermesRun: the same document runs on a laptop and on a cluster.

`parse` takes the text, `read` takes what the Kubernetes API gave; both give a checked document, or a
DocumentError that lists every problem with its path, its line and its remedy. The custom resource
definition is made from these classes. No file is opened here and no clock is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import WithJsonSchema
from pydantic_core import PydanticCustomError

API_VERSION = "hermes.dev/v1alpha1"
KIND = "HermesRun"

INT_MAX = 2**31 - 1
"""Largest number of pods, instances and seconds; what Kubernetes and its clocks take."""

PositiveInt = Annotated[int, Field(ge=1, le=INT_MAX)]
FilePath = Annotated[str, Field(min_length=1, max_length=1024)]

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def _quantity(value: object) -> int | str:
    """A quantity as Kubernetes reads it, left as it was written."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    if is_number or (isinstance(value, str) and len(value) <= 20 and re.match(QUANTITY, value, re.ASCII)):
        return value  # type: ignore[return-value]  # is_number says that it is one
    raise PydanticCustomError("quantity", 'expected a quantity, for example 2, "500m" or "16Gi"')


def amount(quantity: int | str) -> Decimal:
    """What a quantity says, in units: "500m" is 0.5."""
    digits = str(quantity).rstrip("mkMGTPEKi")
    return Decimal(digits) * _UNITS[str(quantity)[len(digits) :]]


RESOURCE_NAME = (
    r"^(cpu|memory|ephemeral-storage|"
    r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)$"
)
ResourceName = Annotated[str, Field(max_length=317, pattern=RESOURCE_NAME)]
Quantity = Annotated[
    int | str,
    BeforeValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "minimum": 0, "maxLength": 20, "pattern": QUANTITY}),
]
Quantities = Annotated[dict[ResourceName, Quantity], Field(max_length=16)]

LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
LabelKey = Annotated[str, Field(max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class _Part(BaseModel):
    """A part of the document: camelCase outside, unknown fields refused, immutable once parsed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=False,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def _exactly_one(part: _Part, *members: str) -> None:
    """Raise ValueError unless exactly one of these fields of `part` is set."""
    present = [name for name in members if getattr(part, name) is not None]
    if len(present) != 1:
        found = " and ".join(present) or "none"
        raise ValueError(f"exactly one of {', '.join(members)} must be set; found {found}")


class ArmName(StrEnum):
    """Ways of letting agents talk."""

    A = "A"
    C = "C"
    PM = "PM"


class ModelBackend(StrEnum):
    """What runs the model."""

    TRANSFORMERS = "transformers"
    SCRIPTED = "scripted"


HUB_NAME = r"^[A-Za-z0-9][-A-Za-z0-9_.]*(/[A-Za-z0-9][-A-Za-z0-9_.]*)?$"
"""A repository's name; it can be the name of a folder once "/" is replaced."""


class ModelSource(_Part):
    """Where the model's files are. Exactly one of `bundled`, `path` and `repo` is set."""

    bundled: Literal["repair"] | None = None
    """Name of a model that ships with HERMES: "repair", a small model that repairs single lines."""
    path: FilePath | None = None
    """Folder of a Hugging Face model with HERMES' manifest.json, or the script of a scripted model;
    relative to the folder of the document, on a cluster to the model cache."""
    repo: Annotated[str, Field(max_length=200, pattern=HUB_NAME)] | None = None
    """Repository on the Hugging Face Hub, "owner/name". Its files are pulled into the model cache once,
    pinned by `revision`, and verified before each use."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of `repo`: 40 hexadecimal digits. Branches and tags move, so they are no revisions."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        _exactly_one(self, "bundled", "path", "repo")
        if (self.repo is None) != (self.revision is None):
            raise ValueError("repo and revision are set together: the repository and its commit, 40 digits")
        return self


class ModelPart(_Part):
    """The model, and how it is loaded."""

    source: ModelSource = Field(default_factory=lambda: ModelSource(bundled="repair"))
    """Where the model's files are. Default: the bundled repair model."""
    backend: ModelBackend = ModelBackend.TRANSFORMERS
    """What runs the model: "transformers" (default), or "scripted" for answers from a file."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Quantization of the weights by bitsandbytes: "int8", or "nf4" (4 bits, double quantization). A host
    that cannot do it refuses, and says what it can. Default: none."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Device that the model is bound to. Default "auto": the first accelerator, else the CPU."""
    dialect: Literal["auto", "line_repair", "chat"] = "auto"
    """How tasks are put to the model. Default "auto": what the model's manifest says, else "chat"."""
    context_tokens: Annotated[int, Field(ge=64, le=4_194_304)] = 1024
    """Longest prompt plus completion, in tokens. Default 1024; refused if the model's own is shorter."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 64
    """Most completions decoded at once. Default 64."""

    @model_validator(mode="after")
    def _script_is_a_file(self) -> ModelPart:
        if self.backend is ModelBackend.SCRIPTED and self.source.path is None:
            raise ValueError("a scripted model needs source.path, the file with its script")
        return self


PackageName = Annotated[str, Field(max_length=100)]


class Mutants(_Part):
    """Single defects put into real packages, found by their own tests."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Number of instances. Default 20."""
    packages: Annotated[tuple[PackageName, ...], Field(min_length=1, max_length=100)] | None = None
    """Only these packages. Default: all that HERMES knows."""


class Instances(_Part):
    """Where the instances come from. Exactly one of `mutants` and `file` is set."""

    mutants: Mutants | None = None
    """Single defects put into real packages, made from the run's seed."""
    file: FilePath | None = None
    """A JSON Lines file of instances; relative to the folder of the document. Not on a cluster."""

    @model_validator(mode="after")
    def _one_source(self) -> Instances:
        _exactly_one(self, "mutants", "file")
        return self


class Evaluate(_Part):
    """Instances are tried under several arms, and the arms compared."""

    instances: Instances
    """Where the instances come from."""
    arms: Annotated[tuple[ArmName, ...], Field(min_length=1, max_length=8)] = (
        ArmName.A,
        ArmName.C,
        ArmName.PM,
    )
    """Arms to compare. Default [A, C, PM]."""
    control: Literal["none", "enumerate"] = "none"
    """"enumerate" adds the control without a model: the same localization by the tests and the same
    budget of test runs, edits enumerated in seeded random order. Default "none"."""
    rounds: Annotated[int, Field(ge=1, le=100)] = 4
    """Most rounds of planner, coder, tester for each instance. Default 4."""
    candidates: Annotated[int, Field(ge=1, le=256)] = 8
    """Proposals that the coder may have tested in each round. Default 8."""
    instance_timeout_seconds: Annotated[int, Field(ge=1, le=604_800)] = 600
    """Seconds that one instance may take under one arm. Default 600."""
    sandbox: Literal["auto", "bubblewrap", "landlock"] = "auto"
    """Wall around the tests. Default "auto": bubblewrap where it runs, else landlock."""

    @model_validator(mode="after")
    def _arms_once(self) -> Evaluate:
        twice = {arm.value for arm in self.arms if self.arms.count(arm) > 1}
        if twice:
            raise ValueError(f"arms named twice: {', '.join(sorted(twice))}")
        return self


ATTEMPT_MAX = 99
"""Attempts of one run; keeps the names of its pods within 63 characters."""


class Resources(_Part):
    """What one container asks of its node, in Kubernetes' words."""

    requests: Quantities = {}
    """What the scheduler sets aside."""
    limits: Quantities = {}
    """What the container is held to; devices stand here, for example nvidia.com/gpu: 1. Default: none."""

    @model_validator(mode="after")
    def _limits_hold_requests(self) -> Resources:
        for name, limit in self.limits.items():
            request = self.requests.get(name, 0)
            if amount(request) > amount(limit):
                raise ValueError(
                    f"a request is larger than its limit: {name}, {request} asked and {limit} allowed"
                )
            if "/" in name and not str(limit).isdecimal():
                raise ValueError(f"devices are counted in whole numbers: {name}, {limit}")
        for name, request in self.requests.items():
            if "/" in name and self.limits.get(name) != request:
                raise ValueError(f"devices stand in limits; in requests the same number or none: {name}")
        return self


# The defaults are what the quickstart was measured to need, with some air: on a CPU the model's processes
# took 1.17 GB, the tester with its tests 0.3, the driver with its grading 0.3, an agent 0.08.


class ModelResources(Resources):
    """What the model's container asks of its node."""

    requests: Quantities = {"cpu": "300m", "memory": "1536Mi"}
    """What the scheduler sets aside. Default cpu 300m, memory 1536Mi: enough for the bundled model."""


class AgentResources(Resources):
    """What the planner's and the coder's container ask of their node, each."""

    requests: Quantities = {"cpu": "50m", "memory": "128Mi"}
    """What the scheduler sets aside for each. Default cpu 50m, memory 128Mi."""


class TesterResources(Resources):
    """What the tester's container asks of its node; the tests run here."""

    requests: Quantities = {"cpu": "200m", "memory": "512Mi"}
    """What the scheduler sets aside. Default cpu 200m, memory 512Mi."""


class DriverResources(Resources):
    """What the driver's container asks of its node; patches are graded here."""

    requests: Quantities = {"cpu": "250m", "memory": "512Mi"}
    """What the scheduler sets aside. Default cpu 250m, memory 512Mi."""


class PodResources(_Part):
    """What each container of a run's pods asks of its node."""

    model: ModelResources = Field(default_factory=ModelResources)
    """The container with the model."""
    agents: AgentResources = Field(default_factory=AgentResources)
    """The planner's and the coder's containers, each."""
    tester: TesterResources = Field(default_factory=TesterResources)
    """The tester's container."""
    driver: DriverResources = Field(default_factory=DriverResources)
    """The driver's container."""


class Toleration(_Part):
    """A taint that a run's pods may be scheduled in spite of, in Kubernetes' words."""

    key: LabelKey | None = None
    """Key of the taint. Not set: every key; `operator` is then Exists."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal (default): the taint's value is `value`; Exists: whatever its value."""
    value: LabelValue | None = None
    """Value of the taint, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Not set: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=INT_MAX)] | None = None
    """Seconds that a NoExecute taint is tolerated. Not set: for ever."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("a toleration with operator Exists has no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("a toleration without key has operator Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds goes with effect NoExecute alone")
        return self


class PodPart(_Part):
    """Where a run's pods may run on a cluster, and what they ask for. One machine does not look at it."""

    resources: PodResources = Field(default_factory=PodResources)
    """What each container asks of its node."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Labels of the nodes that will do. Default: any node."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that the pods may be scheduled in spite of. Default: none."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods. Default: the cluster's own."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, for example nvidia or gvisor. Default: the cluster's own."""


class Spec(_Part):
    """What to run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of everything random in the run. Default 42."""
    hermetic: bool = True
    """True (default): once prepared, no process of the run can open any but Unix sockets."""
    model: ModelPart = Field(default_factory=ModelPart)
    """The model, and how it is loaded."""
    evaluate: Evaluate
    """Instances are tried under several arms, and the arms compared."""
    parallelism: PositiveInt = 1
    """Pods at a time on a cluster; one machine runs one. Default 1."""
    shard_size: PositiveInt = 10
    """Instances for each pod on a cluster. Default 10."""
    pod: PodPart = Field(default_factory=PodPart)
    """Where the pods may run on a cluster, and what they ask for."""
    attempt: Annotated[int, Field(ge=1, le=ATTEMPT_MAX)] = 1
    """Raised by one, it starts a run again that has ended on a cluster; recorded results are kept.
    Default 1, at most 99."""
    suspend: bool = False
    """True: nothing is started, and what runs is stopped, until it is false again. Default false."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 2
    """Times that an instance is tried again after a crash. Default 2."""
    active_deadline_seconds: PositiveInt = 86_400
    """Seconds after which the run is stopped. Default 86400, a day."""
    pre_running_deadline_seconds: PositiveInt = 1_800
    """Seconds that preparing and starting may take on a cluster. Default 1800."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=INT_MAX)] = 604_800
    """Seconds after which a finished run is removed from a cluster. Default 604800, a week."""


class Metadata(BaseModel):
    """Name of the run. What else Kubernetes keeps here is let through unread."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
    """Name of the run: lower-case letters, digits and dashes, at most 40 characters."""


class HermesRun(_Part):
    """One run: a bounded set of instances under one or more arms."""

    api_version: Literal["hermes.dev/v1alpha1"]
    """hermes.dev/v1alpha1."""
    kind: Literal["HermesRun"]
    """HermesRun."""
    metadata: Metadata
    """Name of the run."""
    spec: Spec
    """What to run."""

    def to_yaml(self) -> str:
        """The document with every default written out; `parse` gives it back."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, where, and what to do about it."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class DocumentError(ValueError):
    """A document that cannot be used; `problems` says why, in the order of the file."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in self.problems))


Location = tuple[str | int, ...]


def parse(text: str, *, name: str = "document", overrides: Sequence[str] = ()) -> HermesRun:
    """The document in `text` (YAML or JSON), with `overrides` like "spec.seed=7" put over it.

    Raises DocumentError with every problem found.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        reason = getattr(error, "problem", None) or str(error)
        raise DocumentError(name, [Problem(path="", line=line, message=f"not YAML: {reason}")]) from error
    if not isinstance(data, dict):
        message = f"expected a {KIND} document, found {type(data).__name__}; see examples/quickstart.yaml"
        raise DocumentError(name, [Problem(path="", line=None, message=message)])
    data.pop("status", None)
    for override in overrides:
        _put(data, override, name)
    try:
        return HermesRun.model_validate(data)
    except ValidationError as error:
        lines = dict(_lines(node)) if node is not None else {}
        raise _told(error, lines, name) from error


def read(data: Mapping[str, Any], *, name: str = "document") -> HermesRun:
    """The document in an object of the Kubernetes API.

    Of its metadata the name alone is kept: the rest is the cluster's. The status is not looked at.
    Raises DocumentError with every problem found.
    """
    metadata = data.get("metadata")
    kept = {key: value for key, value in data.items() if key != "status"}
    if isinstance(metadata, Mapping):
        kept["metadata"] = {key: value for key, value in metadata.items() if key == "name"}
    try:
        return HermesRun.model_validate(kept)
    except ValidationError as error:
        raise _told(error, {}, name) from error


def _told(error: ValidationError, lines: Mapping[Location, int], name: str) -> DocumentError:
    """Pydantic's error in a user's words, in the order of the file."""
    problems = [_problem(dict(raw), lines) for raw in error.errors()]
    return DocumentError(name, sorted(problems, key=lambda p: (p.line or 0, p.path)))


def _put(data: dict[str, Any], override: str, name: str) -> None:
    """Put "spec.a.b=value" into `data`; the value is read as YAML."""
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", key) for key in keys):
        message = f"--set {override}: expected path=value, for example spec.seed=7"
        raise DocumentError(name, [Problem(path="", line=None, message=message)])
    here = data
    for key in keys[:-1]:
        below = here.setdefault(key, {})
        if not isinstance(below, dict):
            message = f"--set {override}: {key} holds a value and not fields"
            raise DocumentError(name, [Problem(path=path, line=None, message=message)])
        here = below
    here[keys[-1]] = yaml.safe_load(value)


def _lines(node: yaml.Node, location: Location = ()) -> Iterator[tuple[Location, int]]:
    """Line (from 1) of every key and item in the file."""
    yield location, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, str(key.value))
            yield from _lines(value, here)
            yield here, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*location, index))


def _path(location: Location) -> str:
    """`spec.evaluate.arms[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _problem(raw: Mapping[str, Any], lines: Mapping[Location, int]) -> Problem:
    """Pydantic's error in a user's words."""
    location: Location = tuple(part for part in raw["loc"] if part != "[key]")
    match raw["type"]:
        case "extra_forbidden":
            message = "unknown field" + _nearest(str(location[-1]), _known_fields(location[:-1]))
        case "missing":
            message = "is missing; it has no default"
        case "enum" | "literal_error":
            wanted = re.findall(r"'([^']*)'", str(raw["ctx"].get("expected", "")))
            given = str(raw["input"])
            known = ", ".join(wanted)
            message = f"{given!r} is not one of {known}" + _nearest(given, wanted)
        case "string_pattern_mismatch" if location[-1:] == ("name",):
            message = (
                f"{raw['input']!r} is no name for a run: lower-case letters, digits and dashes, "
                "first and last a letter or digit, at most 40 characters"
            )
        case "string_pattern_mismatch" if location[-1:] == ("revision",):
            message = f"{raw['input']!r} is no commit: 40 hexadecimal digits; a branch or a tag moves"
        case "string_pattern_mismatch" if "resources" in location:
            message = f"{raw['input']!r} is no resource: cpu, memory, ephemeral-storage, nvidia.com/gpu, …"
        case "string_pattern_mismatch" if raw["loc"][-1] == "[key]":
            message = f"{raw['input']!r} is no label of a node, for example topology.kubernetes.io/zone"
        case "value_error":
            message = str(raw["ctx"]["error"])
        case _:
            given = repr(raw["input"]) if not isinstance(raw["input"], dict | list) else "what is there"
            message = f"{raw['msg'][0].lower()}{raw['msg'][1:]}; found {given}"
    known_line = next(
        (lines[location[:n]] for n in range(len(location), -1, -1) if location[:n] in lines), None
    )
    return Problem(path=_path(location), line=known_line, message=message)


def _nearest(given: str, known: Sequence[str]) -> str:
    """ "; did you mean X?" or a list of what there is."""
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), list(folded), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {folded[near[0]]!r}?"
    return f"; known here: {', '.join(known)}" if known and len(known) < 30 else ""


def _known_fields(location: Location) -> list[str]:
    """Names of the fields at `location`, as they are written in the document."""
    here: type[BaseModel] | None = HermesRun
    for part in location:
        if here is None:
            return []
        if isinstance(part, int):
            continue
        found = next((f for n, f in here.model_fields.items() if part in (n, f.alias)), None)
        here = _part_of(found.annotation) if found else None
    return [field.alias or name for name, field in here.model_fields.items()] if here else []


def _part_of(annotation: object) -> type[BaseModel] | None:
    """The part of the document that a field holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        return next((part for arg in get_args(annotation) if (part := _part_of(arg))), None)
    return None
