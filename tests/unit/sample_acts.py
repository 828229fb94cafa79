"""Acts of every kind, drawn by Hypothesis, for the tests of acts."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.acts import build
from hermes_runtime.store.digest import Digest

text = st.text(max_size=40)
numbers = st.floats(allow_nan=False)
small = st.integers(0, 2**32 - 1)
signed = st.integers(-(2**63), 2**63 - 1)
strings = st.lists(text, max_size=3)

tasks = st.builds(
    pb.Task,
    instance_id=text,
    repo=text,
    tree=text,
    problem_statement=text,
    failing_tests=strings,
    passing_tests=strings,
    editable_files=strings,
    python=text,
    test_timeout_seconds=numbers,
    import_roots=strings,
)
spectra = st.builds(
    pb.Spectrum,
    files=st.lists(
        st.builds(
            pb.FileSpectrum,
            file_path=text,
            line_steps=st.lists(small, max_size=5),
            failing=st.lists(small, max_size=5),
            passing=st.lists(small, max_size=5),
        ),
        max_size=3,
    ),
    failing_count=small,
    passing_count=small,
)
place = st.builds(pb.Place, file_path=text, line=small, ochiai=numbers, score=numbers)
candidate = st.builds(pb.Candidate, id=text, patch=text, score=numbers)
outcome = st.builds(
    pb.Outcome,
    candidate_id=text,
    patch=text,
    verdict=st.sampled_from(pb.Verdict.values()),
    failed_test=text,
    fixed_count=small,
)
refusals = st.builds(
    pb.Refusal, reason=st.sampled_from(pb.RefusalReason.values()), message=text, subject=text
)
refusal_contents = st.builds(pb.Content, refusal=refusals)
contents = st.one_of(
    st.builds(pb.Content, task=tasks),
    st.builds(pb.Content, log=st.builds(pb.Log, text=text)),
    st.builds(pb.Content, spectrum=spectra),
    st.builds(pb.Content, places=st.builds(pb.Places, places=st.lists(place, max_size=3))),
    st.builds(pb.Content, candidates=st.builds(pb.Candidates, candidates=st.lists(candidate, max_size=3))),
    st.builds(pb.Content, outcomes=st.builds(pb.Outcomes, outcomes=st.lists(outcome, max_size=3))),
    refusal_contents,
)
headers = st.none() | st.builds(
    pb.Header, repo=text, file_path=text, test_name=text, task_type=text, tool=text, round=small
)
roles = st.sampled_from([pb.ROLE_DRIVER, pb.ROLE_PLANNER, pb.ROLE_CODER, pb.ROLE_TESTER])
speeches = st.sampled_from(
    [pb.ACT_KIND_REQUEST, pb.ACT_KIND_INFORM, pb.ACT_KIND_PROPOSE, pb.ACT_KIND_CONFIRM]
)


def bare(kinds: st.SearchStrategy[Any] = speeches) -> st.SearchStrategy[pb.Act]:
    return st.builds(
        build.bare_act,
        trace=st.binary(min_size=16, max_size=16),
        span=st.binary(min_size=8, max_size=8),
        parent=st.just(b"") | st.binary(min_size=8, max_size=8),
        kind=kinds,
        sender=roles,
        receiver=roles,
        header=headers,
    )


digests = st.builds(Digest, sha256=st.binary(min_size=32, max_size=32), size_bytes=st.integers(0, 2**64 - 1))
heads = st.text(max_size=build.HEAD_CHARACTERS_MAX).filter(lambda head: len(head.splitlines()) <= 1)
anchored = st.builds(
    build.said_by_anchor,
    act=bare(),
    digest=digests,
    alias=st.builds(build.alias, st.sampled_from(list(build.LETTERS)), st.integers(0, 999_999)),
    head=heads,
    predicted_saving_bytes=signed,
    predicted_saving_tokens=signed,
)
acts = st.one_of(
    st.builds(build.said_inline, bare(), contents),
    st.builds(build.said_inline, bare(st.just(pb.ACT_KIND_ERROR)), refusal_contents),
    st.builds(build.said_in_words, bare(), st.text(min_size=1, max_size=60)),
    anchored,
)


def an_act(content: pb.Content | None = None, **changes: Any) -> pb.Act:
    """One ordinary act, fields replaced by `changes`; without content it says nothing."""
    trace = build.trace_id(run="r", instance="i", arm="C", attempt=1)
    act = build.bare_act(
        trace=trace,
        span=build.span_id(trace, 1),
        kind=pb.ACT_KIND_INFORM,
        sender=pb.ROLE_DRIVER,
        receiver=pb.ROLE_PLANNER,
        header=pb.Header(repo="boltons", task_type="rank_places", round=1),
    )
    if content is not None:
        act = build.said_inline(act, content)
    for field, value in changes.items():
        setattr(act, field, value)
    return act


def a_log(text: str = "E assert 1 == 2") -> pb.Content:
    return pb.Content(log=pb.Log(text=text))
