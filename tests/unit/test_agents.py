"""Planner and coder, with a model that says what the test wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes.model.v1 import model_pb2
from hermes_runtime.agents.coder import Coder
from hermes_runtime.agents.conversation import Assignment, Heard, Inbox
from hermes_runtime.agents.drafts import Draft, Workbench
from hermes_runtime.agents.planner import Planner
from hermes_runtime.agents.seeds import seed_of
from hermes_runtime.agents.tester import limits_of
from hermes_runtime.errors import BadInput, ContextTooShort
from hermes_runtime.sandbox import Limits

SOURCE = """\
def f(x):
    y = x + 1
    z = y * 2
    return z
"""


class ShortModel:
    """A model that nothing fits into."""

    async def score(self, request: model_pb2.ScoreRequest) -> model_pb2.ScoreResponse:
        raise ContextTooShort("a prompt of 900 tokens, a context of 64")

    async def generate(self, request: model_pb2.GenerateRequest) -> model_pb2.GenerateResponse:
        raise ContextTooShort("a prompt of 900 tokens, a context of 64")

    async def context_tokens(self) -> int:
        return 64


class FakeModel:
    """Prefers place 2 of any window and its own lines, best first, to any edit that it is shown."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.prompts: list[str] = []

    async def score(self, request: model_pb2.ScoreRequest) -> model_pb2.ScoreResponse:
        self.prompts.append(request.prompt.text)
        logprobs = [
            -50.0 if "<end>" in text else -0.1 if text == "<L2>" else -3.0 for text in request.continuations
        ]
        return model_pb2.ScoreResponse(logprobs=logprobs)

    async def generate(self, request: model_pb2.GenerateRequest) -> model_pb2.GenerateResponse:
        self.prompts.append(request.prompt.text)
        return model_pb2.GenerateResponse(
            completions=[
                model_pb2.Completion(text=line, prefix=prefix, logprob=-float(rank))
                for prefix in range(len(request.prefixes))
                for rank, line in enumerate(self.lines)
            ]
        )

    async def context_tokens(self) -> int:
        return 1024


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "m.py").write_text(SOURCE)
    return tmp_path


def assignment(
    tree: Path, model: FakeModel | ShortModel, task_type: str, *contents: pb.Content, strategy=None, round=1
):
    task = pb.Task(instance_id="i", repo="r", tree=str(tree), editable_files=["m.py"])
    said = [pb.Content(task=task), *contents]
    heard = [Heard(act=pb.Act(), content=content) for content in said]
    heard.append(
        Heard(act=pb.Act(text="do", header=pb.Header(task_type=task_type, round=round)), content=None)
    )
    profile = agent_pb2.Profile(
        dialect="line_repair", seed=1, candidates=4, strategy=strategy or agent_pb2.STRATEGY_MODEL
    )
    inbox = Inbox(tuple(heard))
    return Assignment(inbox=inbox, profile=profile, trace="t", model=model, expense=agent_pb2.Expense())


def spectrum() -> pb.Content:
    file = pb.FileSpectrum(file_path="m.py", line_steps=[2, 1, 1], failing=[1, 1, 1], passing=[0, 0, 0])
    return pb.Content(spectrum=pb.Spectrum(files=[file], failing_count=1))


def places(*lines: int) -> pb.Content:
    found = [pb.Place(file_path="m.py", line=line, ochiai=1.0, score=-float(line)) for line in lines]
    return pb.Content(places=pb.Places(places=found))


def outcome(patch: str) -> pb.Content:
    return pb.Content(outcomes=pb.Outcomes(outcomes=[pb.Outcome(patch=patch, verdict=pb.VERDICT_FAILED)]))


async def test_the_model_breaks_the_ties_of_the_tests(tree):
    said = await Planner().handle(assignment(tree, FakeModel([]), "rank_places", spectrum()))
    assert [place.line for place in said[0].content.places.places] == [3, 2, 4]


async def test_a_place_whose_candidates_keep_failing_sinks(tree):
    patch = Workbench({"m.py": SOURCE}).best(
        [Draft(path="m.py", line=3, text=f"    z = y * {n}", score=0) for n in range(3, 20)], [], count=17
    )
    tried = [outcome(text) for text, _ in patch]
    said = await Planner().handle(assignment(tree, FakeModel([]), "rank_places", spectrum(), *tried))
    assert [place.line for place in said[0].content.places.places] == [2, 4, 3]


async def test_without_a_model_the_order_is_the_tests_alone_and_no_model_is_asked(tree):
    model = FakeModel([])
    strategy = agent_pb2.STRATEGY_ENUMERATE
    said = await Planner().handle(assignment(tree, model, "rank_places", spectrum(), strategy=strategy))
    assert {place.line for place in said[0].content.places.places} == {2, 3, 4}
    assert not model.prompts


