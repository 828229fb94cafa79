"""Unified diffs, made and applied: what `git apply` and `patch -p1` would do, without fuzz.

Decided here: the form of a patch (git's headers), which paths one may touch, and that context and
line numbers must match exactly. Texts are split at "\\n" only, so "\\r" and form feeds are kept. Not
done: renames, copies, modes, binary files; each is refused by name. Pure: no file is opened.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hermes_runtime.errors import BadInput

NO_NEWLINE = "\\ No newline at end of file"
CONTEXT_LINES = 3
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_UNSUPPORTED = (
    "rename ",
    "copy ",
    "similarity ",
    "dissimilarity ",
    "old mode ",
    "new mode ",
    "GIT binary patch",
)

Reader = Callable[[str], str | None]
"""Text of a file of the tree; None if it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """One stretch of changed lines."""

    old_start: int
    """Line of the old file, from 1; for an old range without lines, the line before it."""
    new_start: int
    lines: tuple[str, ...]
    """Each with its mark (" ", "-", "+") and its "\\n", unless the file ends without one."""
    number: int = 0
    """Line of the patch that the hunk starts at, for errors."""

    def old(self) -> list[str]:
        """Lines that must be there."""
        return [line[1:] for line in self.lines if line[0] != "+"]

    def new(self) -> list[str]:
        """Lines that take their place."""
        return [line[1:] for line in self.lines if line[0] != "-"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePatch:
    """What a patch does to one file."""

    path: str
    is_new: bool = False
    is_deleted: bool = False
    hunks: tuple[Hunk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a patch makes of a tree."""

    written: dict[str, str]
    deleted: frozenset[str]


def make_patch(path: str, before: str | None, after: str | None) -> str:
    """The patch that makes `after` of `before`; None: the file is not there. "" if nothing changes."""
    if before == after:
        return ""
    return render([diff(path, before, after)])


def diff(path: str, before: str | None, after: str | None) -> FilePatch:
    """The same, parsed. BadInput if `path` is none that a patch may touch."""
    check_path(path)
    old, new = split_lines(before or ""), split_lines(after or "")
    skipped = _same_at_start(old, new)
    dropped = _same_at_start(old[skipped:][::-1], new[skipped:][::-1])
    old, new = old[skipped : len(old) - dropped], new[skipped : len(new) - dropped]
    hunks = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for group in matcher.get_grouped_opcodes(CONTEXT_LINES):
        lines: list[str] = []
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                lines += [" " + line for line in old[i1:i2]]
            else:
                lines += ["-" + line for line in old[i1:i2]] + ["+" + line for line in new[j1:j2]]
        i1, i2, j1, j2 = group[0][1], group[-1][2], group[0][3], group[-1][4]
        old_start, new_start = skipped + i1 + (i2 > i1), skipped + j1 + (j2 > j1)
        hunks.append(Hunk(old_start=old_start, new_start=new_start, lines=tuple(lines)))
    return FilePatch(path=path, is_new=before is None, is_deleted=after is None, hunks=tuple(hunks))


def _same_at_start(old: list[str], new: list[str]) -> int:
    """Lines that both start with, less the context that a hunk shows: what need not be compared."""
    pairs = enumerate(zip(old, new, strict=False))
    same = next((index for index, (one, other) in pairs if one != other), min(len(old), len(new)))
    return max(0, same - CONTEXT_LINES)


def render(patches: Iterable[FilePatch]) -> str:
    """Text of a patch over several files; `parse` gives them back."""
    out: list[str] = []
    for patch in patches:
        # as git does: a tab ends a name that has spaces, so that `patch` finds its end
        tab = "\t" if " " in patch.path else ""
        out.append(f"diff --git a/{patch.path} b/{patch.path}\n")
        if patch.is_new:
            out.append("new file mode 100644\n")
        if patch.is_deleted:
            out.append("deleted file mode 100644\n")
        if not patch.hunks:
            # git takes an empty file for one only with its blobs named
            empty, none = "e69de29", "0000000"
            out.append(f"index {none}..{empty}\n" if patch.is_new else f"index {empty}..{none}\n")
            continue
        out.append("--- /dev/null\n" if patch.is_new else f"--- a/{patch.path}{tab}\n")
        out.append("+++ /dev/null\n" if patch.is_deleted else f"+++ b/{patch.path}{tab}\n")
        for hunk in patch.hunks:
            old, new = _range(hunk.old_start, len(hunk.old())), _range(hunk.new_start, len(hunk.new()))
            out.append(f"@@ -{old} +{new} @@\n")
            for line in hunk.lines:
                out.append(line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}\n")
    return "".join(out)


def parse(patch: str) -> list[FilePatch]:
    """What a patch does, file by file. BadInput with the patch's line where it is not a patch."""
    return list(_Parser(patch).files())


def changes(files: Mapping[str, str] | Reader, patch: str) -> Changes:
    """Apply `patch`. BadInput naming file, hunk and line where it does not fit; nothing is half applied."""
    read: Reader = files.get if isinstance(files, Mapping) else files
    written: dict[str, str] = {}
    deleted: set[str] = set()
    for file in parse(patch):
        before = written.get(file.path, None if file.path in deleted else read(file.path))
        if file.is_new and before is not None:
            raise BadInput(f"patch makes {file.path}, but it is there already")
        if not file.is_new and before is None:
            raise BadInput(f"patch changes {file.path}, but there is no such file in the tree")
        after = _applied(file, before or "")
        if file.is_deleted:
            if after:
                raise BadInput(
                    f"patch deletes {file.path}, but the file has more lines than the patch removes"
                )
            written.pop(file.path, None)
            deleted.add(file.path)
        else:
            written[file.path] = after
            deleted.discard(file.path)
    return Changes(written=written, deleted=frozenset(deleted))


def apply_patch(files: Mapping[str, str] | Reader, patch: str) -> dict[str, str]:
    """New text of each file that `patch` changes or makes. BadInput also if it deletes one."""
    done = changes(files, patch)
    if done.deleted:
        raise BadInput(
            f"patch deletes {', '.join(sorted(done.deleted))}: only edits can be tried; leave the file"
        )
    return done.written


def reverse(patch: str) -> str:
    """The patch that undoes `patch`."""
    swap = {" ": " ", "-": "+", "+": "-"}
    undone = []
    for file in reversed(parse(patch)):
        hunks = []
        for hunk in file.hunks:
            turned = [swap[line[0]] + line[1:] for line in hunk.lines]
            hunks.append(
                Hunk(old_start=hunk.new_start, new_start=hunk.old_start, lines=tuple(_minus_first(turned)))
            )
        undone.append(
            FilePatch(path=file.path, is_new=file.is_deleted, is_deleted=file.is_new, hunks=tuple(hunks))
        )
    return render(undone)


def paths_of(patch: str) -> list[str]:
    """Files that a patch touches, each once, in its order. BadInput if it is no patch."""
    return list(dict.fromkeys(file.path for file in parse(patch)))


def lines_touched(patches: Iterable[str]) -> Counter[tuple[str, int]]:
    """How many of `patches` remove or replace each (file, line of the old file)."""
    touched: Counter[tuple[str, int]] = Counter()
    for patch in patches:
        here: set[tuple[str, int]] = set()
        for file in parse(patch):
            for hunk in file.hunks:
                number = hunk.old_start
                for line in hunk.lines:
                    if line[0] == "-":
                        here.add((file.path, number))
                    number += line[0] != "+"
        touched.update(here)
    return touched


def check_path(path: str) -> None:
    """BadInput unless `path` is a plain relative path that stays in the tree and out of `.git`."""
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise BadInput(f"patch names the path {path!r}: only paths inside the tree can be changed")
    if ".git" in (part.lower() for part in parts):
        raise BadInput(f"patch names the path {path!r}: git's own files cannot be changed")
    if any(ord(c) < 32 or c in '"\\' or ord(c) == 127 for c in path):
        raise BadInput(
            f"patch names the path {path!r}: quotes, backslashes and control characters are not taken"
        )


def split_lines(text: str) -> list[str]:
    """Lines with their "\\n"; the last may lack it. "" has none."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _range(start: int, count: int) -> str:
    return str(start) if count == 1 else f"{start},{count}"


def _minus_first(lines: list[str]) -> list[str]:
    """Within each run of changed lines: the removed, then the added."""
    out: list[str] = []
    added: list[str] = []
    for line in lines:
        if line[0] == "+":
            added.append(line)
        else:
            if line[0] == " ":
                out += added
                added = []
            out.append(line)
    return out + added


def _applied(file: FilePatch, before: str) -> str:
    lines = split_lines(before)
    out: list[str] = []
    done = 0
    for index, hunk in enumerate(file.hunks, start=1):
        old = hunk.old()
        start = hunk.old_start - 1 if old else hunk.old_start
        name = f"{file.path}, hunk {index} (line {hunk.number} of the patch)"
        if start < done:
            raise BadInput(f"{name} starts before the end of the hunk before it")
        for offset, expected in enumerate(old):
            at = start + offset
            found = lines[at] if at < len(lines) else None
            if found != expected:
                there = "the file has ended" if found is None else f"there is {found!r}"
                raise BadInput(f"{name} does not fit: line {at + 1} should be {expected!r}, {there}")
        if start > len(lines):
            raise BadInput(f"{name} does not fit: the file has only {len(lines)} lines")
        if file.hunks[-1] is hunk and old and not old[-1].endswith("\n") and start + len(old) != len(lines):
            raise BadInput(f"{name} does not fit: it should be the end of the file")
        out += lines[done:start] + hunk.new()
        done = start + len(old)
    out += lines[done:]
    if any(not line.endswith("\n") for line in out[:-1]):
        raise BadInput(f"{file.path}: the patch adds lines after a last line without an end of line")
    return "".join(out)


class _Parser:
    """One pass over the lines of a patch. Text outside files' diffs (a message) is passed over."""

    def __init__(self, patch: str) -> None:
        self._lines = patch.split("\n")
        if self._lines[-1] == "":
            self._lines.pop()
        self._at = 0

    def files(self) -> Iterator[FilePatch]:
        found = False
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith("diff --git "):
                found = True
                yield self._git()
            elif line.startswith("--- ") and self._ahead(1).startswith("+++ "):
                found = True
                yield self._body(*self._names(), is_new=False, is_deleted=False)
            elif line.startswith("@@ "):
                raise self._bad("a hunk without a file before it")
            else:
                self._at += 1
        if not found and any(line.strip() for line in self._lines):
            raise BadInput("this is no patch: it has no line that starts with `diff --git` or `--- `")

    def _ahead(self, by: int) -> str:
        at = self._at + by
        return self._lines[at] if at < len(self._lines) else ""

    def _bad(self, why: str) -> BadInput:
        return BadInput(f"line {self._at + 1} of the patch: {why}")

    def _git(self) -> FilePatch:
        names = self._lines[self._at][len("diff --git ") :]
        middle = len(names) // 2
        old, new = names[:middle], names[middle + 1 :]
        if old[:2] != "a/" or new[:2] != "b/" or old[2:] != new[2:]:
            raise self._bad(f"`diff --git {names}` does not name one file twice (renames are not taken)")
        path = old[2:]
        check_path(path)
        self._at += 1
        is_new = is_deleted = False
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith("new file mode "):
                is_new = True
            elif line.startswith("deleted file mode "):
                is_deleted = True
            elif line.startswith(_UNSUPPORTED):
                raise self._bad(
                    f"{line.split(' ', 1)[0]}: renames, copies, modes and binary files are not taken"
                )
            elif line.startswith("Binary files "):
                raise self._bad("binary files are not taken")
            elif not line.startswith("index "):
                break
            self._at += 1
        if not (self._ahead(0).startswith("--- ") and self._ahead(1).startswith("+++ ")):
            if not (is_new or is_deleted):
                raise self._bad(f"nothing is said of {path} after its `diff --git` line")
            return FilePatch(path=path, is_new=is_new, is_deleted=is_deleted)
        file = self._body(*self._names(), is_new=is_new, is_deleted=is_deleted)
        if file.path != path:
            raise self._bad(f"the diff of {path} names another file, {file.path}")
        return file

    def _names(self) -> tuple[str | None, str | None]:
        old, new = (self._name(self._ahead(by)[4:], prefix) for by, prefix in ((0, "a/"), (1, "b/")))
        self._at += 2
        return old, new

    def _name(self, text: str, prefix: str) -> str | None:
        name = text.split("\t")[0].rstrip("\r")
        if name == "/dev/null":
            return None
        if not name.startswith(prefix):
            raise self._bad(f"{name!r} should start with {prefix}")
        check_path(name[2:])
        return name[2:]

    def _body(self, old: str | None, new: str | None, *, is_new: bool, is_deleted: bool) -> FilePatch:
        path = old or new
        if path is None or (old and new and old != new):
            raise self._bad("the two names of a file's diff do not agree (renames are not taken)")
        hunks = []
        while self._ahead(0).startswith("@@ "):
            hunks.append(self._hunk())
        if not hunks:
            raise self._bad(f"the diff of {path} has no hunks")
        return FilePatch(
            path=path, is_new=is_new or old is None, is_deleted=is_deleted or new is None, hunks=tuple(hunks)
        )

    def _hunk(self) -> Hunk:
        match = _HUNK.match(self._lines[self._at])
        if match is None:
            raise self._bad("a hunk's head should read `@@ -start,count +start,count @@`")
        number = self._at + 1
        old_start, old_count, new_start, new_count = (int(g) if g is not None else 1 for g in match.groups())
        self._at += 1
        lines: list[str] = []
        old_left, new_left = old_count, new_count
        while old_left > 0 or new_left > 0:
            if self._at >= len(self._lines):
                raise self._bad("the patch ends within a hunk")
            line = self._lines[self._at]
            if line.startswith("\\"):
                self._drop_newline(lines)
            elif line[:1] in ("", " ", "-", "+"):
                # some editors strip the blank that marks an empty line of context
                line = line or " "
                old_left -= line[0] != "+"
                new_left -= line[0] != "-"
                if old_left < 0 or new_left < 0:
                    raise self._bad("the hunk has other lines than its head counts")
                lines.append(line + "\n")
            else:
                raise self._bad(f"{line[:40]!r} should start with a blank, - or +")
            self._at += 1
        if self._ahead(0).startswith("\\"):
            self._drop_newline(lines)
            self._at += 1
        return Hunk(old_start=old_start, new_start=new_start, lines=tuple(lines), number=number)

    def _drop_newline(self, lines: list[str]) -> None:
        if not lines or not lines[-1].endswith("\n"):
            raise self._bad("this mark of a missing end of line follows no line")
        lines[-1] = lines[-1][:-1]
