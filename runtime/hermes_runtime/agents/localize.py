"""Where the fault may be, by the tests alone: Ochiai over the lines that failing tests ran.

Source: Ochiai's coefficient as used for spectrum-based fault localization: failing tests that ran the
line over sqrt(all failing x all that ran it). A statement that spans lines is suspicious as a whole.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate

from hermes.act.v1 import act_pb2 as pb


def ochiai(failing: int, passing: int, failing_count: int) -> float:
    """0 to 1. `failing` and `passing` ran the line; `failing_count` tests fail in all."""
    ran = failing_count * (failing + passing)
    return failing / math.sqrt(ran) if ran else 0.0


def suspicious_lines(spectrum: pb.Spectrum, sources: Mapping[str, str]) -> list[pb.Place]:
    """Lines that a failing test ran, most suspicious first; ties in the order of file and line.

    `sources` are the files' texts; a file that is missing or does not parse counts line by line.
    """
    places: list[pb.Place] = []
    for file in spectrum.files:
        spans = _statement_lines(sources.get(file.file_path, ""))
        best: dict[int, float] = {}
        lines = accumulate(file.line_steps)
        for line, failing, passing in zip(lines, file.failing, file.passing, strict=True):
            suspicion = ochiai(failing, passing, spectrum.failing_count)
            if suspicion > 0:
                for covered in spans.get(line, (line,)):
                    best[covered] = max(best.get(covered, 0.0), suspicion)
        places += [
            pb.Place(file_path=file.file_path, line=line, ochiai=value) for line, value in best.items()
        ]
    return sorted(places, key=lambda place: (-place.ochiai, place.file_path, place.line))


@lru_cache(maxsize=32)
def _statement_lines(source: str) -> Mapping[int, range]:
    """For the first line of each statement, its lines; of a compound statement, those of its head."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return {}
    return dict(_spans(tree))


def _spans(tree: ast.AST) -> Iterator[tuple[int, range]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = node.end_lineno or node.lineno
            if isinstance(body, list) and body:
                last = max(node.lineno, body[0].lineno - 1)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # a docstring is never at fault
            yield node.lineno, range(node.lineno, last + 1)
