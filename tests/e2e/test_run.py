"""A whole run in real processes: what comes out, what is billed, what a crash costs."""

import asyncio
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hermes.agent.v1 import agent_pb2
from hermes_runtime.evaluate.driver import ENVELOPE_EVENT, EXPENSE_EVENT
from hermes_runtime.models import tree
from hermes_runtime.store import fsck
from hermes_runtime.store.disk import DiskStore
from tests.e2e.conftest import environment, hermes, hermes_command, write_instances, write_shop

ARMS = ("A", "C", "PM", "enumerate")


def run(
    shop: Path, document: str, *words: str | Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = hermes("run", "-f", shop / document, *words, cwd=shop)
    assert not check or done.returncode == 0, done.stderr
    return done


def predictions(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        arm: [json.loads(line) for line in (folder / "predictions" / f"{arm}.jsonl").read_text().splitlines()]
        for arm in ARMS
    }


def ledger(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "ledger.parquet").to_pylist()
    return rows


def tokens(folder: Path) -> Counter[str]:
    names = ("prompt_tokens_new", "prompt_tokens_cached", "prompt_tokens_reread", "decoded_tokens")
    return Counter(
        {
            f"{row['arm']} {name}": sum(r[name] for r in ledger(folder) if r["arm"] == row["arm"])
            for row in ledger(folder)
            for name in names
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that went through undisturbed, with a scripted model that speaks chat."""

    shop = tmp_path_factory.mktemp("shop")
    write_shop(shop)
    done = run(shop, "scripted.yaml", "--out", shop / "out")
    assert str(shop / "out" / "report.html") in done.stdout
    return shop / "out"


def test_a_malformed_edit_is_answered_by_an_error_and_mended_in_the_next_round(finished):
    resolved = {arm: summary_of(finished)["arms"][arm]["resolved"] for arm in ("A", "C", "PM")}
    assert resolved == {"A": 1, "C": 1, "PM": 1}
    told = hermes("explain", finished, "shop__minus", "--arm", "C").stdout
    assert "ERROR refusal" in told
    assert "is not in shop/cart.py" in told
    assert "return result - discount" in told


def summary_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return read


def test_every_arm_and_the_control_have_a_prediction_for_every_instance(finished):
    for arm, rows in predictions(finished).items():
        assert {row["instance_id"] for row in rows} == {"shop__minus", "shop__order"}
        assert all(set(row) == {"instance_id", "model_name_or_path", "model_patch"} for row in rows), arm


def test_the_run_was_sealed_and_no_socket_was_tried(finished):
    hermetic = summary_of(finished)["hermetic"]
    assert hermetic["wall"] == "seccomp"
    assert hermetic["attempts"] == 0


def test_the_ledger_reconciles_with_what_the_agents_reported_and_with_every_message_on_the_wire(finished):
    """The log holds each act as it was written and each expense as it was reported: sum and compare."""
    with closing(DiskStore(finished / "store")) as store:
        events = list(store.events())
    rows = ledger(finished)
    expenses = [
        agent_pb2.Expense.FromString(e.event.payload) for e in events if e.event.type == EXPENSE_EVENT
    ]
    for name in ("prompt_tokens_new", "prompt_tokens_reread", "decoded_tokens"):
        reported = sum(getattr(call, name) for expense in expenses for call in expense.model_calls)
        assert sum(row[name] for row in rows) == reported
    stored = sum(c.request_bytes + c.response_bytes for expense in expenses for c in expense.store_calls)
    assert sum(r["store_bytes"] for r in rows if r["entry"] == "store" and r["agent"] != "driver") == stored
    said = Counter(
        len(agent_pb2.Envelope.FromString(e.event.payload).act)
        for e in events
        if e.event.type == ENVELOPE_EVENT
    )
    billed = Counter(r["wire_bytes"] for r in rows if r["entry"] == "act")
    assert not said - billed  # every act that was said is billed, those sent again more than once


def test_anchoring_takes_no_more_bytes_and_protobuf_fewer_than_json(finished):
    assert {claim["claim"]: claim["holds"] for claim in summary_of(finished)["claims"]} == {
        "PM <= C": True,
        "C < A": True,
    }


def test_the_times_of_an_instance_sum_to_its_total(finished):
    for row in pq.read_table(finished / "results.parquet").to_pylist():
        parts = [
            value
            for name, value in row.items()
            if name in ("model_seconds", "tests_seconds", "messages_seconds", "rest_seconds")
        ]
        assert sum(parts) == pytest.approx(row["total_seconds"], rel=0.05)


def test_the_same_document_gives_the_same_predictions_and_token_counts(finished, shop):
    run(shop, "scripted.yaml", "--out", shop / "again")
    strip = [
        [(r["instance_id"], r["model_patch"]) for r in rows] for rows in predictions(shop / "again").values()
    ]
    assert strip == [
        [(r["instance_id"], r["model_patch"]) for r in rows] for rows in predictions(finished).values()
    ]
    assert tokens(shop / "again") == tokens(finished)


def test_a_finished_run_is_not_run_again(finished):
    before = (finished / "store" / "store.db").stat().st_size, ledger(finished)
    started = time.monotonic()
    run(finished.parent, "scripted.yaml", "--out", finished)
    assert ledger(finished) == before[1]
    assert time.monotonic() - started < 120


async def killed_run(shop: Path, out: Path, kills: int, seed: int) -> int:
    """Run to the end while processes of the run are killed at random moments; the number of kills."""
    rng = random.Random(seed)
    done = 0
    while True:
        process = await asyncio.create_subprocess_exec(
            *hermes_command("run", "-f", shop / "scripted.yaml", "--out", out),
            cwd=shop,
            env=environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        waiting = asyncio.create_task(process.communicate())
        while not waiting.done() and done < kills:
            await asyncio.wait({waiting}, timeout=rng.uniform(0.02, 1.2))
            victims = family(process.pid)
            if waiting.done() or not victims:
                continue
            victim = rng.choice([*victims, process.pid])
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            done += 1
        _, errors = await waiting
        if process.returncode == 0:
            return done
        assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]


def family(pid: int) -> list[int]:
    """Processes of a run: its children that serve (store, model, agents), and the model's worker."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"serve" in command:
            found.append(int(stat.parent.name))
    return found


async def test_killing_processes_at_random_moments_loses_and_doubles_nothing(finished, shop):
    wanted = {
        a: [(r["instance_id"], r["model_patch"]) for r in rows] for a, rows in predictions(finished).items()
    }
    left = int(os.environ.get("HERMES_RUN_KILLS", "12"))
    for number in range(100):
        out = shop / f"killed{number}"
        kills = await killed_run(shop, out, left, seed=number)
        left -= kills
        found = predictions(out)
        assert {
            a: [(r["instance_id"], r["model_patch"]) for r in rows] for a, rows in found.items()
        } == wanted
        results = pq.read_table(out / "results.parquet").to_pylist()
        every = Counter((instance, arm) for arm in ARMS for instance in ("shop__minus", "shop__order"))
        assert Counter((r["instance_id"], r["arm"]) for r in results) == every
        assert fsck.check(out / "store").is_sound
        print(f"run {number}: {kills} kills")
        if left <= 0:
            break
    assert left <= 0


def test_an_interrupt_ends_the_run_cleanly_and_the_same_command_goes_on(shop):
    argv = hermes_command("run", "-f", shop / "scripted.yaml", "--out", shop / "out")
    with subprocess.Popen(argv, cwd=shop, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("[1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "goes on where it was" in rest
    done = run(shop, "scripted.yaml", "--out", shop / "out")
    assert "[8/8]" in done.stderr
    assert "[1/8]" not in done.stderr  # what was recorded is not run again


BAD = {
    "an unknown field": (
        "scripted.yaml",
        ["--set", "spec.sed=1"],
        2,
        "spec.sed: unknown field; did you mean 'seed'?",
    ),
    "a missing instances file": (
        "scripted.yaml",
        ["--set", "spec.evaluate.instances.file=none.jsonl"],
        1,
        "none.jsonl",
    ),
    "a missing script": (
        "scripted.yaml",
        ["--set", "spec.model.source.path=none.yaml"],
        1,
        "spec.model.source.path",
    ),
    "a missing model folder": (
        "bundled.yaml",
        ["--set", "spec.model.source={path: none}"],
        1,
        "neither a folder nor a bundled model",
    ),
    "a suspended run": ("scripted.yaml", ["--set", "spec.suspend=true"], 2, "spec.suspend is true"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_message_a_stranger_understands(case, shop):
    document, words, code, message = BAD[case]
    done = run(shop, document, "--out", shop / "out", *words, check=False)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
NF4 = ("--set", "spec.model.quantization=nf4")


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="the package is there")
def test_a_quantization_that_this_host_cannot_do_is_refused_before_anything_is_prepared(shop):
    done = run(shop, "bundled.yaml", "--out", shop / "out", *NF4, check=False)
    assert done.returncode == 1
    assert "nf4 cannot be had on this host" in done.stderr
    assert "set spec.model.quantization to none" in done.stderr
    assert not (shop / "out" / "prepared.json").exists()


@pytest.mark.skipif(not HAS_BITSANDBYTES and not os.environ.get("CI"), reason="bitsandbytes is not installed")
def test_a_run_may_ask_for_four_bits_and_its_manifest_says_what_was_loaded(shop):
    run(shop, "bundled.yaml", "--out", shop / "out", *NF4)
    model = json.loads((shop / "out" / "manifest.json").read_text())["model"]
    assert model["quantization"] == "nf4"
    assert model["weight_bytes"] < 0.8 * (tree.resolve("repair") / "model.safetensors").stat().st_size


def test_a_missing_document_is_named(shop):
    done = run(shop, "none.yaml", check=False)
    assert done.returncode == 1
    assert "none.yaml is not there" in done.stderr


def test_two_runs_on_one_folder_are_refused_and_the_first_goes_on(shop):
    argv = hermes_command("run", "-f", shop / "scripted.yaml", "--out", shop / "out")
    with subprocess.Popen(argv, cwd=shop, env=environment(), stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr
        assert first.stderr.readline()
        second = run(shop, "scripted.yaml", "--out", shop / "out", check=False)
        assert second.returncode == 1
        assert f"in use by the run of process {first.pid}" in second.stderr
        first.stderr.read()
    assert first.returncode == 0


def test_a_folder_of_another_document_is_refused(finished):
    done = run(finished.parent, "scripted.yaml", "--out", finished, "--set", "spec.seed=1", check=False)
    assert done.returncode == 2
    assert "holds a run of another document" in done.stderr


def test_a_store_of_a_newer_version_is_refused_and_untouched(finished, shop):
    import sqlite3

    out = shop / "newer"
    shutil.copytree(finished, out)
    with closing(sqlite3.connect(out / "store" / "store.db")) as database:
        database.execute("PRAGMA user_version = 999")
    done = hermes("report", out)
    assert done.returncode == 1
    assert "999" in done.stderr


def test_a_model_whose_context_is_too_short_says_both_numbers(shop):
    run(
        shop,
        "scripted.yaml",
        "--out",
        shop / "out",
        "--set",
        "spec.model.contextTokens=64",
        "--set",
        "spec.evaluate.arms=[C]",
    )
    told = hermes("explain", shop / "out", "shop__minus", "--arm", "C").stdout
    assert "the context is 64 tokens" in " ".join(told.split())


def test_a_sandbox_that_cannot_run_here_is_named_with_the_remedy(shop, tmp_path):
    """Without bwrap on the path, a document that asks for it is refused before anything runs."""
    empty = tmp_path / "bin"
    empty.mkdir()
    done = subprocess.run(
        hermes_command(
            "run",
            "-f",
            shop / "scripted.yaml",
            "--out",
            shop / "out",
            "--set",
            "spec.evaluate.sandbox=bubblewrap",
        ),
        cwd=shop,
        env={**environment(), "PATH": str(empty)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "bubblewrap" in done.stderr
    assert "landlock" in done.stderr


def test_instances_with_none_of_their_tests_visible_end_with_a_reason_and_not_with_a_crash(tmp_path):

    write_shop(tmp_path)
    file = write_instances(tmp_path / "hidden", names=("minus",))
    row = {**json.loads(file.read_text()), "visible_tests": []}
    file.write_text(json.dumps(row) + "\n")
    run(tmp_path, "scripted.yaml", "--out", tmp_path / "out", "--set", f"spec.evaluate.instances.file={file}")
    assert summary_of(tmp_path / "out")["arms"]["C"]["n"] == 1


def test_hermes_without_words_says_how_it_is_used():
    done = subprocess.run(
        [sys.executable, "-m", "hermes_runtime.cli"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: hermes" in done.stderr


@pytest.fixture(scope="module")
def repaired(tmp_path_factory) -> Path:
    """The folder of a run of the bundled model."""
    shop = tmp_path_factory.mktemp("repaired")
    write_shop(shop)
    run(shop, "bundled.yaml", "--out", shop / "out")
    return shop / "out"


def patches(folder: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        a: [(r["instance_id"], r["model_patch"]) for r in rows] for a, rows in predictions(folder).items()
    }


def test_the_bundled_model_is_verified_and_says_the_same_under_two_encodings(repaired):
    found = summary_of(repaired)
    assert found["hermetic"]["model_files_verified"] >= 5
    assert found["hermetic"]["model_unchanged_at_end"] is True
    assert found["hermetic"]["attempts"] == 0
    assert patches(repaired)["A"] == patches(repaired)["C"]
    assert {claim["claim"]: claim["holds"] for claim in found["claims"]}["PM <= C"] is True


def test_the_bundled_model_says_the_same_when_it_is_run_again(repaired):
    shop = repaired.parent
    run(shop, "bundled.yaml", "--out", shop / "again")
    assert patches(shop / "again") == patches(repaired)
    assert tokens(shop / "again") == tokens(repaired)


def test_one_changed_byte_in_the_weights_is_refused_before_anything_runs(shop):
    shutil.copytree(tree.resolve("repair"), shop / "model")
    weights = shop / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    words = ["--out", shop / "out", "--set", "spec.model.source={path: model}"]
    done = run(shop, "bundled.yaml", *words, check=False)
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr
    assert "its bytes changed" in done.stderr
    assert not (shop / "out" / "store").exists()


def test_the_report_can_be_written_again_from_the_store_alone(repaired):
    for name in ("report.html", "summary.json", "ledger.parquet"):
        (repaired / name).unlink()
    done = hermes("report", repaired)
    assert done.returncode == 0, done.stderr
    assert (repaired / "report.html").stat().st_size > 10_000
