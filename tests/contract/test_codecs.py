"""Every codec: decoding undoes encoding, and bad bytes are Malformed and nothing else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import build, codec
from hermes_runtime.errors import Malformed
from tests.unit.sample_acts import a_log, acts, an_act

ENCODINGS = {"protobuf": agent_pb2.ENCODING_PROTOBUF, "json": agent_pb2.ENCODING_JSON}


@pytest.fixture(params=list(ENCODINGS), scope="module")
def written(request):
    return codec.codec(ENCODINGS[request.param])


@given(act=acts)
def test_decoding_undoes_encoding(written, act):
    assert written.decode(written.encode(act)) == act


@given(act=acts)
def test_an_act_is_written_the_same_each_time(written, act):
    copy = pb.Act.FromString(act.SerializeToString())
    assert written.encode(act) == written.encode(copy)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_act_or_malformed(written, data):
    with contextlib.suppress(Malformed):
        build.check(written.decode(data))


@given(act=acts, at=st.integers(0, 10_000), change=st.integers(1, 255), cut=st.booleans())
def test_damaged_bytes_are_an_act_or_malformed(written, act, at, change, cut):
    data = bytearray(written.encode(act))
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= change
    with contextlib.suppress(Malformed):
        build.check(written.decode(bytes(data)))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "NaN", "-1", "1e999", "@l0", "mcp://sha256/" + "0" * 64, "00" * 16]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "files",
                    "lines",
                    "filePath",
                    "places",
                    "score",
                    "log",
                    "text",
                    "spectrum",
                    "verdict",
                    "outcomes",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(
    act=acts,
    key=st.sampled_from(["schema", "trace", "from", "kind", "about", "message", "content", "anchor"]),
    value=values,
)
def test_a_json_act_with_one_value_replaced_is_an_act_or_malformed(act, key, value):
    said = json.loads(codec.codec(agent_pb2.ENCODING_JSON).encode(act))
    said[key] = value
    with contextlib.suppress(Malformed):
        build.check(codec.codec(agent_pb2.ENCODING_JSON).decode(json.dumps(said).encode()))


@given(content=st.dictionaries(st.sampled_from(["spectrum", "places", "log", "outcomes", "task"]), values))
def test_odd_contents_in_json_are_an_act_or_malformed(content):
    said = json.loads(codec.codec(agent_pb2.ENCODING_JSON).encode(an_act(a_log())))
    said["content"] = content
    with contextlib.suppress(Malformed):
        build.check(codec.codec(agent_pb2.ENCODING_JSON).decode(json.dumps(said).encode()))


def test_deeply_nested_json_is_malformed():
    for data in (b"[" * 100_000, b'{"content":' * 50_000, b'{"about":' + b"[" * 900 + b"]" * 900 + b"}"):
        with pytest.raises(Malformed):
            codec.codec(agent_pb2.ENCODING_JSON).decode(data)


@pytest.mark.parametrize("uri", ["mcp://sha256/12", "mcp://sha256/" + "A" * 64, "file:///etc/passwd", ""])
def test_a_bad_address_in_json_is_malformed(uri):
    said = json.loads(codec.codec(agent_pb2.ENCODING_JSON).encode(an_act(a_log())))
    del said["content"]
    said["anchor"] = {"uri": uri, "sizeBytes": 5, "alias": "@l0"}
    with pytest.raises(Malformed, match="blob badly"):
        codec.codec(agent_pb2.ENCODING_JSON).decode(json.dumps(said).encode())


def test_an_act_that_is_none_is_not_encoded(written):
    with pytest.raises(Malformed, match="no payload"):
        written.encode(an_act())


def test_json_says_in_plain_words_who_means_what_to_whom():
    act = an_act(pb.Content(places=pb.Places(places=[pb.Place(file_path="a.py", line=3, ochiai=0.5)])))
    act.header.round = 2
    said = json.loads(codec.codec(agent_pb2.ENCODING_JSON).encode(act))
    assert said == {
        "schema": 1,
        "trace": act.trace_id.hex(),
        "span": act.span_id.hex(),
        "from": "driver",
        "to": "planner",
        "kind": "INFORM",
        "about": {"repo": "boltons", "taskType": "rank_places", "round": 2},
        "message": "I suspect the defect is at one of the following places, most suspicious first.",
        "content": {"places": {"places": [{"filePath": "a.py", "line": 3, "ochiai": 0.5}]}},
    }


def test_an_unknown_encoding_is_malformed():
    with pytest.raises(Malformed, match="ENCODING_PROTOBUF"):
        codec.decode(agent_pb2.Envelope(encoding=agent_pb2.ENCODING_UNSPECIFIED, act=b""))


def test_a_delivery_without_acts_is_malformed():
    with pytest.raises(Malformed, match="without acts"):
        codec.decode_all([])


@given(said=st.lists(acts, min_size=1, max_size=4), encoding=st.sampled_from(list(ENCODINGS.values())))
def test_envelopes_carry_acts_in_order(said, encoding):
    assert codec.decode_all(codec.encode_all(said, encoding)) == said
