"""Single-line candidates while there are many of them: one line each, a patch only for the best.

Equal programs count once: a candidate is known by the syntax tree of the function that it changes, so
that neither white space nor redundant brackets make it new, and no large file is parsed for it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hermes_runtime.agents.edits import ast_key
from hermes_runtime.agents.patch import make_patch, parse
from hermes_runtime.agents.windows import outline_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A file's line (from 1) that is to read otherwise."""

    path: str
    line: int
    text: str
    """The whole line, without its end."""
    score: float


class Workbench:
    """The sources of one task, ready for many drafts."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self._lines = {path: text.split("\n") for path, text in sources.items()}
        self._outlines = {path: outline_of(text, path) for path, text in sources.items()}

    def best(self, drafts: Iterable[Draft], tried: Iterable[str], *, count: int) -> list[tuple[str, float]]:
        """Patches of the first `count` drafts, in their order, that make a program which is neither
        the unpatched one nor one of an earlier draft or of a patch in `tried`."""
        seen = {key for patch in tried if (key := self._key_of_patch(patch))}
        found: list[tuple[str, float]] = []
        for draft in drafts:
            if len(found) == count:
                break
            key = self._key(draft.path, draft.line, draft.text)
            if key is None or key in seen or key == self._key(draft.path, draft.line, None):
                continue
            seen.add(key)
            lines = self._lines[draft.path]
            after = "\n".join([*lines[: draft.line - 1], draft.text, *lines[draft.line :]])
            found.append((make_patch(draft.path, self._sources[draft.path], after), draft.score))
        return found

    def _key(self, path: str, line: int, text: str | None) -> tuple[str, int, str] | None:
        """What the program is known by with that line so (None: as it is); None if it does not parse."""
        first, lines = self._unit(path, line)
        if text is not None:
            lines = [*lines[: line - first], text, *lines[line - first + 1 :]]
        try:
            return path, first, ast_key(textwrap.dedent("\n".join(lines)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    def _unit(self, path: str, line: int) -> tuple[int, Sequence[str]]:
        """The function that holds the line, or the whole file: its first line, and its lines."""
        outline = self._outlines[path]
        function = outline.function_at(line) if outline else None
        if function is None:
            return 1, self._lines[path]
        return function.first_line, self._lines[path][function.first_line - 1 : function.last_line]

    def _key_of_patch(self, patch: str) -> tuple[str, int, str] | None:
        """The key of a patch that replaces one line; None of any other."""
        replaced = replaced_line(patch)
        return self._key(*replaced) if replaced and replaced[0] in self._lines else None


def replaced_line(patch: str) -> tuple[str, int, str] | None:
    """File, line (from 1) and new text of a patch that replaces one line; None of any other."""
    files = parse(patch)
    changed = [line for file in files for hunk in file.hunks for line in hunk.lines if line[0] in "+-"]
    if len(files) != 1 or [line[0] for line in changed] != ["-", "+"]:
        return None
    hunk = files[0].hunks[0]
    line = hunk.old_start + next(i for i, text in enumerate(hunk.lines) if text[0] == "-")
    return files[0].path, line, changed[1][1:].rstrip("\r\n")
