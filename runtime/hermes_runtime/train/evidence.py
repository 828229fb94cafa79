"""What a failing test would have said about a defect: made up, in the shape of pytest's own words.

Nothing is run. Most defects show as a wrong value, some as an exception with the line it came from;
that line is mostly the defect's own, as in life. The text goes through the same two renderings that
the agents use, so the model sees in training what it will see at work.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from hermes_runtime.agents.prompts.line_repair import anchored_evidence, head_of, inline_evidence

_WORDS = ["empty", "default", "single", "none", "basic", "nested", "unicode", "order", "large", "simple"]
_WORDS += ["negative", "missing", "twice", "boundary", "zero", "long", "invalid", "edge_case", "roundtrip"]
_VALUES = ["0", "1", "2", "3", "4", "-1", "10", "None", "True", "False", "''", "'a'", "'abc'", "'foo bar'"]
_VALUES += ["[]", "[1, 2, 3]", "[1, 2]", "{}", "{'a': 1}", "(1, 2)", "0.5", "'Hello'", "b'abc'", "[0]"]
_TYPES = ["int", "str", "list", "NoneType", "dict", "tuple", "float", "bool"]
_ALIASES = ["p", "t", "b", "log"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ATTRIBUTE = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """What the made-up test knows of the mutant."""

    function: str
    module: str
    """Path of the file."""
    line_number: int
    mutated: str
    """The defective line."""
    later: str
    """A line of the function at or after the defect."""
    parameters: tuple[str, ...]


def _test_name(defect: Defect, rng: random.Random) -> str:
    stem = defect.function.strip("_") or "call"
    name = f"test_{stem}" + (f"_{rng.choice(_WORDS)}" if rng.random() < 0.6 else "")
    kind = rng.random()
    if kind < 0.3:
        camel = "".join(part.title() for part in stem.split("_"))
        return f"Test{camel}.{name}"
    if kind < 0.4:
        return f"{name}[{rng.choice(_VALUES).strip(chr(39))}-{rng.choice(_VALUES).strip(chr(39))}]"
    return name


def _call(defect: Defect, rng: random.Random) -> str:
    count = min(len([p for p in defect.parameters if p not in ("self", "cls")]), 3)
    arguments = ", ".join(rng.choice(_VALUES) for _ in range(count))
    base = rng.choice(["obj.", "x.", "self.", "result."]) if "self" in defect.parameters[:1] else ""
    return f"{base}{defect.function}({arguments})"


def _wrong_value(defect: Defect, rng: random.Random) -> tuple[list[str], str]:
    call = _call(defect, rng)
    got, wanted = rng.choice(_VALUES), rng.choice(_VALUES)
    kind = rng.random()
    if kind < 0.5:
        lines = [f">       assert {call} == {wanted}", f"E       assert {got} == {wanted}"]
        if rng.random() < 0.6:
            lines.append(f"E        +  where {got} = {call}")
        return lines, "AssertionError"
    if kind < 0.7:
        lines = [f">       self.assertEqual({call}, {wanted})", f"E       AssertionError: {got} != {wanted}"]
        return lines, "AssertionError"
    if kind < 0.85:
        holds = rng.random() < 0.5
        lines = [f">       assert {'' if holds else 'not '}{call}"]
        shown = rng.choice(["False", "None", "[]", "0"]) if holds else f"not {rng.choice(['True', '1'])}"
        lines += [f"E       assert {shown}", f"E        +  where {shown.removeprefix('not ')} = {call}"]
        return lines, "AssertionError"
    if kind < 0.95:
        error = rng.choice(["ValueError", "TypeError", "KeyError", "IndexError"])
        return [
            f">       with pytest.raises({error}):",
            f"E       Failed: DID NOT RAISE <class '{error}'>",
        ], "Failed"
    lines = [f">       assert {call} == {wanted}", f"E       AssertionError: assert {got} == {wanted}"]
    return [*lines, f"E         - {wanted}", f"E         + {got}"], "AssertionError"


def _exception(line: str, rng: random.Random) -> str:
    names = [n for n in _NAME.findall(line) if n not in ("return", "if", "not", "and", "or", "for", "in")]
    attributes = _ATTRIBUTE.findall(line)
    one, other = rng.choice(_TYPES), rng.choice(_TYPES)
    choices = []
    if attributes:
        choices += [f"AttributeError: '{one}' object has no attribute '{rng.choice(attributes)}'"] * 3
    if "[" in line:
        choices += ["IndexError: list index out of range", f"KeyError: {rng.choice(_VALUES)}"]
        choices += [
            f"TypeError: '{one}' object is not subscriptable",
            "IndexError: string index out of range",
        ]
    if "(" in line:
        choices += [f"TypeError: '{one}' object is not callable", "ValueError: " + rng.choice(_WORDS)]
        choices += [
            f"TypeError: expected {one}, got {other}",
            f"TypeError: object of type '{one}' has no len()",
        ]
    for operator in ("+", "-", "*", "/", "%", "<", ">"):
        if f" {operator} " in line:
            choices.append(f"TypeError: unsupported operand type(s) for {operator}: '{one}' and '{other}'")
    if " in " in line:
        choices.append(f"TypeError: argument of type '{one}' is not iterable")
    if "/" in line or "%" in line:
        choices.append("ZeroDivisionError: division by zero")
    if names:
        name = rng.choice(names)
        choices.append(f"UnboundLocalError: cannot access local variable '{name}'")
        choices.append(f"NameError: name '{name}' is not defined")
    choices += ["RecursionError: maximum recursion depth exceeded", "StopIteration"]
    return rng.choice(choices)


def log_of(defect: Defect, rng: random.Random) -> str:
    """Output of pytest on a test of the function."""
    test = _test_name(defect, rng)
    file = f"tests/test_{defect.module.rsplit('/', 1)[-1].removesuffix('.py').strip('_') or 'module'}.py"
    rows = [f"{'_' * 20} {test} {'_' * 20}", ""]
    if rng.random() < 0.3:
        own = rng.random() < 0.65
        line = defect.mutated if own else defect.later
        number = defect.line_number if own else defect.line_number + rng.randrange(1, 9)
        error = _exception(line, rng)
        if rng.random() < 0.6:
            rows += [f">       {_call(defect, rng)}", "", f"{file}:{rng.randrange(10, 900)}: "]
        rows += [f">       {line.strip()}", f"E       {error}", "", f"{defect.module}:{number}: "]
        rows[-1] += error.partition(":")[0]
        told = error
    else:
        lines, name = _wrong_value(defect, rng)
        rows += [*lines, "", f"{file}:{rng.randrange(10, 900)}: {name}"]
        told = next((r[1:].strip() for r in lines if r.startswith("E ")), name)
    if rng.random() < 0.7:
        rows += ["=" * 20, f"FAILED {file}::{test.replace('.', '::')} - {told[:60]}"]
    return "\n".join(rows)


def rendered(log: str, rng: random.Random, empty_share: float, anchored_share: float) -> str:
    """The log as a prompt carries it: inline, as an anchor's alias and head, or not at all."""
    draw = rng.random()
    if draw < empty_share:
        return ""
    if draw < empty_share + anchored_share:
        return anchored_evidence(f"@{rng.choice(_ALIASES)}{rng.randrange(1, 10)}", head_of(log))
    return inline_evidence(log)
