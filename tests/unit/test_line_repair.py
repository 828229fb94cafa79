"""The line_repair dialect: windows, prompts, answers, evidence."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime.agents.prompts.line_repair import (
    LINES_MAX,
    MAX_EVIDENCE_CHARS,
    SPECIAL_TOKENS,
    Answer,
    Malformed,
    anchored_evidence,
    escape,
    head_of,
    inline_evidence,
    parse_answer,
    place_token,
    render,
    render_answer,
    restore,
    unescape,
    window_for,
)
from hermes_runtime.errors import BadInput

SOURCE = textwrap.dedent('''\
    """Module."""
    import a

    class C:
        @property
        def f(self):
            """Doc."""
            # why

            if self.x:
                return 1
            return 2

    TOP = a.b
    ''')

LOG = textwrap.dedent("""\
    ============ FAILURES ============
    ____________ TestF.test_f ____________

        def test_f():
    >       assert f(1) == 2
    E       assert 3 == 2
    E        +  where 3 = f(1)

    tests/test_f.py:7: AssertionError
    ============ short test summary info ============
    FAILED tests/test_f.py::TestF::test_f - assert 3 == 2
    1 failed in 0.01s
    """)


def test_a_window_is_the_innermost_function_without_margin_docstring_comments_and_blanks():
    window = window_for(SOURCE, "m.py", 11)
    assert window is not None
    assert window.line_numbers == (5, 6, 10, 11, 12)
    assert window.lines == ("@property", "def f(self):", "    if self.x:", "        return 1", "    return 2")
    assert window.margin == "    "
    assert window.place_of(12) == 4
    assert window.place_of(7) is None


def test_outside_functions_a_window_is_the_modules_top():
    window = window_for(SOURCE, "m.py", 14)
    assert window is not None
    assert window.lines == ("import a", "class C:", "TOP = a.b")


def test_no_window_is_given_for_what_cannot_be_shown():
    assert window_for("def f(:", "m.py", 1) is None
    assert window_for(SOURCE, "m.py", 99) is None
    assert window_for("# only\n", "m.py", 1) is None


def test_a_long_function_is_cut_to_the_stretch_that_holds_the_line_and_most_of_the_focus():
    source = "def f(a):\n" + "".join(f"    a = {n}\n" for n in range(2, 100))
    window = window_for(source, "m.py", 50, focus=range(20, 45))
    assert window is not None
    assert len(window.lines) == LINES_MAX
    assert {50, *range(20, 45)} <= set(window.line_numbers)


def test_the_prompt_has_this_form():
    window = window_for("def f(a):\n    return a + 1\n", "m.py", 2)
    assert window is not None
    assert render(window, "E assert 1") == "<err>E assert 1<fn><L0>def f(a):<L1>    return a + 1<fix>"


def test_a_line_as_shown_goes_back_to_the_files_line():
    window = window_for(SOURCE, "m.py", 11)
    assert window is not None
    lines = SOURCE.split("\n")
    for place, number in enumerate(window.line_numbers):
        assert restore(window, place, window.lines[place]) == lines[number - 1]
    with pytest.raises(BadInput, match="place 5"):
        restore(window, 5, "x")


pieces = st.sampled_from([*SPECIAL_TOKENS, "<", "<\u2060", "\u2060", "fix>", "a < b", " "])
texts = st.lists(st.one_of(pieces, st.text(max_size=4)), max_size=6).map("".join)


@given(texts)
def test_unescape_undoes_escape_and_no_special_token_is_left(text):
    assert unescape(escape(text)) == text
    assert not any(token in escape(text) for token in SPECIAL_TOKENS)


@given(st.integers(0, LINES_MAX - 1), texts)
def test_an_answer_that_was_rendered_reads_back(place, line):
    line = "".join(line.split("\n")).replace("\r", "").rstrip()
    answer = Answer(place=place, line=line)
    assert parse_answer(render_answer(answer)) == answer


@pytest.mark.parametrize(
    "text",
    ["return 1<end>", "<L40>x<end>", "<L1>a<L2>b<end>", "<L1>a\nb<end>", "", "<L1>a<fix>"],
)
def test_what_is_no_answer_is_malformed(text):
    assert isinstance(parse_answer(text), Malformed)


def test_a_missing_end_is_forgiven_since_decoders_stop_at_it():
    assert parse_answer("<L2>    return 1") == Answer(place=2, line="    return 1")


def test_places_outside_the_window_size_have_no_token():
    assert place_token(39) == "<L39>"
    with pytest.raises(BadInput):
        place_token(40)


def test_inline_evidence_keeps_what_tells():
    assert inline_evidence(LOG).split("\n") == [
        "TestF.test_f",
        "> assert f(1) == 2",
        "E assert 3 == 2",
        "E +  where 3 = f(1)",
        "tests/test_f.py:7: AssertionError",
        "FAILED tests/test_f.py::TestF::test_f - assert 3 == 2",
    ]
    assert inline_evidence("1 passed") == ""


@given(st.text(alphabet="E> a\n_:.py1", max_size=3000))
def test_inline_evidence_never_exceeds_its_budget(log):
    assert len(inline_evidence(log)) <= MAX_EVIDENCE_CHARS


def test_anchored_evidence_is_the_alias_and_one_short_line():
    assert anchored_evidence("@p1", head_of(LOG)) == "@p1 assert 3 == 2"
    assert len(anchored_evidence("@p1", "x" * 500)) == 4 + 120
    assert anchored_evidence("@p1", "") == "@p1"
