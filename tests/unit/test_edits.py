"""The set of edits: each parses, each differs, and all but the named kinds lead back."""

from __future__ import annotations

import ast
import bisect
import fractions
import inspect
import random
import shlex
import textwrap
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_runtime.agents.edits import (
    Edit,
    EditKind,
    EditSpace,
    apply_edit,
    ast_key,
    edits_of,
    is_invertible,
)
from hermes_runtime.errors import BadInput

CORPUS = [bisect, fractions, shlex, textwrap]
MAY_BE_ONE_WAY = {EditKind.VARIABLE, EditKind.ATTRIBUTE, EditKind.DROPPED_TERM}


def new_lines(source: str, kind: EditKind, line: int) -> set[str]:
    return {e.new_line.strip() for e in edits_of(source, {line}) if e.kind is kind}


@pytest.mark.parametrize(
    ("source", "line", "kind", "expected"),
    [
        pytest.param(
            "a = b < c", 1, EditKind.COMPARISON, {"a = b <= c", "a = b > c", "a = b >= c"}, id="order"
        ),
        pytest.param(
            "a = b is not c", 1, EditKind.COMPARISON, {"a = b is c"}, id="two words are one operator"
        ),
        pytest.param("a = b not in c", 1, EditKind.COMPARISON, {"a = b in c"}, id="membership"),
        pytest.param("a += b", 1, EditKind.ARITHMETIC, {"a -= b", "a *= b"}, id="in place"),
        pytest.param("a = 'x' + b", 1, EditKind.ARITHMETIC, set(), id="text is only joined"),
        pytest.param("a = b and c", 1, EditKind.BOOLEAN, {"a = b or c"}, id="and"),
        pytest.param("a = True", 1, EditKind.BOOLEAN, {"a = False"}, id="truth"),
        pytest.param(
            "if not (a or b): pass",
            1,
            EditKind.NEGATION,
            {
                "if (a or b): pass",
                "if not (not a or b): pass",
                "if not (a or not b): pass",
                "if not not (a or b): pass",
            },
            id="a condition is negated once, with its parentheses",
        ),
        pytest.param(
            "a = f(-1)", 1, EditKind.CONSTANT, {"a = f(0)", "a = f(-2)", "a = f(1)"}, id="a signed number"
        ),
        pytest.param(
            "a = 0x10", 1, EditKind.CONSTANT, {"a = 0x11", "a = 0xf", "a = -0x10"}, id="its own base"
        ),
        pytest.param("a = 0.5", 1, EditKind.CONSTANT, {"a = 1.5"}, id="a float"),
        pytest.param("a = max(b, 3)", 1, EditKind.CALL, {"a = min(b, 3)"}, id="a sibling"),
        pytest.param("f(a, b, *c)", 1, EditKind.ARGUMENT_ORDER, {"f(b, a, *c)"}, id="neighbours"),
        pytest.param(
            "a = b[c:]", 1, EditKind.SLICE_BOUND, {"a = b[:c]", "a = b[c:1]", "a = b[c:-1]"}, id="slice"
        ),
        pytest.param("for a in b:\n    break", 2, EditKind.LOOP_CONTROL, {"continue"}, id="loop"),
        pytest.param("a = b[c]", 1, EditKind.ADDED_TERM, {"a = b[c + 1]", "a = b[c - 1]"}, id="off by one"),
        pytest.param("a = b[c - 1]", 1, EditKind.DROPPED_TERM, {"a = b[c]", "a = b[1]"}, id="and back"),
        pytest.param("a = f(b, key=c)", 1, EditKind.DROPPED_TERM, {"a = f(b)"}, id="a keyword argument"),
        pytest.param(
            "def f(a, b):\n    return a", 2, EditKind.VARIABLE, {"return b"}, id="a name of the function"
        ),
        pytest.param(
            "def f(a):\n    a.x = 1\n    return a.y(), a.z, a.w",
            3,
            EditKind.ATTRIBUTE,
            {"return a.y(), a.w, a.w", "return a.y(), a.z, a.z"},
            id="what is called is never exchanged",
        ),
    ],
)
def test_a_line_has_exactly_these_edits_of_a_kind(source, line, kind, expected):
    assert new_lines(source, kind, line) == expected


@pytest.mark.parametrize(
    "source",
    [
        pytest.param('def f():\n    """1 < 2 and not 3."""\n', id="docstring"),
        pytest.param("# a < b\nx\n", id="comment"),
        pytest.param("from a import b, c\n", id="import"),
        pytest.param("a: b[1] \n", id="annotation"),
        pytest.param("@a(1, 2)\ndef f(): pass\n", id="decorator"),
        pytest.param("f'{a + 1}'\n", id="f-string"),
        pytest.param("def f(:\n", id="what does not parse"),
    ],
)
def test_nothing_is_edited_in(source):
    assert edits_of(source) == []


