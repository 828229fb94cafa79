"""The report page and the words it uses."""

from __future__ import annotations

import html.parser
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.act.v1 import act_pb2
from hermes_runtime.evaluate.act_record import ActRecord, act_record
from hermes_runtime.evaluate.report import diff_lines, excerpt, render, write_report
from hermes_runtime.evaluate.results import Result
from hermes_runtime.evaluate.shown import duration, percent, points, shown, size
from hermes_runtime.evaluate.summary import Comparison, summarize
from hermes_runtime.evaluate.verdict import headline, lede, sealed_sentence, verdict, verdicts
from tests.unit import sample_run as sample

VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(results: list[Result] | None = None, **more: object) -> str:
    results = sample.results() if results is None else results
    context = sample.context(**more)  # type: ignore[arg-type]  # passed through
    return render(
        summarize(results, context),
        results,
        context,
        acts={result.stream: sample.acts(result) for result in results},
        gold=sample.gold(),
    )


def comparison(arm: str = "PM", against: str = "enumerate", *, wins: int = 0, losses: int = 0, ties: int = 0):
    outcomes = [(True, False)] * wins + [(False, True)] * losses + [(True, True)] * ties
    results = []
    for number, solved in enumerate(outcomes):
        for name, resolved in zip((arm, against), solved, strict=True):
            made = sample.result(number, name)
            results.append(
                made.model_copy(update={"grade": made.grade.model_copy(update={"resolved": resolved})})
            )
    context = sample.context(instances=len(outcomes), arms=(arm,))
    found: Comparison = summarize(results, context).comparisons[0]
    return found


def test_the_page_is_well_formed_with_unique_ids_and_links_that_lead_somewhere():
    found = Page(page())
    assert len(found.ids) == len(set(found.ids))
    links = [value for tag, name, value in found.attributes if tag == "a" and name == "href"]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(found.ids)


def test_the_page_needs_no_network_and_runs_no_script():
    text = page()
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(found.tags)
    assert not [name for _, name, _ in found.attributes if name == "src" or name.startswith("on")]
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_page_of_twenty_instances_and_four_arms_with_full_logs_stays_under_five_megabytes():
    results = sample.results(log_bytes=65_536, diff_lines=400)
    assert len(page(results).encode()) < 5_000_000


def test_hostile_logs_do_not_make_the_page_larger():
    results = [
        r.model_copy(
            update={"grade": r.grade.model_copy(update={"log": "\"'<&>" * 13_000}), "patch": "+'\"<&" * 9000}
        )
        for r in sample.results()
    ]
    assert len(page(results).encode()) < 5_000_000


def test_untrusted_text_is_escaped_wherever_it_appears():
    evil = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    results = [
        r.model_copy(
            update={
                "patch": f"--- a/{evil}\n+++ b/{evil}\n@@ -1 +1 @@\n-{evil}\n+{evil}\n",
                "failure": evil,
                "bug_kind": evil,
                "repo": evil,
                "grade": r.grade.model_copy(
                    update={"log": evil, "resolved": False, "fail_to_pass": {evil: False}}
                ),
            }
        )
        for r in sample.results(instances=2)
    ]
    act = ActRecord(
        step=1, round=1, sender=evil, receiver="coder", kind=evil, content=evil, anchored=True, alias=evil,
        wire_bytes=1, payload_bytes=1, summary=evil, points=(evil,), body=evil,
    )  # fmt: skip
    context = sample.context(instances=2)
    text = render(
        summarize(results, context), results, context, acts={r.stream: [act] for r in results}, gold={}
    )
    found = Page(text)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert "".join(found.text).count("alert(1)") > 20


def test_every_arm_instance_and_the_control_are_on_the_page():
    text = page()
    for number in range(20):
        assert f'id="instance-{sample.instance_id(number)}"' in text
    for arm in ("A", "C", "PM", "enumerate"):
        assert f"<h2>{arm}</h2>" in text
    for name in ("solved", "differences", "tokens", "bytes", "classes", "time"):
        assert f'<section class="figure" id="{name}"' in text


def test_the_same_run_gives_the_same_page():
    assert page() == page(sample.results()[::-1])


