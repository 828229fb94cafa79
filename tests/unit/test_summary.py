"""summary.json, predictions and tables, as views of results."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hermes_runtime.errors import BadInput
from hermes_runtime.evaluate.results import LedgerRow, Result
from hermes_runtime.evaluate.statistics import Interval
from hermes_runtime.evaluate.summary import (
    predictions,
    size_class,
    summarize,
    to_json,
    write,
)
from tests.unit import sample_run as sample


def with_ledger(result: Result, rows: list[LedgerRow]) -> Result:
    return result.model_copy(update={"ledger": tuple(rows)})


def act(payload: str, *, wire: int, size: int = 5000, anchored: bool = False) -> LedgerRow:
    return LedgerRow(
        step=1, entry="act", agent="driver", receiver="coder", content="log", payload_sha256=payload,
        payload_bytes=size, wire_bytes=wire, wire_bytes_zstd=wire // 2, anchored=anchored,
    )  # fmt: skip


def store(payload: str, *, size: int) -> LedgerRow:
    return LedgerRow(
        step=1, entry="store", agent="driver", kind="put", payload_sha256=payload, store_bytes=size
    )


def test_an_arm_has_every_key_that_the_run_folder_promises():
    data = json.loads(to_json(summarize(sample.results(), sample.context())))
    assert set(data) >= {"arms", "control", "hermetic", "model"}
    assert list(data["arms"]) == ["A", "C", "PM"]
    promised = {
        "n", "resolved", "pass_at_1", "bytes_per_solve", "tokens_prefill", "tokens_decode",
        "e2e_latency_ms_p50", "e2e_latency_ms_p95", "message_path_ms_p95", "mcp_deref_ms_p95",
        "sae_accept_rate", "rollback_ms_p95",
    }  # fmt: skip
    for found in (*data["arms"].values(), data["control"]):
        assert promised <= set(found)
        assert set(found["pass_at_1"]) == {"value", "low", "high"}
        assert found["sae_accept_rate"] is None
    assert data["arms"]["PM"]["mcp_deref_ms_p95"] > 0
    assert data["arms"]["A"]["mcp_deref_ms_p95"] is None
    assert data["hermetic"]["attempts"] == 0


def test_the_same_results_in_any_order_give_the_same_bytes():
    results = sample.results()
    assert to_json(summarize(results, sample.context())) == to_json(
        summarize(results[::-1], sample.context())
    )


def test_tokens_and_bytes_equal_the_sums_of_the_ledger():
    results = sample.results()
    found = summarize(results, sample.context()).arms["PM"]
    rows = [row for result in results if result.arm == "PM" for row in result.ledger]
    assert found.tokens_prefill == sum(
        row.prompt_tokens_new + row.prompt_tokens_cached + row.prompt_tokens_reread for row in rows
    )
    assert found.tokens_decode == sum(row.decoded_tokens for row in rows)
    every_byte = sum(row.wire_bytes + row.store_bytes for row in rows)
    assert found.bytes.talking + found.bytes.measuring == every_byte
    assert found.bytes_per_solve == found.bytes.talking / found.resolved


def test_size_classes_hold_every_act_and_every_stored_payload_once():
    results = sample.results()
    found = summarize(results, sample.context()).arms["PM"]
    assert sum(c.acts for c in found.size_classes) == found.acts
    assert sum(c.wire_bytes for c in found.size_classes) == found.bytes.act
    assert sum(c.store_bytes for c in found.size_classes) == found.bytes.store


@pytest.mark.parametrize(
    ("size", "name"),
    [(0, "<= 256 B"), (256, "<= 256 B"), (257, "<= 1 KiB"), (262_144, "<= 256 KiB"), (262_145, "> 256 KiB")],
)
def test_a_payload_on_the_edge_belongs_to_the_smaller_class(size, name):
    assert size_class(size) == name


def test_the_claims_on_bytes_hold_in_the_sample_and_say_so_by_class():
    claims = {claim.claim: claim for claim in summarize(sample.results(), sample.context()).claims}
    assert claims["PM <= C"].holds is True
    assert claims["C < A"].holds is True
    assert [c.holds for c in claims["PM <= C"].classes].count(None) == 3


def test_store_traffic_counts_against_an_anchor_that_does_not_pay():
    results = [
        with_ledger(sample.result(1, "C"), [act("x", wire=5100)]),
        with_ledger(sample.result(1, "PM"), [act("x", wire=200, anchored=True), store("x", size=5000)]),
    ]
    context = sample.context(instances=1, arms=("C", "PM"), control=False)
    (claim,) = summarize(results, context).claims
    assert claim.holds is False
    found = next(c for c in claim.classes if c.payloads)
    assert (found.name, found.first_bytes, found.second_bytes) == ("<= 16 KiB", 5200, 5100)


def test_a_longer_conversation_is_not_taken_for_a_worse_encoding():
    results = [
        with_ledger(sample.result(1, "C"), [act("x", wire=5100)]),
        with_ledger(
            sample.result(1, "PM"),
            [act("x", wire=200, anchored=True)] * 4 + [store("x", size=5200), act("y", wire=9000)],
        ),
    ]
    context = sample.context(instances=1, arms=("C", "PM"), control=False)
    summary = summarize(results, context)
    assert summary.claims[0].holds is True
    assert summary.arms["PM"].bytes.talking > summary.arms["C"].bytes.talking


def test_equal_bytes_satisfy_at_most_but_not_less():
    rows = [act("x", wire=100, size=90)]
    results = [with_ledger(sample.result(1, arm), rows) for arm in ("A", "C", "PM")]
    claims = summarize(results, sample.context(instances=1, control=False)).claims
    assert {claim.claim: claim.holds for claim in claims} == {"PM <= C": True, "C < A": False}


def test_arms_that_said_the_same_are_compared_without_a_difference():
    comparison = next(
        c
        for c in summarize(sample.results(), sample.context()).comparisons
        if (c.arm, c.against) == ("C", "A")
    )
    assert (comparison.arm_only, comparison.against_only) == (0, 0)
    assert comparison.p_value == comparison.p_value_holm == 1.0
    assert comparison.discordance_assumed
    assert comparison.power_observed is None
    assert comparison.pairs_needed_observed is None
    assert comparison.pairs_needed_planned is not None
    assert not comparison.is_clear


def test_every_arm_meets_the_control_and_every_other_arm_and_holm_counts_them_all():
    found = summarize(sample.results(), sample.context()).comparisons
    assert [(c.arm, c.against, c.against_control) for c in found] == [
        ("A", "enumerate", True),
        ("C", "enumerate", True),
        ("PM", "enumerate", True),
        ("C", "A", False),
        ("PM", "A", False),
        ("PM", "C", False),
    ]
    least = min(found, key=lambda c: c.p_value)
    assert least.p_value_holm == pytest.approx(min(1.0, 6 * least.p_value))
    for comparison in found:
        assert comparison.arm_only - comparison.against_only == round(
            comparison.difference.value * comparison.n
        )


def test_a_run_that_is_not_finished_compares_only_the_instances_that_both_arms_tried():
    results = [r for r in sample.results() if r.arm != "PM" or r.instance_id < "i"]
    summary = summarize(results, sample.context())
    assert not summary.complete
    pm = summary.arms["PM"].n
    assert 0 < pm < 20
    assert {c.n for c in summary.comparisons if c.arm == "PM"} == {pm}


def test_no_results_give_a_summary_that_claims_nothing():
    summary = summarize([], sample.context())
    assert summary.arms["A"].pass_at_1 == Interval(value=0.0, low=0.0, high=1.0)
    assert summary.arms["A"].bytes_per_solve is None
    assert summary.comparisons == ()
    assert {claim.holds for claim in summary.claims} == {None}
    json.loads(to_json(summary))


def test_an_arm_that_solved_nothing_has_no_cost_per_solve_but_has_its_costs():
    failed = [
        r.model_copy(update={"grade": r.grade.model_copy(update={"resolved": False})})
        for r in sample.results()
    ]
    found = summarize(failed, sample.context()).arms["A"]
    assert found.bytes_per_solve is found.tokens_per_solve is found.test_runs_per_solve is None
    assert found.bytes.talking > 0


def test_a_second_result_of_the_same_instance_and_arm_is_refused():
    with pytest.raises(BadInput, match=r"two results of humanize__mutant-0001 under arm A"):
        summarize([sample.result(1, "A")] * 2, sample.context())


def test_a_result_of_an_unknown_arm_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match=r"'enumerate', which is not in run quickstart: A, C, PM"):
        summarize([sample.result(1, "enumerate")], sample.context(control=False))


def test_predictions_are_what_the_official_harness_reads():
    lines = predictions(sample.results(), arm="PM", model_name="hermes-repair").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 20
    assert [set(row) for row in rows] == [{"instance_id", "model_name_or_path", "model_patch"}] * 20
    assert {row["model_name_or_path"] for row in rows} == {"hermes-repair-PM"}
    assert [row["instance_id"] for row in rows] == sorted(row["instance_id"] for row in rows)


def test_the_files_of_a_run_are_written_whole_and_again_the_same(tmp_path: Path):
    results = sample.results(instances=4)
    summary = summarize(results, sample.context(instances=4))
    for _ in range(2):
        write(tmp_path, summary, results, model_name="hermes-repair")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "summary.json", "results.parquet", "ledger.parquet", "predictions/A.jsonl", "predictions/C.jsonl",
        "predictions/PM.jsonl", "predictions/enumerate.jsonl",
    }  # fmt: skip
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.num_rows == 16
    assert {"instance_id", "arm", "resolved", "patch", "total_seconds", "new_tokens", "store_bytes"} <= set(
        table.column_names
    )
    ledger = pq.read_table(tmp_path / "ledger.parquet")
    assert ledger.num_rows == sum(len(result.ledger) for result in results)
    assert set(LedgerRow.model_fields) < set(ledger.column_names)


def test_a_run_without_results_still_gets_its_files(tmp_path: Path):
    write(tmp_path, summarize([], sample.context()), [], model_name="m")
    assert pq.read_table(tmp_path / "ledger.parquet").num_rows == 0
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 0
    assert (tmp_path / "predictions" / "A.jsonl").read_bytes() == b""