@pytest.mark.parametrize("module", CORPUS, ids=lambda m: m.__name__)
def test_every_edit_of_real_modules_parses_differs_and_leads_back_unless_its_kind_may_not(module: ModuleType):
    source = inspect.getsource(module)
    original = ast_key(source)
    edits = edits_of(source)
    sample = random.Random(module.__name__).sample(edits, 25)
    keys = {}
    for edit in sample:
        edited = apply_edit(source, edit)
        keys[edit] = ast_key(edited)
        assert keys[edit] != original, edit
        if edit.kind not in MAY_BE_ONE_WAY:
            assert is_invertible(source, edit), edit
    assert len({(e.line, e.new_line) for e in edits}) == len(edits)


def test_is_invertible_tells_a_name_that_is_gone_from_one_that_is_left():
    gone = "def f(a):\n    b = 1\n    return g(b, a, c)\n"
    edits = edits_of(gone, {3})
    by_line = {e.new_line.strip(): e for e in edits}
    assert is_invertible(gone, by_line["return g(a, a, c)"])  # b is still assigned
    assert not is_invertible(gone, by_line["return g(b, a, a)"])  # c was only here


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_the_way_back_is_an_edit_of_the_edited_line(data):
    source = inspect.getsource(bisect)
    lines = {number for number, line in enumerate(source.split("\n"), start=1) if line.strip()}
    edits = edits_of(source, {data.draw(st.sampled_from(sorted(lines)))})
    if not edits:
        return
    edit = data.draw(st.sampled_from(edits))
    if edit.kind in MAY_BE_ONE_WAY and not is_invertible(source, edit):
        return
    edited = apply_edit(source, edit)
    back = {ast_key(apply_edit(edited, e)) for e in edits_of(edited, {edit.line})}
    assert ast_key(source) in back


def test_edits_come_in_the_same_order_each_time_and_lines_only_select():
    source = inspect.getsource(shlex)
    every = edits_of(source)
    assert every == edits_of(source)
    assert [e.line for e in every] == sorted(e.line for e in every)
    assert edits_of(source, {every[0].line}) == [e for e in every if e.line == every[0].line]


def test_a_space_checks_on_demand_what_edits_of_checks_at_once():
    source = inspect.getsource(bisect)
    space = EditSpace(source)
    checked = [space.checked(place) for place in range(len(space))]
    assert [e for e in checked if e is not None] == edits_of(source)
    for place, edit in enumerate(checked):
        if edit is not None:
            assert (space.line(place), space.kind(place)) == (edit.line, edit.kind)


def test_columns_count_characters_where_a_line_holds_others_than_ascii():
    source = "def f(ä, b):\n    return 'ü', ä < b\n"
    assert "    return 'ü', ä <= b" in {e.new_line for e in edits_of(source, {2})}


def test_line_ends_survive_an_edit():
    source = "a = 1\r\nb = 2\r\n"
    edit = next(e for e in edits_of(source, {1}) if e.new_line == "a = 2")
    assert apply_edit(source, edit) == "a = 2\r\nb = 2\r\n"


def test_applying_to_another_source_is_refused():
    edit = Edit(kind=EditKind.CONSTANT, line=1, old_line="a = 1", new_line="a = 2")
    with pytest.raises(BadInput, match="make the edit again"):
        apply_edit("b = 1", edit)
    with pytest.raises(BadInput, match=r"line 1 is|not in the source"):
        apply_edit("", edit)


def test_programs_are_equal_whatever_their_layout_comments_and_docstrings():
    one = 'def f(a):\n    """One."""\n    return (a\n            + 1)  # why\n'
    other = "def f(a):\n    'Other.'\n    return a + 1\n"
    assert ast_key(one) == ast_key(other)
    assert ast_key(other) != ast_key(other.replace("1", "2"))


def test_an_edited_module_is_still_one_where_heads_bodies_and_branches_share_lines():
    source = textwrap.dedent("""\
        def f(a, b):
            if a < b: return a
            elif a == b and not b:
                return b
            else: a = 1; b = 2
            try: a = b[1:]
            except KeyError as e: raise ValueError(a, b) from e
            finally: b = a
            with open(a, b) as c, open(b, 1) as d: pass
            while (a and
                   b):
                a -= 1
            match a:
                case 1 if b < 2: return 3
            return [x for x in a if x > b]
        """)
    edits = edits_of(source)
    assert {e.line for e in edits} >= {2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15}
    for edit in edits:
        ast.parse(apply_edit(source, edit))
