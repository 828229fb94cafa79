from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime.agents.patch import (
    apply_patch,
    changes,
    lines_touched,
    make_patch,
    parse,
    render,
    reverse,
    split_lines,
)
from hermes_runtime.errors import BadInput

LINES = st.lists(
    st.sampled_from(["a", "b", "c", "", " x", "-y", "+z", "\\ n", "@@ -1 +1 @@", "d\r", "e\x0c"])
)
TEXTS = st.builds(lambda lines, end: "\n".join(lines) + end, LINES, st.sampled_from(["", "\n"]))


@given(before=st.none() | TEXTS, after=st.none() | TEXTS)
def test_applying_the_diff_of_two_texts_makes_the_second_of_the_first(before, after):
    patch = make_patch("src/a b.py", before, after)
    if before == after:
        assert patch == ""
        return
    files = {} if before is None else {"src/a b.py": before}
    done = changes(files, patch)
    if after is None:
        assert done.deleted == {"src/a b.py"}
    else:
        assert done.written == {"src/a b.py": after}
        assert not done.deleted


@given(before=st.none() | TEXTS, after=st.none() | TEXTS)
def test_parsing_a_rendered_patch_gives_it_back(before, after):
    patch = make_patch("p.py", before, after)
    assert render(parse(patch)) == patch


@given(before=st.none() | TEXTS, after=st.none() | TEXTS)
def test_the_reverse_of_a_patch_undoes_it(before, after):
    patch = make_patch("p.py", before, after)
    done = changes({} if after is None else {"p.py": after}, reverse(patch))
    if before != after:
        assert done.written.get("p.py") == before
        assert ("p.py" in done.deleted) == (before is None)


@given(text=TEXTS)
def test_lines_are_split_at_newlines_only_and_join_to_the_same(text):
    assert "".join(split_lines(text)) == text


def test_a_patch_has_the_headers_of_git():
    assert make_patch("src/m.py", "x = 1\ny = 2", "x = 1\ny = 3") == (
        "diff --git a/src/m.py b/src/m.py\n"
        "--- a/src/m.py\n"
        "+++ b/src/m.py\n"
        "@@ -1,2 +1,2 @@\n"
        " x = 1\n"
        "-y = 2\n"
        "\\ No newline at end of file\n"
        "+y = 3\n"
        "\\ No newline at end of file\n"
    )


def test_several_files_are_patched_at_once():
    patch = make_patch("a.py", "1\n", "2\n") + make_patch("b.py", None, "new\n")
    assert apply_patch({"a.py": "1\n"}, patch) == {"a.py": "2\n", "b.py": "new\n"}


def test_a_patch_on_top_of_a_patch_of_the_same_file_sees_its_result():
    patch = make_patch("a.py", "1\n", "2\n") + make_patch("a.py", "2\n", "3\n")
    assert apply_patch({"a.py": "1\n"}, patch) == {"a.py": "3\n"}


def test_a_reader_may_stand_for_the_files():
    assert apply_patch(lambda path: "1\n" if path == "a" else None, make_patch("a", "1\n", "2\n")) == {
        "a": "2\n"
    }


def test_text_around_the_diffs_is_passed_over():
    patch = "Fix it.\n\n" + make_patch("a.py", "1\n", "2\n") + "-- \n2.39\n"
    assert apply_patch({"a.py": "1\n"}, patch) == {"a.py": "2\n"}


def test_a_plain_diff_without_git_headers_is_taken():
    assert apply_patch({"a.py": "1\n"}, "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-1\n+2\n") == {"a.py": "2\n"}


def test_context_that_does_not_match_is_refused_with_hunk_and_line():
    patch = make_patch("a.py", "1\n2\n3\n", "1\n2\n4\n")
    with pytest.raises(BadInput, match=r"a\.py, hunk 1 \(line 4 of the patch\).*line 2 should be '2\\n'"):
        apply_patch({"a.py": "1\nother\n3\n"}, patch)


def test_a_hunk_that_fits_elsewhere_only_is_refused():
    patch = make_patch("a.py", "1\n", "2\n")
    with pytest.raises(BadInput, match="line 1 should be"):
        apply_patch({"a.py": "0\n1\n"}, patch)


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../../x", ".git/hooks/pre-commit", "a/.GIT/x", "a//b", "./a", 'a"b', "a\nb"],
)
def test_a_path_that_leaves_the_tree_is_refused(path):
    with pytest.raises(BadInput):
        make_patch(path, None, "x\n")
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    with pytest.raises(BadInput):
        changes({}, head + "@@ -0,0 +1 @@\n+x\n")


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        pytest.param("just words\n", "no patch", id="no diff at all"),
        pytest.param("--- a/x\n+++ b/x\n", "no hunks", id="no hunks"),
        pytest.param("--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-1\n", "ends within", id="cut short"),
        pytest.param("--- a/x\n+++ b/x\n@@ bad @@\n", "head should read", id="bad head"),
        pytest.param("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-1\n*2\n", "should start with", id="bad mark"),
        pytest.param("--- a/x\n+++ b/y\n@@ -1 +1 @@\n-1\n+2\n", "do not agree", id="rename"),
        pytest.param("diff --git a/x b/x\nold mode 100644\nnew mode 100755\n", "modes", id="mode"),
        pytest.param("diff --git a/x b/x\nBinary files a/x and b/x differ\n", "binary", id="binary"),
        pytest.param("@@ -1 +1 @@\n-1\n+2\n", "without a file", id="no file"),
        pytest.param("--- a/y\n+++ b/y\n@@ -1 +1 @@\n-1\n+2\n", "no such file", id="not there"),
        pytest.param("--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+2\n", "there already", id="there already"),
        pytest.param("--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n", "more lines", id="deletes too little"),
        pytest.param("--- a/x\n+++ b/x\n@@ -5 +5 @@\n-1\n+2\n", "has ended", id="past the end"),
        pytest.param(
            "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-1\n+2\n\\ No newline at end of file\n",
            "after a last line",
            id="no end",
        ),
    ],
)
def test_what_is_no_fitting_patch_is_refused_with_the_reason(patch, why):
    with pytest.raises(BadInput, match=why):
        changes({"x": "1\nmore\n"}, patch)


@given(text=st.text(alphabet="ab-+ @\\\n/x,1", max_size=60))
def test_no_text_makes_the_parser_fail_otherwise(text):
    with contextlib.suppress(BadInput):
        changes({"x": "1\n"}, "--- a/x\n+++ b/x\n@@ -1 +1 @@\n" + text)


def test_an_edit_may_not_delete_a_file():
    with pytest.raises(BadInput, match="deletes a"):
        apply_patch({"a.py": "1\n"}, make_patch("a.py", "1\n", None))


def test_lines_touched_counts_patches_by_line_of_the_old_file():
    before = "1\n2\n3\n4\n"
    first, second = make_patch("a.py", before, "1\nx\n3\n4\n"), make_patch("a.py", before, "1\ny\nz\n4\n")
    assert lines_touched([first, second]) == {("a.py", 2): 2, ("a.py", 3): 1}


def test_lines_touched_of_an_insertion_is_nothing():
    assert lines_touched([make_patch("a.py", "1\n", "1\n2\n")]) == {}
