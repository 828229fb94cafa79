"""The planner: ranks places. The tests say which block is suspicious; the model says which line of it.

In the line_repair dialect the model's own distribution over a window's lines breaks the ties of
Ochiai; in the chat dialect it is asked for an order. Places whose candidates keep failing sink.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes.model.v1 import model_pb2
from hermes_runtime.agents.conversation import Assignment, Say, sources_of
from hermes_runtime.agents.localize import suspicious_lines
from hermes_runtime.agents.patch import lines_touched
from hermes_runtime.agents.prompts import chat, line_repair
from hermes_runtime.agents.seeds import seed_of
from hermes_runtime.agents.windows import evidence_of, group
from hermes_runtime.errors import ContextTooShort

WINDOWS_MAX = 3
"""Windows that the model is asked about in one round."""

PLACES_MAX = 12
"""Places proposed in one round."""

TESTS_WEIGHT = 1.0
"""Weight of log(Ochiai) beside the model's log probability of a line."""

TRIED_PENALTY = 0.25
"""How much a place sinks for each of its candidates that failed."""


def shuffled_ties(places: Sequence[pb.Place], seed: int) -> list[pb.Place]:
    """The order by Ochiai alone, equals in seeded random order: localization without a model."""
    order = random.Random(seed)
    keyed = [(-place.ochiai, order.random(), index) for index, place in enumerate(places)]
    return [places[index] for _, _, index in sorted(keyed)]


class Planner:
    """Answers `rank_places` with Places."""

    role = pb.ROLE_PLANNER

    async def handle(self, assignment: Assignment) -> Sequence[Say]:
        inbox, profile = assignment.inbox, assignment.profile
        task = inbox.task()
        spectrum = inbox.spectrum()
        sources = sources_of(task, [file.file_path for file in spectrum.files])
        suspects = suspicious_lines(spectrum, sources)
        seed = seed_of(profile.seed, task.instance_id, "planner")
        if profile.strategy == agent_pb2.STRATEGY_ENUMERATE:
            ranked = shuffled_ties(suspects, seed)
        elif profile.dialect == "chat":
            ranked = await self._asked(assignment, suspects, sources)
        else:
            ranked = await self._scored(assignment, suspects, sources)
        content = pb.Content(places=pb.Places(places=ranked[:PLACES_MAX]))
        header = pb.Header(repo=task.repo, task_type="places", tool="planner", round=inbox.asked.round)
        if ranked:
            header.file_path = ranked[0].file_path
        return [Say(kind=pb.ACT_KIND_PROPOSE, content=content, header=header)]

    async def close(self) -> None:
        """Nothing is held."""

    async def _scored(
        self, assignment: Assignment, suspects: Sequence[pb.Place], sources: Mapping[str, str]
    ) -> list[pb.Place]:
        """Places by log P(line | window) + log(Ochiai), less what was tried in vain."""
        tried = lines_touched(outcome.patch for outcome in assignment.inbox.outcomes())
        evidence = evidence_of(assignment.inbox.evidence())
        ranked: list[pb.Place] = []
        too_long: ContextTooShort | None = None
        for block in group(suspects, sources, windows_max=WINDOWS_MAX):
            lines = block.window.line_numbers
            request = model_pb2.ScoreRequest(
                prompt=model_pb2.Prompt(text=line_repair.render(block.window, evidence)),
                continuations=[line_repair.place_token(k) for k in range(len(lines))],
                trace=assignment.trace,
            )
            try:
                logprobs = (await assignment.model.score(request)).logprobs
            except ContextTooShort as error:  # a window of long lines is left out, if another one fits
                too_long = error
                continue
            for k, line in enumerate(lines):
                if (place := block.places.get(line)) is None:
                    continue
                score = logprobs[k] + TESTS_WEIGHT * math.log(place.ochiai)
                score -= TRIED_PENALTY * tried.get((place.file_path, line), 0)
                ranked.append(_with_score(place, score))
        if too_long is not None and not ranked:
            raise too_long
        ranked.sort(key=lambda place: (-place.score, place.file_path, place.line))
        return ranked

    async def _asked(
        self, assignment: Assignment, suspects: Sequence[pb.Place], sources: Mapping[str, str]
    ) -> list[pb.Place]:
        """The order that the model answers with, then the rest in the order of the tests."""
        task = assignment.inbox.task()
        shortlist = list(suspects[:PLACES_MAX])
        if not shortlist:
            return []
        messages = chat.rank_messages(task, shortlist, sources, assignment.inbox.evidence())
        request = model_pb2.GenerateRequest(
            prompt=model_pb2.Prompt(messages=messages),
            max_tokens=64,
            search=model_pb2.SEARCH_GREEDY,
            trace=assignment.trace,
        )
        answer = (await assignment.model.generate(request)).completions[0].text
        order = chat.parse_order(answer, len(shortlist))
        rest = [index for index in range(len(shortlist)) if index not in order]
        return [_with_score(shortlist[index], -float(rank)) for rank, index in enumerate([*order, *rest])]


def _with_score(place: pb.Place, score: float) -> pb.Place:
    return pb.Place(file_path=place.file_path, line=place.line, ochiai=place.ochiai, score=score)
