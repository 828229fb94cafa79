"""Which single-defect edits of Python source exist: one small change of one physical line.

The set is closed under inversion where that is possible in principle. Not guaranteed: a name or an
attribute that vanishes from its function with the edit, and a dropped term, argument or call whose
text is gone; `is_invertible` says which. Docstrings, strings, comments, annotations, decorators,
imports and what is inside an f-string are never edited.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import io
import itertools
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache

from hermes_runtime.errors import BadInput


class EditKind(StrEnum):
    """What an edit changes. The order is the order of edits at one place."""

    COMPARISON = "comparison"
    """`<` to `<=`, `is` to `is not`, ..."""
    ARITHMETIC = "arithmetic"
    """`+` to `-`, also in `+=`."""
    BOOLEAN = "boolean"
    """`and` to `or`, True to False."""
    NEGATION = "negation"
    """`not` put before a condition, or dropped."""
    CONSTANT = "constant"
    """A number one more or one less, or its sign."""
    VARIABLE = "variable"
    """Another name of the same function is read."""
    ATTRIBUTE = "attribute"
    """Another attribute that is used on the same base."""
    CALL = "call"
    """A function or method for its sibling: min and max, lower and upper."""
    ARGUMENT_ORDER = "argument_order"
    """Two neighbouring arguments change places."""
    SLICE_BOUND = "slice_bound"
    """A single bound moves to the other side, or a bound of 1 or -1 comes or goes."""
    LOOP_CONTROL = "loop_control"
    """break and continue."""
    ADDED_TERM = "added_term"
    """`+ 1` or `- 1` where off-by-one errors are made."""
    DROPPED_TERM = "dropped_term"
    """`+ 1` or `- 1` gone there, or any operand, keyword argument or one-argument call gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One physical line replaced by another."""

    kind: EditKind
    line: int
    """1-based, in the source that was given."""
    old_line: str
    """Whole line, without its line end."""
    new_line: str


@dataclass(frozen=True, slots=True)
class _Span:
    """A piece of one physical line; columns in characters."""

    line: int
    start: int
    end: int


_COMPARISONS: dict[str, tuple[str, ...]] = {
    "<": ("<=", ">", ">="),
    "<=": ("<", ">=", ">"),
    ">": (">=", "<", "<="),
    ">=": (">", "<=", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "is": ("is not",),
    "is not": ("is",),
    "in": ("not in",),
    "not in": ("in",),
}
_OPERATOR_PAIRS = [("+", "-"), ("+", "*"), ("*", "/"), ("*", "//"), ("/", "//"), ("//", "%"), ("*", "**")]
_OPERATOR_PAIRS += [("<<", ">>"), ("&", "|"), ("|", "^"), ("&", "^")]
_SIBLINGS = [
    ("min", "max"),
    ("any", "all"),
    ("int", "float"),
    ("isinstance", "issubclass"),
    ("set", "frozenset"),
    ("list", "tuple"),
    ("lower", "upper"),
    ("islower", "isupper"),
    ("isalpha", "isalnum"),
    ("isdigit", "isalnum"),
    ("startswith", "endswith"),
    ("removeprefix", "removesuffix"),
    ("find", "rfind"),
    ("index", "rindex"),
    ("split", "rsplit"),
    ("partition", "rpartition"),
    ("strip", "lstrip"),
    ("strip", "rstrip"),
    ("lstrip", "rstrip"),
    ("ljust", "rjust"),
    ("append", "extend"),
    ("append", "appendleft"),
    ("pop", "popleft"),
    ("keys", "values"),
    ("keys", "items"),
    ("values", "items"),
    ("floor", "ceil"),
    ("add", "discard"),
    ("update", "difference_update"),
    ("union", "intersection"),
    ("match", "search"),
    ("match", "fullmatch"),
    ("get", "pop"),
]


def _both_ways(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    table: dict[str, list[str]] = {}
    for one, other in pairs:
        table.setdefault(one, []).append(other)
        table.setdefault(other, []).append(one)
    return {name: tuple(others) for name, others in table.items()}


_OPERATORS = _both_ways(_OPERATOR_PAIRS)
_CALLS = _both_ways(_SIBLINGS)
_ORDER_OPERATORS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_OPEN_TYPES = (
    ast.BoolOp,
    ast.IfExp,
    ast.Lambda,
    ast.NamedExpr,
    ast.Yield,
    ast.YieldFrom,
    ast.Tuple,
    ast.Starred,
)
_PRIMARY_TYPES = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
_FUNCTION_TYPES = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITION_TYPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_MODULE_ATTRIBUTES_MAX = 8
_NEVER_SWAPPED = frozenset(dir(builtins)) | {"self", "cls"}
_KIND_ORDER = {kind: place for place, kind in enumerate(EditKind)}


def apply_edit(source: str, edit: Edit) -> str:
    """The source with the edit made. BadInput if the line is not the one that the edit is about."""
    lines = source.split("\n")
    if not 1 <= edit.line <= len(lines):
        raise BadInput(f"line {edit.line} is not in the source of {len(lines)} lines; make the edit again")
    line = lines[edit.line - 1]
    if line.removesuffix("\r") != edit.old_line:
        raise BadInput(f"line {edit.line} is {line!r}, not {edit.old_line!r}; make the edit again")
    lines[edit.line - 1] = edit.new_line + line[len(line.removesuffix("\r")) :]
    return "\n".join(lines)


def ast_key(source: str) -> str:
    """A hash that is equal for equal programs: formatting, comments and docstrings do not count.

    Raises:
        SyntaxError: the source does not parse.
    """
    return hashlib.sha256(_dump(ast.parse(source)).encode()).hexdigest()


def edits_of(source: str, lines: Collection[int] | None = None) -> list[Edit]:
    """Every edit of those physical lines (1-based; None: all), by line and column.

    Each edited source parses and differs from the original by its syntax tree. [] if the source
    itself does not parse.
    """
    return list(iter_edits(source, lines))


def iter_edits(source: str, lines: Collection[int] | None = None) -> Iterator[Edit]:
    """As `edits_of`, one at a time: a caller that samples pays only for what it takes."""
    scan = _scan(source)
    if scan is None:
        return
    for draft in scan.drafts(lines):
        edit = scan.checked(draft)
        if edit is not None:
            yield edit


class EditSpace:
    """The edits of one source, each checked only when it is asked for. For samplers.

    `places` are unchecked; `checked(place)` is the edit or None.
    """

    def __init__(self, source: str, lines: Collection[int] | None = None) -> None:
        self._scan = _scan(source)
        self._drafts = [] if self._scan is None else self._scan.drafts(lines)

    def __len__(self) -> int:
        return len(self._drafts)

    def line(self, place: int) -> int:
        """Line of that place, 1-based."""
        return self._drafts[place].span.line

    def kind(self, place: int) -> EditKind:
        """Kind of that place."""
        return self._drafts[place].kind

    def checked(self, place: int) -> Edit | None:
        """The edit at that place; None if it does not parse or changes nothing."""
        if self._scan is None:
            return None
        return self._scan.checked(self._drafts[place])


def is_invertible(source: str, edit: Edit) -> bool:
    """Whether `edits_of` of the edited source has an edit that leads back to this program."""
    edited = apply_edit(source, edit)
    back = edits_of(edited, {edit.line})
    if any(e.new_line == edit.old_line for e in back):
        return True
    scan = _scan(source)
    if scan is None:
        return False
    wanted = scan.statement_dump(edit.line, edit.old_line)
    return any(scan.statement_dump(edit.line, e.new_line) == wanted for e in back)


@dataclass(frozen=True, slots=True)
class _Draft:
    kind: EditKind
    span: _Span
    text: str


def _dump(tree: ast.AST) -> str:
    """The tree as text, without positions and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (*_DEFINITION_TYPES, ast.Module)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and _is_text(first.value):
                node.body[0] = ast.Pass()
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    )


