"""The `line_repair` dialect: one function, numbered by place tokens, and one line that repairs it.

    <err>evidence<fn><L0>first line<L1>second line ...<fix>   ->   <Lk>repaired line<end>

Training and the agents write this format here and nowhere else. A window shows at most 40 lines of
code: docstrings, comment lines and blank lines are left out, and the function's own margin is
stripped. Text that spells a special token is escaped, reversibly.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hermes_runtime.errors import BadInput

LINES_MAX = 40
MAX_EVIDENCE_TOKENS = 160
MAX_EVIDENCE_CHARS = 480
"""What `inline_evidence` keeps: about 160 tokens of the bundled tokenizer."""
ANCHOR_HEAD_CHARS = 120

PAD, EVIDENCE, FUNCTION, FIX, END, PLAIN = "<pad>", "<err>", "<fn>", "<fix>", "<end>", "<lm>"
"""PLAIN starts code that is only to be continued."""
PLACES = tuple(f"<L{k}>" for k in range(LINES_MAX))
SPECIAL_TOKENS = (PAD, EVIDENCE, FUNCTION, FIX, END, PLAIN, *PLACES)

_ESCAPE = "\u2060"
_LOOKS_SPECIAL = re.compile(r"<(" + _ESCAPE + r"*(?:pad|err|fn|fix|end|lm|L[0-9]{1,2})>)")
_ESCAPED = re.compile(r"<" + _ESCAPE + r"(" + _ESCAPE + r"*(?:pad|err|fn|fix|end|lm|L[0-9]{1,2})>)")
_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_ANSWER = re.compile(r"\s*<L([0-9]{1,2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The lines of a file that one prompt shows."""

    path: str
    line_numbers: tuple[int, ...]
    """1-based line in the file of each shown line, rising."""
    lines: tuple[str, ...]
    """As shown: without the margin, not yet escaped."""
    margin: str
    """What was stripped from the left of every shown line."""

    def place_of(self, line: int) -> int | None:
        """Place of a file's line in the window; None if it is not shown."""
        return self.line_numbers.index(line) if line in self.line_numbers else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model wants: that place to read so."""

    place: int
    line: str
    """As shown in a window: without the margin, not escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """An answer that is none."""

    reason: str


def escape(text: str) -> str:
    """The text with every spelling of a special token made harmless; `unescape` is its inverse."""
    return _LOOKS_SPECIAL.sub("<" + _ESCAPE + r"\1", text) if "<" in text else text


def unescape(text: str) -> str:
    """What was escaped."""
    return _ESCAPED.sub(r"<\1", text) if _ESCAPE in text else text


def place_token(k: int) -> str:
    """`<Lk>`. BadInput outside 0..39."""
    if not 0 <= k < LINES_MAX:
        raise BadInput(f"place {k} is not in 0..{LINES_MAX - 1}; a window shows at most {LINES_MAX} lines")
    return PLACES[k]


def render(window: Window, evidence: str) -> str:
    """The prompt. Its completion is an answer; `place_token(k)` may be put behind it to fix the place."""
    return render_lines(window.lines, evidence)


def render_lines(lines: Sequence[str], evidence: str) -> str:
    """The prompt for lines as a window shows them."""
    if not 1 <= len(lines) <= LINES_MAX:
        raise BadInput(f"a window of {len(lines)} lines cannot be shown; give 1 to {LINES_MAX}")
    body = "".join(PLACES[k] + escape(line) for k, line in enumerate(lines))
    return EVIDENCE + escape(evidence) + FUNCTION + body + FIX


def render_answer(answer: Answer) -> str:
    """What `parse_answer` reads."""
    return place_token(answer.place) + escape(answer.line) + END


def parse_answer(text: str) -> Answer | Malformed:
    """The answer in a completion. `<end>` may be missing where decoding stopped at it."""
    found = _ANSWER.match(text)
    if found is None:
        return Malformed(reason=f"no place token at the start of {text[:40]!r}")
    place = int(found[1])
    if place >= LINES_MAX:
        return Malformed(reason=f"place {place} is not in 0..{LINES_MAX - 1}")
    line = text[found.end() :].split(END, 1)[0]
    if _SPECIAL.search(line):
        return Malformed(reason=f"a special token inside the line {line[:80]!r}")
    if "\n" in line or "\r" in line:
        return Malformed(reason=f"more than one line: {line[:80]!r}")
    return Answer(place=place, line=unescape(line).rstrip())


def restore(window: Window, k: int, new_line: str) -> str:
    """The file's line for a line as shown: the margin is put back. BadInput for an unknown place."""
    if not 0 <= k < len(window.lines):
        raise BadInput(f"place {k} is not in the window of {len(window.lines)} lines of {window.path}")
    return window.margin + new_line if new_line else ""


