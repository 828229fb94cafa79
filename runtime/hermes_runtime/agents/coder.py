"""The coder: proposes patches at the planner's places, best first, none twice.

line_repair: what the model writes at the best lines of each window, and the single edits of those
lines, all ranked by the model's own probability of line and text. chat: search/replace edits. Without a
model: the edits of the places' lines in seeded random order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes.model.v1 import model_pb2
from hermes_runtime.agents.conversation import Assignment, Say, sources_of, tried_patches
from hermes_runtime.agents.drafts import Draft, Workbench, replaced_line
from hermes_runtime.agents.edits import Edit, ast_key, edits_of
from hermes_runtime.agents.patch import apply_patch, make_patch, paths_of
from hermes_runtime.agents.planner import WINDOWS_MAX
from hermes_runtime.agents.prompts import chat, line_repair
from hermes_runtime.agents.seeds import seed_of
from hermes_runtime.agents.windows import WindowOfPlaces, evidence_of, group
from hermes_runtime.errors import ContextTooShort

LINES_MAX = 6
"""Lines at which the model is asked for candidates in one round."""

BEAMS = 6
"""Completions for each line, in the first round."""

EDITS_MAX = 96
"""Single edits of a window that the model is asked to rank, those of the best places first."""

ANSWER_TOKENS_MAX = 40
"""Longest replacement line, in tokens."""

CHAT_TOKENS_MAX = 1024
"""Longest answer of a chat model, in tokens; less where that is over half of its context."""

CONTROL_PLACES = 10
"""Places whose edits the control enumerates."""


class Coder:
    """Answers `propose_patches` with Candidates, and with an ERROR for each edit that cannot be used."""

    role = pb.ROLE_CODER

    async def handle(self, assignment: Assignment) -> Sequence[Say]:
        inbox, profile = assignment.inbox, assignment.profile
        task, places = inbox.task(), inbox.places()
        sources = sources_of(task, sorted({place.file_path for place in places}))
        refusals: list[pb.Refusal] = []
        tried = tried_patches(inbox.outcomes())
        if profile.strategy == agent_pb2.STRATEGY_ENUMERATE:
            drafts = enumerated(places, sources, seed=seed_of(profile.seed, task.instance_id, "coder"))
            fresh = Workbench(sources).best(drafts, tried, count=profile.candidates)
        elif profile.dialect == "chat":
            patches = await self._chatted(assignment, places, sources, refusals)
            fresh = unseen(patches, tried, sources)[: profile.candidates]
        else:
            drafts = await self._beamed(assignment, places, sources, tried)
            fresh = Workbench(sources).best(drafts, tried, count=profile.candidates)
        candidates = [
            pb.Candidate(id=f"r{inbox.asked.round}c{index}", patch=patch, score=score)
            for index, (patch, score) in enumerate(fresh, start=1)
        ]
        header = pb.Header(repo=task.repo, tool="coder", round=inbox.asked.round)
        said = [_refused(refusal, header) for refusal in refusals]
        if not candidates and not refusals:
            exhausted = pb.Refusal(
                reason=pb.REFUSAL_REASON_EXHAUSTED,
                message=f"{task.instance_id}: nothing new to propose at {len(places)} places",
            )
            return [_refused(exhausted, header)]
        content = pb.Content(candidates=pb.Candidates(candidates=candidates))
        header.task_type = "candidates"
        return [*said, Say(kind=pb.ACT_KIND_PROPOSE, content=content, header=header)]

    async def close(self) -> None:
        """Nothing is held."""

    async def _beamed(
        self,
        assignment: Assignment,
        places: Sequence[pb.Place],
        sources: Mapping[str, str],
        tried: set[str],
    ) -> list[Draft]:
        gone = {replaced_line(patch) for patch in tried}
        evidence = evidence_of(assignment.inbox.evidence())
        chosen = places[:LINES_MAX]
        found: list[Draft] = []
        too_long: ContextTooShort | None = None
        for block in group(chosen, sources, windows_max=WINDOWS_MAX):
            prompt = model_pb2.Prompt(text=line_repair.render(block.window, evidence))
            try:
                if assignment.inbox.asked.round == 1:  # asked again, it would write the same
                    found += await self._completed(assignment, block, prompt)
                edits = [
                    edit
                    for edit in edits_of(sources[block.window.path], list(block.places))
                    if (block.window.path, edit.line, edit.new_line) not in gone
                ]
                found += await self._scored(assignment, block, prompt, edits)
            except ContextTooShort as error:  # a window of long lines is left out, if another one fits
                too_long = error
        if too_long is not None and not found:
            raise too_long
        return sorted(found, key=lambda draft: (-draft.score, draft.path, draft.line, draft.text))

    async def _completed(
        self, assignment: Assignment, block: WindowOfPlaces, prompt: model_pb2.Prompt
    ) -> list[Draft]:
        """What the model itself would write at each of the window's places."""
        rows = [k for k, line in enumerate(block.window.line_numbers) if line in block.places]
        request = model_pb2.GenerateRequest(
            prompt=prompt,
            prefixes=[line_repair.place_token(k) for k in rows],
            n=BEAMS,
            max_tokens=ANSWER_TOKENS_MAX,
            search=model_pb2.SEARCH_BEAM,
            stop=[line_repair.END],
            trace=assignment.trace,
        )
        found: list[Draft] = []
        for completion in (await assignment.model.generate(request)).completions:
            row = rows[completion.prefix]
            line = block.window.line_numbers[row]
            answer = line_repair.parse_answer(line_repair.place_token(row) + completion.text)
            if isinstance(answer, line_repair.Answer):
                text = line_repair.restore(block.window, row, answer.line)
                score = block.places[line].score + completion.logprob
                found.append(Draft(path=block.window.path, line=line, text=text, score=score))
        return found

    async def _scored(
        self,
        assignment: Assignment,
        block: WindowOfPlaces,
        prompt: model_pb2.Prompt,
        untried: Sequence[Edit],
    ) -> list[Draft]:
        """Single edits of the window's places, by how likely the model finds them."""
        window = block.window
        edits = sorted(untried, key=lambda edit: -block.places[edit.line].score)[:EDITS_MAX]
        if not edits:
            return []
        rows = [window.line_numbers.index(edit.line) for edit in edits]
        shown = [edit.new_line[len(window.margin) :] for edit in edits]
        places = sorted(set(rows))
        answers = [
            line_repair.render_answer(line_repair.Answer(place=row, line=text))
            for row, text in zip(rows, shown, strict=True)
        ]
        request = model_pb2.ScoreRequest(
            prompt=prompt,
            continuations=[*(line_repair.place_token(row) for row in places), *answers],
            trace=assignment.trace,
        )
        logprobs = (await assignment.model.score(request)).logprobs
        of_place = dict(zip(places, logprobs, strict=False))
        return [
            Draft(
                path=window.path,
                line=edit.line,
                text=edit.new_line,
                score=block.places[edit.line].score + logprob - of_place[row],
            )
            for edit, row, logprob in zip(edits, rows, logprobs[len(places) :], strict=True)
        ]

    async def _chatted(
        self,
        assignment: Assignment,
        places: Sequence[pb.Place],
        sources: Mapping[str, str],
        refusals: list[pb.Refusal],
    ) -> list[tuple[str, float]]:
        inbox, profile = assignment.inbox, assignment.profile
        task = inbox.task()
        messages = chat.repair_messages(
            task, places, sources, inbox.evidence(), inbox.outcomes(), inbox.refusals()
        )
        request = model_pb2.GenerateRequest(
            prompt=model_pb2.Prompt(messages=messages),
            n=profile.candidates,
            max_tokens=min(CHAT_TOKENS_MAX, await assignment.model.context_tokens() // 2),
            search=model_pb2.SEARCH_SAMPLE,
            temperature=0.8,
            top_p=0.95,
            seed=seed_of(profile.seed, task.instance_id, "coder", inbox.asked.round),
            trace=assignment.trace,
        )
        found: list[tuple[str, float]] = []
        for completion in (await assignment.model.generate(request)).completions:
            edit = chat.parse_edits(completion.text, sources)
            if isinstance(edit, chat.BadEdit):
                refusal = pb.Refusal(
                    reason=pb.REFUSAL_REASON_MALFORMED_EDIT, message=edit.message, subject=edit.subject
                )
                if refusal not in refusals:
                    refusals.append(refusal)
            else:
                patch = "".join(
                    make_patch(path, sources[path], after) for path, after in sorted(edit.items())
                )
                found.append((patch, completion.logprob))
        return sorted(found, key=lambda pair: -pair[1])


def enumerated(places: Sequence[pb.Place], sources: Mapping[str, str], *, seed: int) -> list[Draft]:
    """Every single edit of the first places' lines, in seeded random order."""
    chosen = places[:CONTROL_PLACES]
    found: list[Draft] = []
    for path in sorted({place.file_path for place in chosen}):
        lines = [place.line for place in chosen if place.file_path == path]
        found += [
            Draft(path=path, line=edit.line, text=edit.new_line, score=0.0)
            for edit in edits_of(sources[path], lines)
        ]
    random.Random(seed).shuffle(found)
    return found


def unseen(
    patches: Sequence[tuple[str, float]], tried: set[str], sources: Mapping[str, str]
) -> list[tuple[str, float]]:
    """The patches that make a program not tested yet, in order; equal programs count once.

    The unpatched program counts as tested.
    """

    def programs(patch: str) -> tuple[tuple[str, str], ...]:
        return tuple((path, ast_key(text)) for path, text in sorted(apply_patch(sources, patch).items()))

    seen = {programs(patch) for patch in tried if _applies(sources, patch)}
    fresh: list[tuple[str, float]] = []
    for patch, score in patches:
        key = programs(patch)
        unchanged = all(ast_key(sources[path]) == text_key for path, text_key in key if path in sources)
        if key not in seen and not unchanged:
            seen.add(key)
            fresh.append((patch, score))
    return fresh


def _applies(sources: Mapping[str, str], patch: str) -> bool:
    return all(path in sources for path in paths_of(patch))


def _refused(refusal: pb.Refusal, header: pb.Header) -> Say:
    about = pb.Header(repo=header.repo, tool=header.tool, round=header.round, task_type="refusal")
    return Say(kind=pb.ACT_KIND_ERROR, content=pb.Content(refusal=refusal), header=about)