def test_a_large_run_shows_the_instances_where_arms_disagree_and_lists_all():
    results = sample.results(instances=150, arms=("C", "PM"))
    text = page(results, instances=150, arms=("C", "PM"), control=False)
    assert len(text.encode()) < 5_000_000
    assert text.count('<details class="instance">') == 60
    assert text.count('<th scope="row"><a href="#instance-') == 60
    by_instance: dict[str, set[bool]] = {}
    for result in results:
        by_instance.setdefault(result.instance_id, set()).add(result.grade.resolved)
    disagreeing = [name for name, solved in by_instance.items() if len(solved) == 2]
    assert 0 < len(disagreeing) < 60
    assert all(f'id="instance-{name}"' in text for name in disagreeing)


@pytest.mark.parametrize(
    "results",
    [
        pytest.param([], id="no results"),
        pytest.param([sample.result(0, "A")], id="one result"),
        pytest.param(
            [
                r.model_copy(update={"grade": r.grade.model_copy(update={"resolved": False}), "ledger": ()})
                for r in sample.results(instances=2)
            ],
            id="nothing solved and nothing counted",
        ),
    ],
)
def test_a_run_that_has_hardly_begun_has_a_page(results):
    text = page(results)
    Page(text)
    assert "This run is not finished" in text


def test_a_run_without_events_or_gold_patches_has_a_page():
    results, context = sample.results(instances=3), sample.context(instances=3)
    Page(render(summarize(results, context), results, context, acts={}, gold={}))


def test_the_page_is_written_whole(tmp_path: Path):
    write_report(tmp_path / "report.html", page())
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_equal_patch_is_named_as_the_gold_patch_whatever_its_context():
    found = sample.result(0, "A").model_copy(
        update={"patch": sample.gold()[sample.instance_id(0)].replace("@@ -40", "@@ -41")}
    )
    assert "A: the gold patch" in page([found])


def test_a_diff_is_coloured_by_line_and_a_removed_dash_line_is_no_header():
    patch = "--- a/x.py\n+++ b/x.py\n@@ -1,3 +1,2 @@\n same\n--- removed\n+new\n"
    assert [line.style for line in diff_lines(patch, 9999)] == ["file", "file", "hunk", "same", "del", "add"]


@given(st.text(), st.integers(min_value=100, max_value=2000))
def test_an_excerpt_keeps_to_its_room_and_a_short_text_whole(text, room):
    cut = excerpt(text, room)
    assert len(cut) <= max(room + 100, 300)
    if len(text) * 8 < room:
        assert cut == shown(text).strip("\n")


@given(st.text())
def test_nothing_hidden_is_left_in_what_is_shown(text):
    found = shown(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", found)
    found.encode("utf-8")


def test_a_bidirectional_override_is_made_visible():
    assert shown("if admin\u202e :") == "if admin⟨U+202E⟩ :"
    assert shown("\x1b[31mred\x1b[0m\r\n") == "red\n"


def test_an_interval_that_includes_zero_is_said_to_and_how_many_would_tell():
    found = verdict(comparison(wins=3, losses=2, ties=15))
    assert found.tone == "unknown"
    assert "includes zero" in found.sentence
    assert "may be chance" in found.sentence
    assert re.search(r"takes about [\d,]+ instances", found.sentence)


def test_a_clear_difference_is_called_one_in_both_directions():
    better, worse = verdict(comparison(wins=14, ties=6)), verdict(comparison(losses=14, ties=6))
    assert (better.tone, better.label) == ("better", "beats control")
    assert (worse.tone, worse.label) == ("worse", "loses to control")
    assert "70 points more than the control: beyond chance" in better.sentence


def test_an_interval_without_zero_that_holm_does_not_confirm_is_no_finding():
    summary = summarize(sample.results(), sample.context())
    found = next(
        c for c in summary.comparisons if c.difference.low > 0 and c.p_value_holm >= 0.05
    )  # the sample has such
    assert verdict(found).tone == "unknown"
    assert "not after Holm" in verdict(found).sentence


def test_equal_outcomes_are_not_sold_as_equality():
    found = verdict(comparison(ties=20))
    assert found.tone == "same"
    assert "leave room for a difference of" in found.sentence


def test_arms_with_the_very_same_numbers_are_named_together():
    found = summarize(sample.results(), sample.context()).comparisons
    said = [v.sentence for v in verdicts([c for c in found if c.against_control])]
    assert len(said) == 2
    assert said[0].startswith("A and C each solved")


def test_the_headline_names_the_best_first_and_the_control_last():
    summary = summarize(sample.results(), sample.context())
    assert (
        headline(summary) == "PM solved 17 of 20 instances, A and C each 16, the control without a model 10."
    )
    assert lede(summary).startswith("With 20 instances, no arm can be told from the control")
    assert headline(summarize([], sample.context())) == "Nothing has been tried yet."


def test_without_a_control_the_page_says_what_it_does_not_show():
    results = sample.results(arms=("A", "PM"))
    summary = summarize(results, sample.context(arms=("A", "PM"), control=False))
    assert lede(summary).startswith("This run has no control")


@pytest.mark.parametrize(
    ("hermetic", "said"),
    [
        ({"wall": "seccomp", "counted": True, "attempts": 0}, "no process tried to reach the network"),
        ({"wall": "seccomp", "counted": True, "attempts": 3}, "3 attempts to leave were refused"),
        ({"wall": "seccomp", "counted": False}, "could not be counted"),
        ({}, "Not sealed"),
    ],
)
def test_the_seal_is_claimed_only_as_far_as_its_evidence_goes(hermetic, said):
    context = sample.context()
    assert said in sealed_sentence(
        summarize([], type(context)(run="r", arms=("A",), instances=1, model={}, hermetic=hermetic))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size(812), "812 B"), (size(12_600), "12.3 KiB"), (size(5 << 20), "5.0 MiB"),
        (percent(0.654), "65 %"), (points(0.05), "+5"), (points(-0.154), "−15"), (points(0.0), "0"),
        (points(-0.004), "−0.4"),
        (duration(0.42), "0.42 s"), (duration(200), "3 min 20 s"), (duration(7500), "2 h 5 min"),
    ],
)  # fmt: skip
def test_values_are_written_for_people(text, expected):
    assert text == expected


