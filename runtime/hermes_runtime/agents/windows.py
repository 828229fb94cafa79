"""What the line_repair dialect shows of a task: windows around suspicious places, and one evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.agents.conversation import Evidence
from hermes_runtime.agents.prompts import line_repair
from hermes_runtime.agents.prompts.line_repair import Outline, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOfPlaces:
    """A window and the suspicious lines in it: file line -> place."""

    window: Window
    places: Mapping[int, pb.Place]


def group(
    places: Sequence[pb.Place], sources: Mapping[str, str], *, windows_max: int
) -> list[WindowOfPlaces]:
    """The windows that hold the most suspicious places, in the order of their best place."""
    found: list[WindowOfPlaces] = []
    by_file: dict[str, dict[int, pb.Place]] = {}
    for place in places:
        by_file.setdefault(place.file_path, {})[place.line] = place
    seen: set[tuple[str, int]] = set()
    for place in places:
        if (place.file_path, place.line) in seen or len(found) == windows_max:
            continue
        lines = by_file[place.file_path]
        outline = outline_of(sources[place.file_path], place.file_path)
        window = outline.window(place.line, tuple(lines)) if outline else None
        if window is None:
            continue
        inside = {line: lines[line] for line in window.line_numbers if line in lines}
        seen |= {(place.file_path, line) for line in inside}
        if inside and place.line in inside:
            found.append(WindowOfPlaces(window=window, places=inside))
    return found


@lru_cache(maxsize=32)
def outline_of(source: str, path: str) -> Outline | None:
    """The outline of a source; parsing a large file takes longer than asking the model about it."""
    return Outline.of(source, path)


def evidence_of(shown: Sequence[Evidence]) -> str:
    """The first log (the baseline's), as the bundled model was trained to read it; "" without one."""
    if not shown:
        return ""
    first = shown[0]
    if first.alias:
        return line_repair.anchored_evidence(first.alias, first.head)
    return line_repair.inline_evidence(first.text)
