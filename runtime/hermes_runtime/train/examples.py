"""Which examples a module gives: functions, a defect in each, and the line as it was.

An example is a window of the `line_repair` dialect on a mutated function; the answer is the line
before the mutation. Some answers copy a line that is right, and teach nothing about places. Every
draw is seeded by the module, so the order of work and the number of workers change nothing.
"""

from __future__ import annotations

import hashlib
import random
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hermes_runtime.agents.edits import EditKind, EditSpace, ast_key
from hermes_runtime.agents.prompts.line_repair import (
    LINES_MAX,
    Answer,
    Function,
    Outline,
    Window,
    render_answer,
    render_lines,
)
from hermes_runtime.train.evidence import Defect, log_of, rendered
from hermes_runtime.train.recipe import Recipe
from hermes_runtime.train.sources import Module

_WEIGHTS: dict[EditKind, float] = {
    EditKind.COMPARISON: 2.0,
    EditKind.ARITHMETIC: 1.5,
    EditKind.BOOLEAN: 1.2,
    EditKind.NEGATION: 1.5,
    EditKind.CONSTANT: 2.0,
    EditKind.VARIABLE: 3.0,
    EditKind.ATTRIBUTE: 1.0,
    EditKind.CALL: 1.0,
    EditKind.ARGUMENT_ORDER: 1.0,
    EditKind.SLICE_BOUND: 1.0,
    EditKind.LOOP_CONTROL: 0.7,
    EditKind.ADDED_TERM: 1.0,
    EditKind.DROPPED_TERM: 2.0,
}
_LINES_MIN = 3
_FUNCTION_LINES_MAX = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One prompt and its answer. A pure function of module, recipe and seed."""

    prompt: str
    place: int
    answer: str
    """Starts with the place token, ends with `<end>`."""
    kind: str
    """The defect's kind; "" where the answered line was right."""
    function_key: str

    @property
    def is_defect(self) -> bool:
        return bool(self.kind)


def function_keys(module: Module) -> dict[str, Function]:
    """The module's functions of a usable length by `ast_key`, so that copies can be left out."""
    outline = Outline.of(module.text, module.path)
    if outline is None:
        return {}
    lines = module.text.split("\n")
    keyed: dict[str, Function] = {}
    for function in outline.functions:
        shown = outline.shown(function)
        if len(shown) < _LINES_MIN or len(shown) > _FUNCTION_LINES_MAX:
            continue
        text = textwrap.dedent("\n".join(lines[function.first_line - 1 : function.last_line]))
        try:
            keyed.setdefault(ast_key(text), function)
        except (SyntaxError, ValueError, RecursionError):
            continue
    return keyed


def plain_functions(module: Module) -> Iterator[str]:
    """Functions as a window shows them, for the tokenizer."""
    outline = Outline.of(module.text, module.path)
    if outline is None:
        return
    for function in outline.functions:
        window = outline.window(function.last_line)
        if window is not None:
            yield "\n".join(window.lines)


def examples_of(module: Module, recipe: Recipe, only: Collection[str] | None = None) -> Iterator[Example]:
    """The examples of a module: of all its functions, or of those whose key is in `only`."""
    outline = Outline.of(module.text, module.path)
    if outline is None:
        return
    keyed = {key: f for key, f in function_keys(module).items() if only is None or key in only}
    if not keyed:
        return
    space = EditSpace(module.text)
    by_line: dict[int, list[int]] = {}
    for place in range(len(space)):
        by_line.setdefault(space.line(place), []).append(place)
    lines = module.text.split("\n")
    for key, function in keyed.items():
        seed = f"{recipe.seed}:{module.package}:{module.path}:{key}"
        rng = random.Random(hashlib.sha256(seed.encode()).digest())
        shown = [n for n in outline.shown(function) if outline.function_at(n) == function]
        places = [place for n in shown for place in by_line.get(n, ())]
        parameters = _parameters(lines, function)
        for edit_place in _sample(space, places, recipe.mutants_per_function, rng):
            edit = space.checked(edit_place)
            if edit is None:
                continue
            focus = rng.sample(shown, min(len(shown), 6))
            window = outline.window(edit.line, [*focus, edit.line])
            if window is None:
                continue
            at = window.place_of(edit.line)
            new_shown = edit.new_line[len(window.margin) :].rstrip()
            if at is None or not new_shown.strip():
                continue
            shown_lines = list(window.lines)
            original = shown_lines[at]
            shown_lines[at] = new_shown
            defect = Defect(
                function=function.name,
                module=module.path,
                line_number=edit.line,
                mutated=new_shown,
                later=window.lines[rng.randrange(at, len(window.lines))],
                parameters=parameters,
            )
            evidence = rendered(
                log_of(defect, rng), rng, recipe.empty_evidence_share, recipe.anchored_evidence_share
            )
            if rng.random() < recipe.correct_share:
                yield _copy(window, shown_lines, at, evidence, key, rng)
                continue
            yield Example(
                prompt=render_lines(shown_lines, evidence),
                place=at,
                answer=render_answer(Answer(place=at, line=original)),
                kind=edit.kind.value,
                function_key=key,
            )


def _copy(
    window: Window, mutated: list[str], at: int, evidence: str, key: str, rng: random.Random
) -> Example:
    """A line that is right, copied: of the function as it was, or of the mutated one elsewhere."""
    lines = list(window.lines) if rng.random() < 0.5 or len(mutated) == 1 else mutated
    places = [k for k in range(min(len(lines), LINES_MAX)) if lines is not mutated or k != at]
    k = rng.choice(places)
    return Example(
        prompt=render_lines(lines, evidence),
        place=k,
        answer=render_answer(Answer(place=k, line=lines[k])),
        kind="",
        function_key=key,
    )


def _sample(space: EditSpace, places: list[int], count: int, rng: random.Random) -> list[int]:
    """Different edits: a kind by weight, then an edit of that kind; at most one for two lines."""
    by_kind: dict[EditKind, list[int]] = {}
    for place in places:
        by_kind.setdefault(space.kind(place), []).append(place)
    chosen: list[int] = []
    kinds = sorted(by_kind)
    while kinds and len(chosen) < count:
        kind = rng.choices(kinds, weights=[_WEIGHTS[k] for k in kinds])[0]
        pool = by_kind[kind]
        chosen.append(pool.pop(rng.randrange(len(pool))))
        if not pool:
            kinds.remove(kind)
    return chosen


def _parameters(lines: list[str], function: Function) -> tuple[str, ...]:
    """Names between the parentheses of the `def` line, roughly: evidence needs no more."""
    for number in range(function.first_line, function.last_line + 1):
        line = lines[number - 1].strip()
        if line.startswith(("def ", "async def ")):
            inside = line.partition("(")[2].rpartition(")")[0] or line.partition("(")[2]
            names = [part.split(":")[0].split("=")[0].strip(" *") for part in inside.split(",")]
            return tuple(name for name in names if name.isidentifier())
    return ()