async def test_an_anchored_log_reaches_the_prompt_by_its_alias_and_head(tree):
    model = FakeModel(["z = y * 3"])
    work = assignment(tree, model, "propose_patches", places(3))
    anchored = Heard(act=pb.Act(anchor=pb.Anchor(alias="@l0", head="assert 1 == 2")), content=None)
    work = Assignment(
        inbox=Inbox((work.inbox.heard[0], anchored, *work.inbox.heard[1:])),
        profile=work.profile,
        trace="t",
        model=model,
        expense=work.expense,
    )
    await Coder().handle(work)
    assert model.prompts[0].startswith("<err>@l0 assert 1 == 2<fn>")


async def test_candidates_come_best_first_each_program_once_and_none_that_changes_nothing(tree):
    model = FakeModel(["    z = y * 3", "    z = (y * 3)", "    z = y * 2", "    z = y *", "    z = y / 2"])
    said = await Coder().handle(assignment(tree, model, "propose_patches", places(3)))
    added = [
        [line for line in candidate.patch.splitlines() if line.startswith("+ ")]
        for candidate in said[-1].content.candidates.candidates
    ]
    assert added[:2] == [["+    z = y * 3"], ["+    z = y / 2"]]


async def test_what_was_tried_is_not_proposed_again_until_nothing_is_left_and_that_is_said(tree):
    tried: list[pb.Content] = []
    for number in range(1, 100):
        work = assignment(
            tree, FakeModel(["    z = y * 3"]), "propose_patches", places(3), *tried, round=number
        )
        said = await Coder().handle(work)
        if said[-1].kind == pb.ACT_KIND_ERROR:
            break
        tried += [outcome(candidate.patch) for candidate in said[-1].content.candidates.candidates]
    patches = [content.outcomes.outcomes[0].patch for content in tried]
    assert len(patches) == len(set(patches)) > 5
    assert said[0].content.refusal.reason == pb.REFUSAL_REASON_EXHAUSTED


async def test_the_control_enumerates_the_same_edits_in_the_same_seeded_order(tree):
    strategy = agent_pb2.STRATEGY_ENUMERATE
    said = [
        await Coder().handle(
            assignment(tree, FakeModel([]), "propose_patches", places(2, 3), strategy=strategy)
        )
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert len(said[0][-1].content.candidates.candidates) == 4


async def test_a_delivery_without_a_task_is_refused(tree):
    work = assignment(tree, FakeModel([]), "rank_places", spectrum())
    bare = Assignment(
        inbox=Inbox(work.inbox.heard[1:]),
        profile=work.profile,
        trace="t",
        model=work.model,
        expense=work.expense,
    )
    with pytest.raises(BadInput, match="no task"):
        await Planner().handle(bare)


@pytest.mark.parametrize(("agent", "task_type"), [(Planner(), "rank_places"), (Coder(), "propose_patches")])
async def test_where_no_window_fits_the_model_the_error_says_so(agent, task_type, tree):
    with pytest.raises(ContextTooShort, match="900 tokens"):
        await agent.handle(assignment(tree, ShortModel(), task_type, spectrum(), places(2, 3)))


async def test_a_file_outside_the_tree_is_refused(tree):
    bad = pb.Content(places=pb.Places(places=[pb.Place(file_path="../../etc/passwd", line=1)]))
    with pytest.raises(BadInput, match="outside the tree"):
        await Coder().handle(assignment(tree, FakeModel([]), "propose_patches", bad))


def test_seeds_depend_on_every_part():
    assert len({seed_of(1, "a"), seed_of(2, "a"), seed_of(1, "b"), seed_of(1, "a", 1), seed_of(1)}) == 5


@pytest.mark.parametrize(
    ("timeout", "baseline", "limits"),
    [
        pytest.param(30.0, None, Limits(wall_seconds=30.0, cpu_seconds=30), id="the baseline has it all"),
        pytest.param(30.0, 0.2, Limits(wall_seconds=10.0, cpu_seconds=2), id="never less than 2 s of work"),
        pytest.param(60.0, 1.5, Limits(wall_seconds=25.0, cpu_seconds=5), id="thrice the baseline's work"),
        pytest.param(
            30.0, 20.0, Limits(wall_seconds=30.0, cpu_seconds=30), id="never more than the instance's"
        ),
    ],
)
def test_a_candidate_is_given_work_to_do_and_five_times_as_long_to_wait(
    timeout: float, baseline: float | None, limits: Limits
):
    assert limits_of(pb.Task(test_timeout_seconds=timeout), baseline) == limits