@lru_cache(maxsize=8)
def _scan(source: str) -> _Scan | None:
    """The source, parsed; kept, since the same few files are asked about round after round."""
    if "\f" in source or "\r" in source.replace("\r\n", ""):
        return None
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source, newline=None).readline))
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    return _Scan(source, tree, tokens)


@dataclass(slots=True)
class _Scope:
    """What one function (or the module's top) uses."""

    names: set[str]
    called: set[str]
    attributes: dict[tuple[str, bool], set[str]]


class _Scan:
    """One parsed source: its lines, its tokens by line, and the drafts of its edits."""

    def __init__(self, source: str, tree: ast.Module, tokens: list[tokenize.TokenInfo]) -> None:
        self.lines = [line.removesuffix("\r") for line in source.split("\n")]
        self._tree = tree
        self._tokens: dict[int, list[tokenize.TokenInfo]] = {}
        for token in tokens:
            if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
                self._tokens.setdefault(token.start[0], []).append(token)
                if token.end[0] != token.start[0]:
                    self._tokens.setdefault(token.end[0], []).append(token)
        self._ascii = [line.isascii() for line in self.lines]
        self._units: dict[int, tuple[int, int, str]] = {}
        self._unit_dumps: dict[int, str | None] = {}
        self._drafts: list[_Draft] = []
        self._only: Collection[int] | None = None
        self._module_scope = _Scope(set(), set(), {})
        self._called: set[int] = set()

    # -- which statement a line belongs to, and whether an edited line still parses

    def _unit(self, line: int) -> tuple[int, int, str]:
        """First line, last line, and what goes behind to parse those lines alone."""
        if not self._units:
            self._find_units(self._tree.body)
        return self._units.get(line, (1, len(self.lines), ""))

    def _find_units(self, body: list[ast.stmt]) -> None:
        """A simple statement is a unit, so is the head of a compound one. What lies between blocks
        (`else:`, `except E:`, `case x:`) belongs to the whole statement."""
        for node in body:
            first, last = _first_line(node), node.end_lineno or node.lineno
            blocks = _blocks(node)
            if not blocks or blocks[0][0].lineno <= self._header_start(node):
                self._claim(first, last)
                continue
            for line in range(first, last + 1):
                self._units[line] = (first, last, "")
            has_head = not isinstance(node, ast.Match) and not type(node).__name__.startswith("Try")
            if has_head:
                head_last = _first_line(blocks[0][0]) - 1
                while head_last > node.lineno and head_last not in self._tokens:
                    head_last -= 1
                for line in range(first, head_last + 1):
                    self._units[line] = (first, head_last, "  pass")
            for block in blocks:
                for inner in block:
                    for line in range(_first_line(inner), (inner.end_lineno or inner.lineno) + 1):
                        self._units.pop(line, None)
                self._find_units(block)

    def _header_start(self, node: ast.stmt) -> int:
        """Last line on which a body would share a line with its head."""
        blocks = _blocks(node)
        return max([node.lineno, *(n.end_lineno or 0 for n in _header_nodes(node, blocks))])

    def _claim(self, first: int, last: int) -> None:
        """Lines of one unit; statements that share a line are one unit."""
        for line in (first, last):
            if line in self._units:
                first, last = min(first, self._units[line][0]), max(last, self._units[line][1])
        for line in range(first, last + 1):
            self._units[line] = (first, last, "")

    def _parse_unit(self, line: int, text: str) -> str | None:
        """Dump of the statement that holds the line, with that text in its place; None: no parse."""
        first, last, after = self._unit(line)
        rows = self.lines[first - 1 : last]
        rows[line - first] = text
        head = rows[0].lstrip()
        margin = rows[0][: len(rows[0]) - len(head)]
        if head.startswith("elif") and after:
            rows[0] = margin + head[2:]
        if after:
            rows.append(margin + after)
        source = "\n".join(rows) + "\n"
        if margin:
            source = "if 1:\n" + source
        try:
            return ast.dump(ast.parse(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    def statement_dump(self, line: int, text: str) -> str | None:
        return self._parse_unit(line, text)

    def checked(self, draft: _Draft) -> Edit | None:
        line = draft.span.line
        old = self.lines[line - 1]
        new = old[: draft.span.start] + draft.text + old[draft.span.end :]
        if new == old:
            return None
        if line not in self._unit_dumps:
            self._unit_dumps[line] = self._parse_unit(line, old)
        was, now = self._unit_dumps[line], self._parse_unit(line, new)
        if was is None or now is None or was == now:
            return None
        return Edit(kind=draft.kind, line=line, old_line=old, new_line=new)

    # -- the drafts

    def drafts(self, lines: Collection[int] | None) -> list[_Draft]:
        self._only = None if lines is None else set(lines)
        self._drafts = []
        self._module_scope = _scope_of(self._tree, whole=True)
        self._visit_body(self._tree.body, _scope_of(self._tree))
        self._drafts.sort(key=lambda d: (d.span.line, d.span.start, d.span.end, _KIND_ORDER[d.kind], d.text))
        seen: set[tuple[int, str]] = set()
        unique = []
        for draft in self._drafts:
            old = self.lines[draft.span.line - 1]
            key = (draft.span.line, old[: draft.span.start] + draft.text + old[draft.span.end :])
            if key not in seen:
                seen.add(key)
                unique.append(draft)
        return unique

    def _wanted(self, node: ast.AST) -> bool:
        if self._only is None:
            return True
        first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
        if first is None or last is None:
            return True
        return any(first <= line <= last for line in self._only)

    def _add(self, kind: EditKind, span: _Span | None, text: str) -> None:
        if span is not None and (self._only is None or span.line in self._only):
            self._drafts.append(_Draft(kind, span, text))

    def _column(self, line: int, offset_bytes: int) -> int:
        if self._ascii[line - 1]:
            return offset_bytes
        return len(self.lines[line - 1].encode()[:offset_bytes].decode())

    def _start(self, node: ast.expr) -> tuple[int, int]:
        return node.lineno, self._column(node.lineno, node.col_offset)

    def _end(self, node: ast.expr) -> tuple[int, int]:
        line = node.end_lineno or node.lineno
        return line, self._column(line, node.end_col_offset or 0)

    def _span(self, node: ast.expr) -> _Span | None:
        (line, start), (end_line, end) = self._start(node), self._end(node)
        return _Span(line, start, end) if line == end_line else None

    def _text(self, node: ast.expr) -> str | None:
        span = self._span(node)
        return None if span is None else self.lines[span.line - 1][span.start : span.end]

    def _between(self, left: ast.expr, right: ast.expr) -> list[tokenize.TokenInfo]:
        """Tokens between two operands, parentheses left out."""
        start, end = self._end(left), self._start(right)
        found = []
        for line in range(start[0], end[0] + 1):
            for token in self._tokens.get(line, ()):
                inside = token.start[0] == line and token.start >= start and token.end <= end
                if inside and token.string not in ("(", ")"):
                    found.append(token)
        return found

    def _wrapped(self, node: ast.expr) -> _Span | None:
        """The node with the parentheses right around it, if it has some on its line."""
        span = self._span(node)
        if span is None:
            return None
        row = self._tokens.get(span.line, [])
        before = [t for t in row if t.end <= (span.line, span.start) and t.end[0] == t.start[0]]
        after = [t for t in row if t.start >= (span.line, span.end)]
        if before and after and before[-1].string == "(" and after[0].string == ")":
            opener = before[-2] if len(before) > 1 else None
            called = opener is not None and (
                opener.string in (")", "]")
                or opener.type == tokenize.STRING
                or (opener.type == tokenize.NAME and opener.string not in _KEYWORDS)
            )
            if not called:
                return _Span(span.line, before[-1].start[1], after[0].end[1])
        return None

    def _visit_body(self, body: list[ast.stmt], scope: _Scope) -> None:
        for node in body:
            if not self._wanted(node) and not isinstance(node, _DEFINITION_TYPES):
                continue
            self._visit_statement(node, scope)

    def _visit_statement(self, node: ast.stmt, scope: _Scope) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if not self._wanted(node):
                    return
                inner = _scope_of(node)
                for default in [*node.args.defaults, *node.args.kw_defaults]:
                    if default is not None:
                        self._visit(default, scope)
                self._visit_body(node.body, inner)
                return
            case ast.ClassDef():
                if self._wanted(node):
                    self._visit_body(node.body, _scope_of(node))
                return
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal():
                return
            case ast.Expr(value=value) if _is_text(value):
                return
            case ast.If(test=test) | ast.While(test=test) | ast.Assert(test=test):
                self._condition(test)
            case ast.Return(value=ast.expr() as value):
                self._condition(value)
            case ast.Break() | ast.Continue():
                line, start = node.lineno, self._column(node.lineno, node.col_offset)
                old, new = ("break", "continue") if isinstance(node, ast.Break) else ("continue", "break")
                self._add(EditKind.LOOP_CONTROL, _Span(line, start, start + len(old)), new)
                return
            case ast.AugAssign(target=target, value=value):
                self._operator([t for t in self._between(target, value) if t.string.endswith("=")], "=")
            case _:
                pass
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "type_comment"):
                continue
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.stmt):
                    self._visit_body([child], scope)
                elif isinstance(child, ast.AST):
                    self._visit(child, scope)

    def _visit(self, node: ast.AST, scope: _Scope) -> None:
        if isinstance(node, ast.JoinedStr) or type(node).__name__ == "TemplateStr" or not self._wanted(node):
            return
        if isinstance(node, ast.pattern):
            return
        if isinstance(node, (ast.ExceptHandler, ast.match_case)):
            for _, field in ast.iter_fields(node):
                for child in field if isinstance(field, list) else [field]:
                    if isinstance(child, ast.stmt):
                        self._visit_body([child], scope)
                    elif isinstance(child, ast.AST):
                        self._visit(child, scope)
            return
        self._edit(node, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.arguments) and isinstance(child, ast.arg):
                continue
            self._visit(child, scope)

    def _edit(self, node: ast.AST, scope: _Scope) -> None:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = [left, *comparators]
                for place, operator in enumerate(ops):
                    self._comparison(self._between(operands[place], operands[place + 1]))
                    if isinstance(operator, _ORDER_OPERATORS):
                        self._off_by_one(operands[place])
                        self._off_by_one(operands[place + 1])
            case ast.BoolOp(values=values):
                for one, other in itertools.pairwise(values):
                    for token in self._between(one, other):
                        if token.string in ("and", "or"):
                            swapped = "or" if token.string == "and" else "and"
                            self._add(EditKind.BOOLEAN, _token_span(token), swapped)
                for value in values:
                    self._condition(value)
                self._dropped_operand(values)
            case ast.BinOp(left=left, right=right):
                tokens = self._between(left, right)
                self._operator(tokens, "")
                if not _is_text(left):
                    self._dropped_operand([left, right])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                span, inner = self._span(node), self._span(operand)
                if span is not None and inner is not None and not isinstance(operand, ast.Constant):
                    self._add(EditKind.DROPPED_TERM, _Span(span.line, span.start, inner.start), "")
            case ast.IfExp(test=test):
                self._condition(test)
            case ast.comprehension(ifs=ifs):
                for test in ifs:
                    self._condition(test)
            case ast.Constant():
                self._constant(node)
            case ast.Name(id=name, ctx=ast.Load()):
                span = self._span(node)
                if name in scope.names:  # not where it is only called
                    for read in scope.names - {name}:
                        self._add(EditKind.VARIABLE, span, read)
            case ast.Attribute(value=value, attr=attr, ctx=ast.Load()) if id(node) not in self._called:
                self._attribute(value, attr, False, node, scope)
            case ast.Call():
                self._call(node, scope)
            case ast.Subscript(slice=index):
                if isinstance(index, ast.Slice):
                    self._slice(node, index)
                else:
                    self._off_by_one(index)
            case _:
                pass

    def _comparison(self, tokens: list[tokenize.TokenInfo]) -> None:
        words = [t for t in tokens if t.string in ("<", "<=", ">", ">=", "==", "!=", "is", "not", "in")]
        if not words or words[0].start[0] != words[-1].end[0]:
            return
        old = " ".join(t.string for t in words[:2])
        if old not in _COMPARISONS:
            old, words = words[0].string, words[:1]
        span = _Span(words[0].start[0], words[0].start[1], words[min(len(words), 2) - 1].end[1])
        for new in _COMPARISONS.get(old, ()):
            self._add(EditKind.COMPARISON, span, new)

    def _operator(self, tokens: list[tokenize.TokenInfo], suffix: str) -> None:
        for token in tokens:
            if token.type != tokenize.OP or not token.string.endswith(suffix):
                continue
            row = self._tokens[token.start[0]]
            place = row.index(token)
            if any(t.type == tokenize.STRING for t in row[max(0, place - 1) : place + 2]):
                continue  # text is joined or formatted: another operator is no plausible defect
            old = token.string.removesuffix(suffix) if suffix else token.string
            for new in _OPERATORS.get(old, ()):
                self._add(EditKind.ARITHMETIC, _token_span(token), new + suffix)

    def _condition(self, node: ast.expr) -> None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._wrapped(node.operand) or self._span(node.operand)
            line, start = self._start(node)
            if inner is not None and inner.line == line:
                self._add(EditKind.NEGATION, _Span(line, start, inner.start), "")
        wrapped = self._wrapped(node)
        if isinstance(node, _OPEN_TYPES) and wrapped is None:
            return
        line, start = self._start(node) if wrapped is None else (wrapped.line, wrapped.start)
        ahead = self.lines[line - 1][:start]
        gap = " " if ahead and (ahead[-1].isalnum() or ahead[-1] == "_") else ""
        self._add(EditKind.NEGATION, _Span(line, start, start), gap + "not ")

    def _dropped_operand(self, values: list[ast.expr]) -> None:
        spans = [self._wrapped(v) or self._span(v) for v in values]
        for place, span in enumerate(spans):
            if span is None:
                continue
            if place > 0:
                before = spans[place - 1]
                if before is not None and before.line == span.line:
                    self._add(EditKind.DROPPED_TERM, _Span(span.line, before.end, span.end), "")
            else:
                after = spans[1]
                if after is not None and after.line == span.line:
                    self._add(EditKind.DROPPED_TERM, _Span(span.line, span.start, after.start), "")

    def _constant(self, node: ast.Constant) -> None:
        span = self._span(node)
        if span is None:
            return
        text = self.lines[span.line - 1][span.start : span.end]
        value = node.value
        if isinstance(value, bool):
            self._add(EditKind.BOOLEAN, span, "False" if value else "True")
        elif isinstance(value, int):
            self._whole_number(value, text, span)
        elif isinstance(value, float) and re.fullmatch(r"\d*\.\d*", text):
            for step in (1, -1):
                decimal = Decimal(text) + step
                if decimal >= 0:
                    written = str(decimal)
                    self._add(EditKind.CONSTANT, span, written if "." in written else written + ".0")

    def _whole_number(self, value: int, text: str, span: _Span) -> None:
        row = self.lines[span.line - 1]
        is_signed = self._is_signed(span)
        is_base = self._is_power_base(span)
        now = -value if is_signed else value
        whole = _Span(span.line, span.start - 1, span.end) if is_signed else span
        for new in (now + 1, now - 1, -now):
            if new == now or (is_base and new < 0):
                continue
            written = _integer(new, text)
            ahead = row[: whole.start]
            if is_signed and new >= 0 and ahead and (ahead[-1].isalnum() or ahead[-1] == "_"):
                written = " " + written
            self._add(EditKind.CONSTANT, whole, written)

    def _is_signed(self, span: _Span) -> bool:
        """Whether a minus sign that is no operator of two operands stands right before."""
        row = [t for t in self._tokens.get(span.line, []) if t.end <= (span.line, span.start)]
        if not row or row[-1].string != "-" or row[-1].end[1] != span.start:
            return False
        if self._is_power_base(span):
            return False
        if len(row) == 1:
            # the line starts with the sign: only a continued expression can do that
            return False
        last = row[-2]
        if last.type in (tokenize.NUMBER, tokenize.STRING) or last.string in (")", "]", "}"):
            return False
        return not (last.type == tokenize.NAME and last.string not in _KEYWORDS)

    def _is_power_base(self, span: _Span) -> bool:
        row = [t for t in self._tokens.get(span.line, []) if t.start >= (span.line, span.end)]
        return bool(row) and row[0].string in ("**", ".")

    def _attribute(self, base: ast.expr, attr: str, called: bool, node: ast.Attribute, scope: _Scope) -> None:
        key = _base_key(base)
        span = self._span(node)
        if key is None or span is None:
            return
        place = _Span(span.line, span.end - len(attr), span.end)
        if self.lines[span.line - 1][place.start : place.end] != attr:
            return
        others = set(scope.attributes.get((key, called), ()))
        everywhere = self._module_scope.attributes.get((key, called), set())
        if len(everywhere) <= _MODULE_ATTRIBUTES_MAX:
            others |= everywhere
        for other in others - {attr}:
            self._add(EditKind.ATTRIBUTE, place, other)

    def _call(self, node: ast.Call, scope: _Scope) -> None:
        function = node.func
        self._called.add(id(function))  # visited next: `_call` has seen to its attribute
        if isinstance(function, ast.Name):
            for sibling in _CALLS.get(function.id, ()):
                self._add(EditKind.CALL, self._span(function), sibling)
        elif isinstance(function, ast.Attribute):
            span = self._span(function)
            if span is not None:
                attr = function.attr
                place = _Span(span.line, span.end - len(attr), span.end)
                if self.lines[span.line - 1][place.start : place.end] == attr:
                    for sibling in _CALLS.get(attr, ()):
                        self._add(EditKind.CALL, place, sibling)
                self._attribute(function.value, attr, True, function, scope)
        for one, other in itertools.pairwise(node.args):
            if isinstance(one, ast.Starred) or isinstance(other, ast.Starred):
                continue
            first, second = self._wrapped(one) or self._span(one), self._wrapped(other) or self._span(other)
            if first is None or second is None or first.line != second.line:
                continue
            row = self.lines[first.line - 1]
            gap = row[first.end : second.start]
            text = row[second.start : second.end] + gap + row[first.start : first.end]
            self._add(EditKind.ARGUMENT_ORDER, _Span(first.line, first.start, second.end), text)
        if isinstance(function, ast.Name) and function.id == "range":
            for argument in node.args:
                self._off_by_one(argument)
        self._dropped_arguments(node)

    def _dropped_arguments(self, node: ast.Call) -> None:
        span = self._span(node)
        if span is None:
            return
        if isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
            inner = self._wrapped(node.args[0]) or self._span(node.args[0])
            if inner is not None and not isinstance(node.args[0], (ast.GeneratorExp, ast.Starred)):
                text = self.lines[span.line - 1][inner.start : inner.end]
                if not isinstance(node.args[0], (*_OPEN_TYPES, ast.BinOp, ast.Compare, ast.UnaryOp)):
                    self._add(EditKind.DROPPED_TERM, span, text)
        for keyword in node.keywords:
            if keyword.arg is None:
                continue
            end_line, end = self._end(keyword.value)
            line, start = keyword.lineno, self._column(keyword.lineno, keyword.col_offset)
            if line != end_line:
                continue
            ahead = self.lines[line - 1][:start].rstrip()
            if ahead.endswith(","):
                self._add(EditKind.DROPPED_TERM, _Span(line, len(ahead) - 1, end), "")
            elif ahead.endswith("("):
                behind = self.lines[line - 1][end:]
                comma = re.match(r"\s*,\s*", behind)
                cut = end + (comma.end() if comma else 0)
                self._add(EditKind.DROPPED_TERM, _Span(line, start, cut), "")

    def _slice(self, node: ast.Subscript, index: ast.Slice) -> None:
        for bound in (index.lower, index.upper):
            if bound is not None:
                self._off_by_one(bound)
        span = self._span(node)
        if span is None or index.step is not None:
            return
        row = self._tokens.get(span.line, [])
        inside = [t for t in row if (span.line, span.start) <= t.start and t.end <= (span.line, span.end)]
        value_end = self._end(node.value)
        opener = next((t for t in inside if t.start >= value_end and t.string == "["), None)
        if opener is None:
            return
        content = _Span(span.line, opener.end[1], span.end - 1)
        lower = None if index.lower is None else self._text(index.lower)
        upper = None if index.upper is None else self._text(index.upper)
        match lower, upper:
            case None, None if index.lower is None and index.upper is None:
                texts = ["1:", ":1", "-1:", ":-1"]
            case str(), None if index.upper is None:
                texts = [f":{lower}", f"{lower}:1", f"{lower}:-1"]
                texts += [":"] if lower in ("1", "-1") else []
            case None, str() if index.lower is None:
                texts = [f"{upper}:", f"1:{upper}", f"-1:{upper}"]
                texts += [":"] if upper in ("1", "-1") else []
            case str(), str():
                texts = [f"{lower}:"] if upper in ("1", "-1") else []
                texts += [f":{upper}"] if lower in ("1", "-1") else []
            case _:
                texts = []
        for text in texts:
            self._add(EditKind.SLICE_BOUND, content, text)

    def _off_by_one(self, node: ast.expr) -> None:
        """`e` to `e + 1` and `e - 1`, and back."""
        span = self._span(node)
        if span is None:
            return
        if isinstance(node, _PRIMARY_TYPES):
            at = _Span(span.line, span.end, span.end)
            self._add(EditKind.ADDED_TERM, at, " + 1")
            self._add(EditKind.ADDED_TERM, at, " - 1")
        elif (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, (ast.Add, ast.Sub))
            and isinstance(node.left, _PRIMARY_TYPES)
            and isinstance(node.right, ast.Constant)
            and node.right.value == 1
        ):
            _, left_end = self._end(node.left)
            if node.left.end_lineno == span.line:
                self._add(EditKind.DROPPED_TERM, _Span(span.line, left_end, span.end), "")


