"""What a shard tells: its termination message, whose fault a failure is, and the evidence of a whole pod."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.model.v1 import model_pb2
from hermes.seal.v1 import seal_pb2
from hermes_runtime import errors
from hermes_runtime.document import DocumentError
from hermes_runtime.evaluate.shard import FAILED, USER_CAN_MEND, failure_of
from hermes_runtime.evaluate.sidecars import SidecarLost, of_the_pod
from hermes_runtime.evaluate.termination import MESSAGE_BYTES_MAX, Failure, Termination

LOADED = model_pb2.DescribeResponse(
    device="cpu", dtype="float32", quantization="none", weight_bytes=7, load_seconds=1.23456, tree_sha256="ab"
)


def test_a_message_says_all_that_is_known():
    told = Termination(
        done=3,
        total=4,
        arms={"A": (2, 1), "C": (1, 0)},
        hermetic={"counted": True, "attempts": 0, "wall": "seccomp"},
        loaded=LOADED,
        manifest="mcp://sha256/00",
        failure=Failure(who="cluster", reason="StoreLost", message="gone"),
    )
    assert json.loads(told.to_bytes()) == {
        "version": 1,
        "done": 3,
        "total": 4,
        "arms": {"A": {"done": 2, "solved": 1}, "C": {"done": 1, "solved": 0}},
        "hermetic": {"counted": True, "attempts": 0},
        "loaded": {
            "device": "cpu",
            "dtype": "float32",
            "quantization": "none",
            "weightBytes": 7,
            "loadSeconds": 1.235,
            "treeSha256": "ab",
        },
        "manifest": "mcp://sha256/00",
        "failure": {"who": "cluster", "reason": "StoreLost", "message": "gone"},
    }


@given(message=st.text(max_size=9000))
def test_a_message_never_exceeds_its_size_and_is_always_json(message):
    data = Termination(failure=Failure(who="user", reason="BadInput", message=message)).to_bytes()
    assert len(data) <= MESSAGE_BYTES_MAX
    assert json.loads(data)["failure"]["reason"] == "BadInput"


def test_a_shorter_message_over_a_longer_one_reads_as_itself(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"x" * 9000)
    Termination(failure=Failure(who="user", reason="BadInput", message="m" * 900)).write(file)
    Termination(done=1).write(file)
    assert json.loads(file.read_bytes())["done"] == 1
    assert file.stat().st_size <= MESSAGE_BYTES_MAX


@pytest.mark.parametrize(
    ("error", "is_preparing", "who", "reason", "code"),
    [
        (DocumentError("d", []), True, "user", "BadInput", USER_CAN_MEND),
        (errors.NotFound("f"), True, "user", "BadInput", USER_CAN_MEND),
        (errors.Malformed("f"), True, "user", "BadInput", USER_CAN_MEND),
        (errors.Damaged("w"), True, "model", "ModelFailed", FAILED),
        (errors.PeerLost("index"), True, "operator", "OperatorFailed", FAILED),
        (errors.Unsupported("landlock"), True, "sandbox", "SandboxFailed", FAILED),
        (errors.PeerLost("store"), False, "cluster", "StoreLost", FAILED),
        (errors.Denied("store"), False, "cluster", "StoreLost", FAILED),
        (errors.Unauthenticated("store"), False, "cluster", "StoreLost", FAILED),
        (errors.Exhausted("disk"), False, "cluster", "StoreLost", FAILED),
        (errors.BadInput("?"), False, "agent", "AgentFailed", FAILED),
        (SidecarLost("model", "m"), False, "model", "ModelFailed", FAILED),
        (SidecarLost("coder", "m"), False, "agent", "AgentFailed", FAILED),
        (OSError("full"), False, "cluster", "ShardsFailed", FAILED),
        (KeyError("x"), False, "operator", "OperatorFailed", FAILED),
    ],
)
def test_a_failure_has_somebody_who_can_mend_it(error, is_preparing, who, reason, code):
    failure, found = failure_of(error, is_preparing=is_preparing)
    assert (failure.who, failure.reason, found) == (who, reason, code)
    assert failure.message


OWN: dict[str, Any] = {
    "wall": "seccomp",
    "counted": True,
    "attempts": 0,
    "attempted_by": [],
    "grpc_probes_refused": 4,
}


def start(*, attempts: int = 0, counted: bool = True) -> seal_pb2.DescribeResponse:
    caller = seal_pb2.Attempt(pid=7, comm="x", syscall="socket", family="AF_INET", count=attempts)
    return seal_pb2.DescribeResponse(
        counted=counted, attempts=attempts, grpc_probes_refused=4, attempted_by=[caller] if attempts else []
    )


def test_the_evidence_of_a_pod_is_that_of_every_start_of_every_process():
    found = of_the_pod(OWN, {"model": [start()], "coder": [start(attempts=2), start(attempts=1)]})
    assert (found["wall"], found["counted"], found["attempts"]) == ("seccomp", True, 3)
    assert [(c["process"], c["count"]) for c in found["attempted_by"]] == [("coder", 2), ("coder", 1)]
    assert found["grpc_probes_refused"] == 16
    assert found["sealed"] == "driver, model, coder"


def test_a_pod_with_a_sidecar_that_told_nothing_is_not_sealed_and_not_counted():
    found = of_the_pod(OWN, {"model": [start()], "coder": []})
    assert (found["wall"], found["counted"]) == ("none", False)


def test_a_sidecar_that_could_not_count_makes_the_pod_uncounted():
    found = of_the_pod(OWN, {"model": [start(counted=False)]})
    assert (found["wall"], found["counted"]) == ("seccomp", False)


def test_a_run_that_did_not_ask_for_a_seal_has_none():
    own = {"wall": "none", "counted": False, "attempts": None}
    assert of_the_pod(own, {"model": [start()]}) == own