def window_for(source: str, path: str, line: int, focus: Collection[int] = ()) -> Window | None:
    """The window on the innermost function that holds the line, or on the module's top around it.

    A function of more than 40 lines is cut to the 40 around `line` that hold most of `focus` (file
    lines). None where nothing can be shown: the source does not parse or the line is not in it.
    """
    outline = Outline.of(source, path)
    return None if outline is None else outline.window(line, focus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """Where a function is; decorators count."""

    name: str
    first_line: int
    last_line: int


class Outline:
    """One parsed source: which lines are code, and which function holds each. For many windows."""

    def __init__(self, lines: list[str], path: str, functions: list[Function], code: set[int]) -> None:
        self.path = path
        self.functions = functions
        """In the order of their first lines; outer before inner."""
        self._lines = lines
        self._code = code

    @classmethod
    def of(cls, source: str, path: str) -> Outline | None:
        """None if the source does not parse."""
        try:
            tree = ast.parse(source)
            code = _code_lines(source)
        except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
            return None
        functions = []
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
                code -= _docstring_lines(node)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                last = node.end_lineno or node.lineno
                functions.append(Function(name=node.name, first_line=first, last_line=last))
        functions.sort(key=lambda f: (f.first_line, -f.last_line))
        lines = [line.removesuffix("\r") for line in source.split("\n")]
        return cls(lines, path, functions, code)

    def function_at(self, line: int) -> Function | None:
        """The innermost function that holds the line."""
        holding = [f for f in self.functions if f.first_line <= line <= f.last_line]
        return min(holding, key=lambda f: f.last_line - f.first_line) if holding else None

    def shown(self, function: Function) -> list[int]:
        """File lines of a function that a window would show were there no limit."""
        margin = _margin(self._lines[function.first_line - 1])
        numbers = range(function.first_line, function.last_line + 1)
        return [n for n in numbers if n in self._code and self._lines[n - 1].startswith(margin)]

    def window(self, line: int, focus: Collection[int] = ()) -> Window | None:
        """As `window_for`."""
        if not 1 <= line <= len(self._lines):
            return None
        function = self.function_at(line)
        if function is not None:
            margin = _margin(self._lines[function.first_line - 1])
            numbers = self.shown(function)
        else:
            inside = {n for f in self.functions for n in range(f.first_line, f.last_line + 1)}
            margin = ""
            numbers = sorted(self._code - inside)
        if not numbers:
            return None
        numbers = _stretch(numbers, line, frozenset(focus))
        return Window(
            path=self.path,
            line_numbers=tuple(numbers),
            lines=tuple(self._lines[n - 1][len(margin) :].rstrip() for n in numbers),
            margin=margin,
        )


def _stretch(numbers: list[int], line: int, focus: frozenset[int]) -> list[int]:
    """The 40 neighbouring numbers around `line` that hold most of `focus`; the most central of those."""
    if len(numbers) <= LINES_MAX:
        return numbers
    near = min(range(len(numbers)), key=lambda i: (abs(numbers[i] - line), i))
    starts = range(max(0, near - LINES_MAX + 1), min(near, len(numbers) - LINES_MAX) + 1)

    def worth(start: int) -> tuple[int, int, int]:
        held = len(focus.intersection(numbers[start : start + LINES_MAX]))
        return held, -abs(start + LINES_MAX // 2 - near), -start

    best = max(starts, key=worth)
    return numbers[best : best + LINES_MAX]


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _code_lines(source: str) -> set[int]:
    """Lines that hold a token other than a comment, blank lines inside strings left out."""
    code: set[int] = set()
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    rows = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source, newline=None).readline):
        if token.type in silent or token.type == tokenize.ENDMARKER:
            continue
        for number in range(token.start[0], token.end[0] + 1):
            if number <= len(rows) and rows[number - 1].strip():
                code.add(number)
    return code


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> set[int]:
    """Lines of a docstring that hold nothing else."""
    if not node.body or not isinstance(node.body[0], ast.Expr):
        return set()
    value = node.body[0].value
    if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
        return set()
    shared = {node.body[1].lineno} if len(node.body) > 1 else set()
    if not isinstance(node, ast.Module):
        shared.add(node.lineno)
    return set(range(value.lineno, (value.end_lineno or value.lineno) + 1)) - shared


# -- evidence

_TEST_HEADER = re.compile(r"^_{3,} (?P<name>.+?) _{3,}$")
_PLACE_LINE = re.compile(r"^[^\s:>][^\s:]*\.py:\d+: ")
_SUMMARY = re.compile(r"^(FAILED|ERROR) \S")


def inline_evidence(log: str) -> str:
    """The telling lines of pytest's output, at most 480 characters, whole lines where they fit.

    In this order: of each failure the name of its test, the `>` line, the `E` lines, the place; then
    the short summary. "" for a log with none of these.
    """
    kept: list[str] = []
    summary: list[str] = []
    causes = 0
    for raw in log.splitlines():
        line = raw.rstrip()
        header = _TEST_HEADER.match(line)
        if header is not None:
            kept.append(header["name"])
            causes = 0
        elif line.startswith("> ") and line[1:].strip():
            kept.append("> " + line[1:].strip())
        elif line.startswith("E ") and line[1:].strip():
            causes += 1
            if causes <= 4:
                kept.append("E " + line[1:].strip())
        elif _PLACE_LINE.match(line):
            kept.append(line)
        elif _SUMMARY.match(line):
            summary.append(line)
    chosen: list[str] = []
    left = MAX_EVIDENCE_CHARS
    for line in dict.fromkeys([*kept, *summary]):
        if len(line) + 1 > left:
            if left > 40:
                chosen.append(line[: left - 1])
            break
        chosen.append(line)
        left -= len(line) + 1
    return "\n".join(chosen)


def anchored_evidence(alias: str, head: str) -> str:
    """The alias of an anchored log and its first telling line: `@p1 AssertionError: assert 3 == 4`."""
    first = next((line.strip() for line in head.splitlines() if line.strip()), "")
    return f"{alias} {first[:ANCHOR_HEAD_CHARS]}".rstrip()


def head_of(log: str) -> str:
    """The one line of pytest's output that tells most, for `anchored_evidence`; "" if there is none."""
    for raw in log.splitlines():
        if raw.startswith("E ") and raw[1:].strip():
            return raw[1:].strip()[:ANCHOR_HEAD_CHARS]
    for raw in log.splitlines():
        if _SUMMARY.match(raw):
            return raw.strip()[:ANCHOR_HEAD_CHARS]
    return ""
