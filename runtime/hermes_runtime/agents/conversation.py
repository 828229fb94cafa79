"""What an agent hears and says, without how it travels.

Agents are stateless: everything that a handler needs is in the acts delivered to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes.model.v1 import model_pb2
from hermes_runtime.errors import BadInput, HermesError

ContentName = Literal["task", "log", "spectrum", "places", "candidates", "outcomes", "refusal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An act and its content; None for words, and for an anchored log, which no prompt shows whole."""

    act: pb.Act
    content: pb.Content | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A log as a prompt may show it: whole, or as an anchor's alias and head."""

    text: str = ""
    alias: str = ""
    head: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """One act to be sent: what is said, and what it is about."""

    kind: pb.ActKind.ValueType
    content: pb.Content
    header: pb.Header = field(default_factory=pb.Header)


@dataclass(frozen=True, slots=True)
class Inbox:
    """What was delivered, in order; the last act is what is asked."""

    heard: tuple[Heard, ...]

    @property
    def asked(self) -> pb.Header:
        """What the receiver is asked to do."""
        return self.heard[-1].act.header

    def _all(self, name: ContentName) -> list[pb.Content]:
        return [
            h.content for h in self.heard if h.content is not None and h.content.WhichOneof("content") == name
        ]

    def task(self) -> pb.Task:
        """The task. BadInput if none was delivered."""
        found = self._all("task")
        if not found:
            raise BadInput("the delivery carries no task; every delivery to an agent starts with one")
        return found[-1].task

    def spectrum(self) -> pb.Spectrum:
        """The spectrum; empty if none was delivered."""
        found = self._all("spectrum")
        return found[-1].spectrum if found else pb.Spectrum()

    def places(self) -> list[pb.Place]:
        """Suspicious places, most suspicious first."""
        found = self._all("places")
        return list(found[-1].places.places) if found else []

    def candidates(self) -> list[pb.Candidate]:
        """Patches to be tested, best first."""
        found = self._all("candidates")
        return list(found[-1].candidates.candidates) if found else []

    def outcomes(self) -> list[pb.Outcome]:
        """What the tests said of every candidate so far, in the order tested."""
        return [outcome for content in self._all("outcomes") for outcome in content.outcomes.outcomes]

    def refusals(self) -> list[pb.Refusal]:
        """What was refused and why."""
        return [content.refusal for content in self._all("refusal")]

    def evidence(self) -> list[Evidence]:
        """The logs, in order, each whole or as its anchor's alias and head."""
        shown: list[Evidence] = []
        for heard in self.heard:
            if heard.content is not None and heard.content.WhichOneof("content") == "log":
                shown.append(Evidence(text=heard.content.log.text))
            elif heard.act.WhichOneof("payload") == "anchor" and heard.content is None:
                shown.append(Evidence(alias=heard.act.anchor.alias, head=heard.act.anchor.head))
        return shown


class ModelCalls(Protocol):
    """The model as an agent calls it; every call is billed."""

    async def generate(self, request: model_pb2.GenerateRequest) -> model_pb2.GenerateResponse:
        """Completions of one prompt."""
        ...

    async def score(self, request: model_pb2.ScoreRequest) -> model_pb2.ScoreResponse:
        """Log probabilities of continuations of one prompt."""
        ...

    async def context_tokens(self) -> int:
        """Longest prompt plus completion; asking is free."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a handler works with in one delivery."""

    inbox: Inbox
    profile: agent_pb2.Profile
    trace: str
    """Name of the trace, for the model's count of tokens that are read again."""
    model: ModelCalls
    expense: agent_pb2.Expense
    """What handling cost; the handler adds its test runs."""


class Agent(Protocol):
    """A handler of acts."""

    role: pb.Role.ValueType

    async def handle(self, assignment: Assignment) -> Sequence[Say]:
        """Answer a delivery. Errors that the conversation can go on from are said, not raised."""
        ...

    async def close(self) -> None:
        """Let go of what is held between deliveries."""
        ...


def sources_of(task: pb.Task, paths: Sequence[str]) -> dict[str, str]:
    """Texts of files of the task's tree. A path that leaves the tree is BadInput."""
    root = Path(task.tree)
    texts: dict[str, str] = {}
    for path in paths:
        file = (root / path).resolve()
        if not file.is_relative_to(root.resolve()):
            raise BadInput(f"{path} is outside the tree {root}")
        try:
            texts[path] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HermesError(f"cannot read {path} of {task.instance_id}: {error}") from error
    return texts


def tried_patches(outcomes: Sequence[pb.Outcome]) -> set[str]:
    """Patches that the tests have had already."""
    return {outcome.patch for outcome in outcomes if outcome.verdict != pb.VERDICT_SKIPPED}
