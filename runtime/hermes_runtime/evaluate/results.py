"""What is recorded of one (instance, arm): the patch, the grade, the time, the ledger.

The driver writes it once, as JSON, under (run, instance, arm) in the store; summary, report,
predictions and tables are views of these records and of the event log.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Cause = Literal["", "user", "model", "agent", "sandbox", "driver"]


class LedgerRow(BaseModel):
    """One message, model call or store call. Bytes are gRPC message bytes; tokens are the model's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Order within the attempt, from 1."""
    round: int = 0
    entry: Literal["act", "envelope", "accounting", "model", "store", "log"]
    """act: an act's own bytes; envelope: the RPC message around acts; accounting: expense reports;
    model, store: calls made by an agent; log: appends to the event log."""
    agent: str
    """Who sent the act, or who made the call: driver, planner, coder, tester."""
    receiver: str = ""
    kind: str = ""
    """Act: REQUEST, INFORM, ...; model: generate, score; store: put, get."""
    content: str = ""
    """Act: which content it carries (task, log, spectrum, places, candidates, outcomes, refusal)."""
    anchored: bool = False
    payload_bytes: int = 0
    """Act: size of the content, wherever it travels; the size class goes by it."""
    payload_sha256: str = ""
    wire_bytes: int = 0
    """Bytes of this entry on an agent's socket."""
    wire_bytes_zstd: int = 0
    """Act: its bytes after zstd level 3 by itself."""
    store_bytes: int = 0
    """Bytes of this entry on the store's socket (request + response)."""
    model_bytes: int = 0
    """Bytes of this entry on the model's socket (request + response)."""
    prompt_tokens_new: int = 0
    prompt_tokens_cached: int = 0
    prompt_tokens_reread: int = 0
    decoded_tokens: int = 0
    deref_tokens: int = 0
    """Of the prompt tokens, those that show anchors' heads or contents."""
    predicted_saving_bytes: int = 0
    predicted_saving_tokens: int = 0
    realised_saving_tokens: int = 0
    seconds: float = 0.0


class Grade(BaseModel):
    """What grading found, apart from the agents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolved: bool
    applied: bool
    """Whether the patch applied. An empty patch does not."""
    fail_to_pass: dict[str, bool] = Field(default_factory=dict)
    pass_to_pass: dict[str, bool] = Field(default_factory=dict)
    log: str = ""
    """Log of the grading run, cut to 64 KiB."""


class Times(BaseModel):
    """Where the seconds of one (instance, arm) went; they sum to `total`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    total: float
    model: float
    tests: float
    messages: float
    """Encoding, sockets, store and log: what talking costs."""
    rest: float
    grading: float = 0.0
    """After the end of `total`, not part of it."""


class Result(BaseModel):
    """One (instance, arm)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    instance_id: str
    arm: str
    repo: str
    bug_kind: str = ""
    attempt: int
    """From 1; higher after a crash. Only this attempt's costs are billed."""
    patch: str
    """The submitted patch; empty if none."""
    plausible: bool
    """All visible tests passed."""
    grade: Grade
    rounds: int
    test_runs: int
    """Candidates that were run."""
    failure: str = ""
    """Why there is no patch; empty if there is one."""
    cause: Cause = ""
    times: Times
    message_latencies_ms: tuple[float, ...] = ()
    """For each delivery: RPC seconds less handling seconds, in ms."""
    deref_latencies_ms: tuple[float, ...] = ()
    ledger: tuple[LedgerRow, ...] = ()
    started_at: str
    """ISO 8601, UTC."""
    stream: str
    """Stream of the attempt's events in the log."""
