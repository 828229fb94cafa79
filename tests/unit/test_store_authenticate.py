"""Who may do what with a served store; how long an answer about a token is believed."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from hermes.store.v1 import store_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.store import Event
from hermes_runtime.store.authenticate import (
    REFUSAL_SECONDS,
    REMEMBERED_MAX,
    REMEMBERED_SECONDS,
    TOUCHES,
    Reader,
    Remembering,
    RunCaller,
    Stranger,
    Verified,
    caller_of,
    check,
)
from hermes_runtime.store.token_review import expiry, verified

RUN = caller_of("system:serviceaccount:team:hermes-run-night", ())
READER = caller_of(
    "system:serviceaccount:hermes:hermes-reader", ["system:serviceaccount:hermes:hermes-reader"]
)
STRANGER = caller_of("system:serviceaccount:team:default", ())
OWN, OTHER = "team.night.0a1b2c3d", "team.nightly.0a1b2c3d"


def append(stream: str) -> pb.AppendRequest:
    event = Event(
        stream=stream, type="t", payload=b"", previous=b"", written_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    return pb.AppendRequest(event_bytes=event.to_bytes())


CALLS: dict[str, tuple[str, Any, bool, bool]] = {
    # what: method, request, may the run, may the reader
    "put under the default lease": ("Put", pb.PutRequest(data=b"x"), True, False),
    "put under its own lease": ("Put", pb.PutRequest(lease=f"{OWN}/a"), True, False),
    "put under a lease of another": ("Put", pb.PutRequest(lease=f"{OTHER}/a"), False, False),
    "put in pieces": ("PutStream", pb.PutStreamRequest(data=b"x"), True, False),
    "put in pieces under a lease of another": ("PutStream", pb.PutStreamRequest(lease="x"), False, False),
    "get": ("Get", pb.GetRequest(), True, True),
    "get in pieces": ("GetStream", pb.GetStreamRequest(), True, True),
    "stat": ("Stat", pb.StatRequest(), True, True),
    "lease": ("Lease", pb.LeaseRequest(lease=OWN), True, False),
    "prolong the default lease": ("Lease", pb.LeaseRequest(lease="default"), False, False),
    "drop its own lease": ("DropLease", pb.DropLeaseRequest(lease=f"{OWN}/a"), True, False),
    "drop the default lease": ("DropLease", pb.DropLeaseRequest(lease="default"), False, False),
    "collect garbage": ("CollectGarbage", pb.CollectGarbageRequest(), False, False),
    "append": ("Append", append(f"{OWN}/shard/0"), True, False),
    "append to a stream of another": ("Append", append(f"{OTHER}/shard/0"), False, False),
    "append to a stream that is its prefix": ("Append", append("team.night"), False, False),
    "head": ("Head", pb.HeadRequest(stream=f"{OWN}/shard/0"), True, True),
    "head of another": ("Head", pb.HeadRequest(stream=f"{OTHER}/shard/0"), False, True),
    "read its events": ("ReadEvents", pb.ReadEventsRequest(stream_prefix=OWN), True, True),
    "read every event": ("ReadEvents", pb.ReadEventsRequest(), False, True),
    "read the events of its namespace": (
        "ReadEvents",
        pb.ReadEventsRequest(stream_prefix="team."),
        False,
        True,
    ),
    "record a result": ("RecordResult", pb.RecordResultRequest(key=pb.ResultKey(run=OWN)), True, False),
    "record for another": ("RecordResult", pb.RecordResultRequest(key=pb.ResultKey(run=OTHER)), False, False),
    "list its results": ("ListResults", pb.ListResultsRequest(run=OWN), True, True),
    "list results of another": ("ListResults", pb.ListResultsRequest(run=OTHER), False, True),
    "back up": ("Backup", pb.BackupRequest(), False, True),
}


def is_allowed(caller: Any, method: str, request: Any) -> bool:
    try:
        check(caller, method, request)
    except errors.Denied:
        return False
    return True


@pytest.mark.parametrize("what", CALLS)
def test_a_run_may_use_its_own_and_a_reader_may_read_all_and_a_stranger_nothing(what):
    method, request, for_run, for_reader = CALLS[what]
    assert is_allowed(RUN, method, request) is for_run
    assert is_allowed(READER, method, request) is for_reader
    assert not is_allowed(STRANGER, method, request)


def test_a_refusal_says_who_may_not_what():
    with pytest.raises(
        errors.Denied, match=r"Head: \S+hermes-run-night may use its own run \(team.night.\*\)"
    ):
        check(RUN, "Head", pb.HeadRequest(stream=OTHER))


def test_every_method_of_the_service_has_a_rule_and_a_case_here():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["StoreService"].methods}
    assert set(TOUCHES) == methods
    assert {method for method, *_ in CALLS.values()} == methods


def test_a_method_without_a_rule_is_refused_to_everybody():
    for caller in (RUN, READER):
        assert not is_allowed(caller, "Erase", pb.GetRequest())


def test_an_event_that_is_none_is_malformed_and_not_written():
    with pytest.raises(errors.Malformed):
        check(RUN, "Append", pb.AppendRequest(event_bytes=b"\xff"))


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("system:serviceaccount:a:hermes-run-b", RunCaller("system:serviceaccount:a:hermes-run-b", "a.b.")),
        ("system:serviceaccount:a:hermes-run-b.c", Stranger("system:serviceaccount:a:hermes-run-b.c")),
        ("system:serviceaccount:a:hermes-run-", Stranger("system:serviceaccount:a:hermes-run-")),
        ("hermes-run-b", Stranger("hermes-run-b")),
        ("", Stranger("")),
        ("r", Reader("r")),
    ],
)
def test_a_caller_is_who_its_service_account_says(name, caller):
    assert caller_of(name, {"r"}) == caller


class Clerk:
    """A verifier whose answers are set by the test, and which counts how often it is asked."""

    def __init__(self, said: Verified | errors.HermesError) -> None:
        self.said = said
        self.asked = 0

    async def verify(self, token: str) -> Verified:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.said, errors.HermesError):
            raise self.said
        return self.said


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_believed_for_a_minute_and_then_asked_for_again():
    clerk, clock = Clerk(Verified(name="a")), Clock()
    remembering = Remembering(clerk, clock=clock)
    for seconds, asked in ((0.0, 1), (REMEMBERED_SECONDS - 1, 1), (1.0, 2)):
        clock.now += seconds
        assert (await remembering.verify("t")).name == "a"
        assert clerk.asked == asked


async def test_an_answer_is_never_believed_beyond_the_expiry_of_the_token():
    clock = Clock()
    clerk = Clerk(Verified(name="a", expires_at=clock.now + 10))
    remembering = Remembering(clerk, clock=clock)
    await remembering.verify("t")
    clock.now += 10
    clerk.said = errors.Unauthenticated("expired")
    with pytest.raises(errors.Unauthenticated, match="expired"):
        await remembering.verify("t")


async def test_calls_with_one_token_at_one_time_ask_once_and_another_token_asks_for_itself():
    clerk = Clerk(Verified(name="a"))
    remembering = Remembering(clerk)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(remembering.verify("t"))
    assert clerk.asked == 1
    await remembering.verify("u")
    assert clerk.asked == 2


async def test_a_refusal_is_remembered_for_a_moment_and_a_lost_verifier_not_at_all():
    clerk, clock = Clerk(errors.Unauthenticated("nobody's")), Clock()
    remembering = Remembering(clerk, clock=clock)
    for _ in range(3):
        with pytest.raises(errors.Unauthenticated, match="nobody's"):
            await remembering.verify("t")
    assert clerk.asked == 1
    clock.now += REFUSAL_SECONDS
    clerk.said = errors.PeerLost("away")
    for _ in range(2):
        with pytest.raises(errors.PeerLost):
            await remembering.verify("t")
    assert clerk.asked == 3


async def test_no_more_tokens_are_remembered_than_fit():
    clerk = Clerk(Verified(name="a"))
    remembering = Remembering(clerk)
    for number in range(REMEMBERED_MAX + 1):
        await remembering.verify(str(number))
    await remembering.verify(str(REMEMBERED_MAX))
    assert clerk.asked == REMEMBERED_MAX + 1
    await remembering.verify("0")
    assert clerk.asked == REMEMBERED_MAX + 2


def status(**fields: Any) -> Any:
    whole = {"authenticated": True, "audiences": ["hermes-store"], "error": None}
    return SimpleNamespace(**{**whole, "user": SimpleNamespace(username="me"), **fields})


def test_a_review_that_vouches_for_the_audience_gives_the_name_and_the_expiry():
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1234}).encode()).decode().rstrip("=")
    assert verified(status(), f"h.{claims}.s", "hermes-store") == Verified(name="me", expires_at=1234.0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (status(authenticated=False, error="token has expired"), "token has expired"),
        (status(authenticated=None), "unknown or expired"),
        (status(audiences=["https://kubernetes.default.svc"]), "not made for audience hermes-store"),
        (status(audiences=None), "not made for audience hermes-store"),
        (None, "unknown or expired"),
    ],
)
def test_a_token_for_nobody_or_for_another_audience_is_refused(found, message):
    with pytest.raises(errors.Unauthenticated, match=message):
        verified(found, "t", "hermes-store")


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "a.e30.c", "a.bnVsbA.c", "a.é.c"])
def test_a_token_that_does_not_say_when_it_expires_has_no_expiry(token):
    assert expiry(token) is None