_KEYWORDS = frozenset(
    [
        "if",
        "elif",
        "while",
        "assert",
        "return",
        "and",
        "or",
        "not",
        "in",
        "is",
        "else",
        "for",
        "yield",
        "lambda",
        "del",
        "raise",
        "from",
        "await",
        "match",
        "case",
        "except",
        "with",
    ]
)


def _blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The statement lists inside a compound statement, in source order."""
    blocks: list[list[ast.stmt]] = []
    if isinstance(node, ast.Match):
        blocks = [case.body for case in node.cases]
    else:
        body = getattr(node, "body", None)
        if isinstance(body, list):
            blocks.append(body)
        handlers: list[ast.ExceptHandler] = getattr(node, "handlers", [])
        blocks += [handler.body for handler in handlers]
        for name in ("orelse", "finalbody"):
            more: list[ast.stmt] = getattr(node, name, [])
            if more:
                blocks.append(more)
    return blocks


def _first_line(node: ast.stmt) -> int:
    """Line of the statement or of its first decorator."""
    if isinstance(node, _DEFINITION_TYPES):
        return min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return node.lineno


def _header_nodes(node: ast.stmt, blocks: list[list[ast.stmt]]) -> Iterator[ast.expr]:
    """Expressions of a compound statement that stand before its first block."""
    limit = (blocks[0][0].lineno, blocks[0][0].col_offset)
    for inner in ast.walk(node):
        if isinstance(inner, ast.expr) and (inner.lineno, inner.col_offset) < limit:
            yield inner


def _token_span(token: tokenize.TokenInfo) -> _Span:
    return _Span(token.start[0], token.start[1], token.end[1])


def _integer(value: int, like: str) -> str:
    """The value in the base that the old text is written in."""
    prefix = like[:2].lower()
    size = abs(value)
    digits = {"0x": hex, "0o": oct, "0b": bin}.get(prefix, str)(size)
    return ("-" if value < 0 else "") + digits


def _base_key(base: ast.expr) -> str | None:
    """`a`, `a.b`: bases whose attributes are taken to be of one kind."""
    match base:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=name), attr=attr):
            return f"{name}.{attr}"
        case _:
            return None


def _scope_of(top: ast.AST, whole: bool = False) -> _Scope:
    """Names read or written and attributes used; of nested functions too, of nested classes not.

    `whole`: of everything below. A name that is only called is in `called` and not in `names`.
    """
    scope = _Scope(set(), set(), {})
    functions: set[int] = set()
    pending: list[ast.AST] = []
    if isinstance(top, _FUNCTION_TYPES):
        pending += [top.args, *top.body]
    else:
        pending += list(ast.iter_child_nodes(top))
    while pending:
        node = pending.pop()
        if isinstance(node, _DEFINITION_TYPES) and not whole:
            inside = isinstance(top, _FUNCTION_TYPES) and not isinstance(node, ast.ClassDef)
            if not inside:
                continue
        if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                functions.add(id(node.func))
                scope.called.add(node.func.id)
            elif isinstance(node.func, ast.Attribute):
                functions.add(id(node.func))
                key = _base_key(node.func.value)
                if key is not None:
                    scope.attributes.setdefault((key, True), set()).add(node.func.attr)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if id(node) not in functions:
                key = _base_key(node.value)
                if key is not None:
                    scope.attributes.setdefault((key, False), set()).add(node.attr)
        elif isinstance(node, ast.Name) and id(node) not in functions:
            scope.names.add(node.id)
        elif isinstance(node, ast.arg):
            scope.names.add(node.arg)
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            pending += [c for c in (field if isinstance(field, list) else [field]) if isinstance(c, ast.AST)]
    scope.names -= _NEVER_SWAPPED
    return scope
