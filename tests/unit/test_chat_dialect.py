"""Search/replace edits: what can be used is used, what cannot is answered with what to mend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.agents.conversation import Evidence
from hermes_runtime.agents.prompts import chat

SOURCES = {
    "pkg/m.py": "def f(x):\n    y = x + 1\n    return y\n\n\ndef g(x):\n    y = x + 1\n    return -y\n"
}


def edit(old, new, path="pkg/m.py"):
    return f"Here it is.\n\n{path}\n<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n"


def test_an_edit_changes_what_it_names_and_nothing_else():
    after = chat.parse_edits(edit("    return -y", "    return y * 2"), SOURCES)
    assert after == {"pkg/m.py": SOURCES["pkg/m.py"].replace("return -y", "return y * 2")}


def test_several_edits_add_up():
    answer = edit("def f(x):", "def f(x, z=0):") + edit("    return y", "    return y + z")
    after = chat.parse_edits(answer, SOURCES)
    assert isinstance(after, dict)
    assert after["pkg/m.py"].startswith("def f(x, z=0):\n    y = x + 1\n    return y + z\n")


def test_an_edit_in_a_code_fence_is_read_as_well():
    answer = (
        "pkg/m.py\n```python\n<<<<<<< SEARCH\n    return -y\n=======\n    return y\n>>>>>>> REPLACE\n```\n"
    )
    assert isinstance(chat.parse_edits(answer, SOURCES), dict)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param("I would change the plus.", "no edit found", id="prose"),
        pytest.param(edit("    return z", "    return y"), "is not in pkg/m.py", id="text that is not there"),
        pytest.param(
            edit("    y = x + 1", "    y = x"), "is 2 times in pkg/m.py", id="text that is there twice"
        ),
        pytest.param(edit("    return -y", "    return ("), "would no longer parse", id="a syntax error"),
        pytest.param(edit("    return -y", "    return -y"), "changes nothing", id="no change"),
        pytest.param(
            edit("x", "y", path="tests/test_m.py"), "may not be edited", id="a file it may not touch"
        ),
        pytest.param(edit("return -y", "return y"), "is not in pkg/m.py", id="a part of a line"),
    ],
)
def test_an_edit_that_cannot_be_used_says_what_to_mend(answer, message):
    bad = chat.parse_edits(answer, SOURCES)
    assert isinstance(bad, chat.BadEdit)
    assert message in bad.message


@given(st.text(max_size=400))
def test_no_answer_whatever_raises(answer):
    chat.parse_edits(answer, SOURCES)
    chat.parse_edits(edit(answer, answer), SOURCES)
    chat.parse_order(answer, 5)


@pytest.mark.parametrize(
    ("answer", "order"), [("3, 1, 2", [2, 0, 1]), ("2 then 2 then 9", [1]), ("none", []), ("0", [])]
)
def test_an_order_is_read_from_what_the_model_says(answer, order):
    assert chat.parse_order(answer, 3) == order


def test_a_refusal_and_a_tried_patch_reach_the_prompt():
    messages = chat.repair_messages(
        pb.Task(repo="r", problem_statement="it fails", failing_tests=["t::a"]),
        [pb.Place(file_path="pkg/m.py", line=2)],
        SOURCES,
        [Evidence(alias="@l0", head="assert 1 == 2"), Evidence(text="whole log")],
        [pb.Outcome(patch="--- a\n", verdict=pb.VERDICT_FAILED, failed_test="t::a")],
        [pb.Refusal(message="the SEARCH text is not in pkg/m.py", subject="<<<<<<< SEARCH")],
    )
    text = messages[-1].content
    for part in (
        "it fails",
        "@l0: assert 1 == 2",
        "whole log",
        "-> failed t::a",
        "is not in pkg/m.py",
        "y = x + 1",
    ):
        assert part in text
