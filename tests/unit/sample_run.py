"""A made-up run from a seed, for the tests of summary, report, explain and progress."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

from hermes_runtime.evaluate.act_record import ActRecord
from hermes_runtime.evaluate.results import Grade, LedgerRow, Result, Times
from hermes_runtime.evaluate.summary import RunContext

PACKAGES = ("boltons", "humanize", "inflection", "toolz", "more-itertools")
KINDS = ("comparison", "boolean", "constant", "variable", "not", "call")
SKILL = {"A": 0.62, "C": 0.62, "PM": 0.66, "enumerate": 0.4}


def context(
    *, instances: int = 20, arms: tuple[str, ...] = ("A", "C", "PM"), control: bool = True
) -> RunContext:
    return RunContext(
        run="quickstart",
        arms=arms,
        control="enumerate" if control else None,
        instances=instances,
        model={
            "name": "repair",
            "digest": "sha256:" + hashlib.sha256(b"repair").hexdigest(),
            "parameters": 3_512_064,
            "device": "cpu",
            "dtype": "float32",
            "load_seconds": 0.41,
        },
        hermetic={"wall": "seccomp", "counted": True, "attempts": 0, "attempted_by": []},
        manifest={
            "code": {"version": "0.1.0", "commit": "388eacc0"},
            "host": {
                "cpu": "2 cores, x86_64",
                "memory_bytes": 25_769_803_776,
                "kernel": "6.12",
                "python": "3.11.9",
            },
            "dataset": {"digest": "sha256:" + hashlib.sha256(b"mutants").hexdigest(), "instances": instances},
            "seed": 42,
        },
        model_name="hermes-repair",
    )


def instance_id(number: int) -> str:
    return f"{PACKAGES[number % len(PACKAGES)]}__mutant-{number:04d}"


def diff(rng: random.Random, *, right: bool = True, lines: int = 3) -> str:
    before = "".join(f"     value_{n} = step(value_{n - 1})\n" for n in range(1, lines + 1))
    fixed = "    if index <= len(items):" if right else f"    if index < len(items) - {rng.randint(1, 9)}:"
    return (
        "--- a/src/package/module.py\n+++ b/src/package/module.py\n"
        f"@@ -40,{lines + 2} +40,{lines + 2} @@ def take(items, index):\n{before}"
        f"-    if index < len(items):\n+{fixed}\n     return <items>[index] & more\n"
    )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ledger(rng: random.Random, name: str, arm: str, rounds: int) -> tuple[LedgerRow, ...]:
    """One conversation, with the same payloads under every arm."""
    payloads = {
        "task": 900,
        "log": 5200,
        "spectrum": 19_000,
        "places": 640,
        "candidates": 3100,
        "outcomes": 420,
    }
    rows: list[LedgerRow] = []
    put: set[str] = set()

    def act(round: int, agent: str, receiver: str, kind: str, content: str) -> None:
        size = payloads[content]
        digest = _sha(f"{name}/{content}/{round if content in ('candidates', 'outcomes') else 0}")
        anchored = arm == "PM" and size > 1024
        wire = {"A": int(size * 1.45) + 320}.get(arm, size + 130)
        if anchored:
            wire = 210
            if digest not in put:
                put.add(digest)
                rows.append(
                    LedgerRow(
                        step=len(rows) + 1, round=round, entry="store", agent=agent, kind="put",
                        payload_sha256=digest, store_bytes=size + 90, seconds=0.001,
                    )
                )  # fmt: skip
        rows.append(
            LedgerRow(
                step=len(rows) + 1, round=round, entry="act", agent=agent, receiver=receiver, kind=kind,
                content=content, anchored=anchored, payload_bytes=size, payload_sha256=digest,
                wire_bytes=wire, wire_bytes_zstd=wire // 3 if wire > 400 else wire,
                predicted_saving_bytes=size if anchored else 0,
                predicted_saving_tokens=size // 4 if anchored else 0,
                realised_saving_tokens=size // 5 if anchored else 0,
            )
        )  # fmt: skip

    def envelope(round: int, agent: str) -> None:
        rows.append(LedgerRow(step=len(rows) + 1, round=round, entry="envelope", agent=agent, wire_bytes=85))
        rows.append(
            LedgerRow(step=len(rows) + 1, round=round, entry="accounting", agent=agent, wire_bytes=140)
        )
        rows.append(LedgerRow(step=len(rows) + 1, round=round, entry="log", agent="driver", store_bytes=900))

    def model(round: int, agent: str, kind: str, new: int, decoded: int) -> None:
        if arm != "enumerate":
            cut = 0.6 if arm == "PM" else 1.0
            rows.append(
                LedgerRow(
                    step=len(rows) + 1, round=round, entry="model", agent=agent, kind=kind, model_bytes=2400,
                    prompt_tokens_new=int(new * cut) + rng.randint(0, 20), prompt_tokens_cached=new // 3,
                    prompt_tokens_reread=new // 5, decoded_tokens=decoded + rng.randint(0, 9),
                    deref_tokens=24 if arm == "PM" else 0, seconds=0.4,
                )
            )  # fmt: skip

    act(0, "driver", "tester", "REQUEST", "task")
    act(0, "tester", "driver", "INFORM", "log")
    act(0, "tester", "driver", "INFORM", "spectrum")
    envelope(0, "driver")
    for round in range(1, rounds + 1):
        for content in ("task", "log", "spectrum"):
            act(round, "driver", "planner", "INFORM", content)
        model(round, "planner", "score", 380, 0)
        act(round, "planner", "driver", "PROPOSE", "places")
        envelope(round, "driver")
        for content in ("task", "log", "places"):
            act(round, "driver", "coder", "INFORM", content)
        model(round, "coder", "generate", 420, 160)
        act(round, "coder", "driver", "PROPOSE", "candidates")
        envelope(round, "driver")
        act(round, "driver", "tester", "PROPOSE", "candidates")
        act(round, "tester", "driver", "INFORM", "outcomes")
        envelope(round, "driver")
    return tuple(rows)


def result(number: int, arm: str, *, seed: int = 7, log_bytes: int = 1500, diff_lines: int = 3) -> Result:
    rng = random.Random(f"{seed}/{number}/{arm if arm in ('PM', 'enumerate') else 'AC'}")
    name = instance_id(number)
    hardness = random.Random(f"{seed}/{number}").random()
    resolved = 0.7 * hardness + 0.3 * rng.random() < SKILL[arm]
    plausible = resolved or rng.random() < 0.4
    rounds = 1 if plausible else 4
    gave_up = not plausible and rng.random() < 0.7
    total = rng.uniform(4, 9) * rounds * {"A": 1.1, "PM": 0.85}.get(arm, 1.0)
    tests, model = total * 0.45, total * (0 if arm == "enumerate" else 0.35)
    messages = total * 0.02
    fails = {f"tests/test_module.py::test_take_{n}": resolved or n == 0 for n in range(4)}
    log = "=== FAILURES ===\n" + "E   assert '<b>' == \"</script>\" & 3 == 4\n" * (log_bytes // 44)
    return Result(
        run="quickstart",
        instance_id=name,
        arm=arm,
        repo=PACKAGES[number % len(PACKAGES)],
        bug_kind=KINDS[number % len(KINDS)],
        attempt=2 if number == 3 and arm == "C" else 1,
        patch="" if gave_up else diff(rng, right=resolved, lines=diff_lines),
        plausible=plausible,
        grade=Grade(
            resolved=resolved,
            applied=not gave_up,
            fail_to_pass=fails,
            pass_to_pass={f"tests/test_module.py::test_keep_{n}": True for n in range(12)},
            log=log,
        ),
        rounds=rounds,
        test_runs=rng.randint(1, 8) * rounds,
        failure="no candidate passed the visible tests within 4 rounds of 8" if gave_up else "",
        cause="model" if gave_up else "",
        times=Times(
            total=total, model=model, tests=tests, messages=messages,
            rest=total - tests - model - messages, grading=rng.uniform(0.5, 1.5),
        ),
        message_latencies_ms=tuple(rng.uniform(0.4, 4) for _ in range(4 * rounds)),
        deref_latencies_ms=tuple(rng.uniform(0.3, 2) for _ in range(3 * rounds)) if arm == "PM" else (),
        ledger=ledger(rng, name, arm, rounds),
        started_at="2026-01-02T03:04:05Z",
        stream=f"quickstart/{name}/{arm}/1",
    )  # fmt: skip


def results(
    *, instances: int = 20, arms: tuple[str, ...] = ("A", "C", "PM", "enumerate"), **more: int
) -> list[Result]:
    return [result(number, arm, **more) for number in range(instances) for arm in arms]


def gold(*, instances: int = 20) -> Mapping[str, str]:
    return {instance_id(number): diff(random.Random(0)) for number in range(instances)}


def acts(found: Result) -> tuple[ActRecord, ...]:
    """The conversation of a result, as a reader sees it."""
    tests = "tests/test_module.py::test_take_1"
    said: dict[str, tuple[str, tuple[str, ...], str]] = {
        "task": (
            f"{found.instance_id}: 1 failing test shown, 12 to keep",
            (tests,),
            "take() drops the last item",
        ),
        "log": ("1 failed, 12 passed", (), "E   assert take([1, 2], 2) == <2>\n" * 40),
        "spectrum": ("3 files, 212 lines; 1 failing and 12 passing tests", (), ""),
        "places": (
            "8 places; first src/package/module.py:44",
            ("src/package/module.py:44  suspicion 0.71", "src/package/module.py:47  suspicion 0.55"),
            "",
        ),
        "candidates": (
            "8 candidates; first r1c1",
            ("r1c1  score -0.4",),
            diff(random.Random(1), right=False),
        ),
        "outcomes": (
            "2 tried: 1 failed, 1 passed" if found.plausible else "8 tried: 8 failed",
            (
                f"r1c1  failed: {tests}",
                *(
                    ["r1c2  passed"]
                    if found.plausible
                    else ["r1c2  timed out", "r1c3  regressed: tests/t.py::t"]
                ),
            ),
            "",
        ),
    }
    made: list[ActRecord] = []
    last_request: int | None = None
    for row in found.ledger:
        if row.entry != "act":
            continue
        summary, points, body = said[row.content]
        step = len(made) + 1
        made.append(
            ActRecord(
                step=step,
                round=row.round,
                sender=row.agent,
                receiver=row.receiver,
                kind=row.kind,
                content=row.content,
                anchored=row.anchored,
                alias=f"@p{step}" if row.anchored else "",
                wire_bytes=row.wire_bytes,
                payload_bytes=row.payload_bytes,
                summary=summary,
                points=points,
                body=body,
                parent=last_request,
            )
        )
        if row.agent == "driver":
            last_request = step
    return tuple(made)