def header(**fields: object) -> act_pb2.Act:
    return act_pb2.Act(
        kind=act_pb2.ACT_KIND_PROPOSE, sender=act_pb2.ROLE_CODER, receiver=act_pb2.ROLE_TESTER,
        header=act_pb2.Header(round=2), **fields,  # type: ignore[arg-type]  # one of the payloads
    )  # fmt: skip


def test_an_act_becomes_a_record_that_tells_what_it_says():
    content = act_pb2.Content(
        outcomes=act_pb2.Outcomes(
            outcomes=[
                act_pb2.Outcome(candidate_id="r2c1", verdict=act_pb2.VERDICT_FAILED, failed_test="t.py::a"),
                act_pb2.Outcome(candidate_id="r2c2", verdict=act_pb2.VERDICT_PASSED, patch="+x"),
                act_pb2.Outcome(candidate_id="r2c3", verdict=act_pb2.VERDICT_SKIPPED),
            ]
        )
    )
    data = content.SerializeToString()
    found = act_record(
        header(inline=act_pb2.InlineBytes(data=data)), content, step=7, wire_bytes=99, parent=6
    )
    assert (found.sender, found.receiver, found.kind, found.content) == (
        "coder",
        "tester",
        "PROPOSE",
        "outcomes",
    )
    assert (found.step, found.round, found.parent, found.payload_bytes) == (7, 2, 6, len(data))
    assert found.summary == "2 tried: 1 failed, 1 passed"
    assert found.points == ("r2c1  failed: t.py::a", "r2c2  passed", "r2c3  skipped")
    assert found.body == "+x"
    assert not found.anchored


def test_an_anchor_whose_blob_is_gone_shows_its_head():
    act = header(anchor=act_pb2.Anchor(alias="@p3", head="AssertionError: 3 == 4"))
    act.anchor.digest.size_bytes = 5000
    found = act_record(act, None, step=1, wire_bytes=90)
    assert (found.anchored, found.alias, found.summary) == (True, "@p3", "AssertionError: 3 == 4")
    assert found.payload_bytes == 5000


@pytest.mark.parametrize("field", ["task", "log", "spectrum", "places", "candidates", "outcomes", "refusal"])
def test_every_content_even_an_empty_one_has_a_line(field):
    content = act_pb2.Content()
    getattr(content, field).SetInParent()
    found = act_record(header(inline=act_pb2.InlineBytes()), content, step=1, wire_bytes=1)
    assert found.content == field
    assert found.summary


def test_many_points_are_cut_with_their_number():
    places = [act_pb2.Place(file_path="x.py", line=n, ochiai=0.5) for n in range(1, 41)]
    content = act_pb2.Content(places=act_pb2.Places(places=places))
    found = act_record(header(inline=act_pb2.InlineBytes()), content, step=1, wire_bytes=1)
    assert found.summary == "40 places; first x.py:1"
    assert len(found.points) == 13
    assert found.points[-1] == "and 28 more"
