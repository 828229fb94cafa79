"""What every model must do, scripted or real, in process, through the manager, and over gRPC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Model
from tests.contract.model_kinds import DOORS, KINDS, opened

TEXT = "def add(a, b):\n"
SEARCHES = [pb.SEARCH_GREEDY, pb.SEARCH_SAMPLE, pb.SEARCH_BEAM]


@pytest.fixture(scope="module", params=[(kind, door) for kind in KINDS for door in DOORS], ids=" ".join)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    kind, door = request.param
    with opened(kind, door, tmp_path_factory.mktemp("models")) as made:
        yield made


def asked(text: str = TEXT, **fields: object) -> pb.GenerateRequest:
    given = {"max_tokens": 12} | fields
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), **given)  # type: ignore[arg-type]  # a table


def counted(model: Model, *texts: str) -> list[int]:
    return list(model.count_tokens(pb.CountTokensRequest(texts=texts)).counts)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_same_request_has_the_same_answer(model: Model, search):
    request = asked(search=search, n=4, seed=7, prefixes=["", "    return"], temperature=0.8, top_p=0.95)
    first, second = model.generate(request), model.generate(request)
    assert first == second


@pytest.mark.parametrize("search", SEARCHES)
def test_each_start_has_its_completions_in_order(model: Model, search):
    completions = model.generate(asked(search=search, n=3, prefixes=["", "x", "    return"])).completions
    assert [completion.prefix for completion in completions] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(completion.tokens <= 12 for completion in completions)
    assert all(completion.logprob < 0 for completion in completions)
    assert [completion.prefix_logprob for completion in completions[:3]] == [0, 0, 0]
    assert all(completion.prefix_logprob < 0 for completion in completions[3:])


def test_unset_fields_ask_for_one_greedy_completion(model: Model):
    plain = model.generate(asked())
    assert len(plain.completions) == 1
    assert plain == model.generate(asked(search=pb.SEARCH_GREEDY, n=1))


def test_greedy_completions_of_a_start_are_equal(model: Model):
    completions = model.generate(asked(n=3)).completions
    assert completions[0] == completions[1] == completions[2]


def test_a_completion_ends_before_its_stop_text(model: Model):
    whole = model.generate(asked()).completions[0].text
    stop = whole[len(whole) // 2 :][:2]
    ended = model.generate(asked(stop=["never said", stop])).completions[0]
    assert ended.text == whole[: whole.index(stop)]
    assert ended.finish_reason == pb.FINISH_REASON_STOP


def test_a_completion_that_is_cut_says_so(model: Model):
    cut = model.generate(asked(max_tokens=2)).completions[0]
    assert (cut.tokens, cut.finish_reason) == (2, pb.FINISH_REASON_LENGTH)


def test_usage_is_exact_to_the_token(model: Model):
    prompt, one, other = counted(model, TEXT, "x", "    return")
    response = model.generate(asked(search=pb.SEARCH_SAMPLE, n=2, prefixes=["x", "    return"]))
    assert response.usage == pb.Usage(
        prompt_tokens_new=prompt + one + other,
        decoded_tokens=sum(completion.tokens for completion in response.completions),
    )


def test_usage_of_scores_is_exact_to_the_token(model: Model):
    texts = ["    return a + b", "x", ""]
    prompt, *counts = counted(model, TEXT, *texts)
    response = model.score(pb.ScoreRequest(prompt=pb.Prompt(text=TEXT), continuations=texts))
    assert list(response.tokens) == counts
    assert response.usage == pb.Usage(prompt_tokens_new=prompt + sum(counts))


def test_what_a_trace_reads_again_is_counted_as_such(model: Model):
    longer = TEXT + " now more"
    short, long = counted(model, TEXT, longer)
    first = model.generate(asked(trace="again")).usage
    second = model.generate(asked(longer, trace="again")).usage
    third = model.score(pb.ScoreRequest(prompt=pb.Prompt(text=longer), trace="again")).usage
    elsewhere = model.generate(asked(trace="elsewhere")).usage
    assert (first.prompt_tokens_new, first.prompt_tokens_reread) == (short, 0)
    assert second.prompt_tokens_new + second.prompt_tokens_reread == long
    assert 0 < second.prompt_tokens_reread <= short
    assert (third.prompt_tokens_new, third.prompt_tokens_reread) == (0, long)
    assert elsewhere.prompt_tokens_reread == 0


def test_greedy_log_probability_is_the_score_of_the_same_text(model: Model):
    compared = 0
    for text in (TEXT, "for item in items:\n", "assert ", "x", "if value", "return", "raise", "total", "é"):
        for allowed in (1, 2, 12):
            completion = model.generate(asked(text, max_tokens=allowed)).completions[0]
            if completion.finish_reason != pb.FINISH_REASON_LENGTH and allowed != 12:
                continue
            if counted(model, completion.text) != [completion.tokens] or "\ufffd" in completion.text:
                continue  # ended by a token that is not in the text, or not how the text is cut into tokens
            score = model.score(pb.ScoreRequest(prompt=pb.Prompt(text=text), continuations=[completion.text]))
            assert score.logprobs[0] == pytest.approx(completion.logprob, abs=1e-4)
            compared += 1
    assert compared >= 3


def test_a_forced_start_has_the_score_of_its_text(model: Model):
    start = "    return"
    completion = model.generate(asked(prefixes=[start])).completions[0]
    score = model.score(pb.ScoreRequest(prompt=pb.Prompt(text=TEXT), continuations=[start]))
    assert score.logprobs[0] == pytest.approx(completion.prefix_logprob, abs=1e-4)


def test_the_empty_continuation_is_certain(model: Model):
    response = model.score(pb.ScoreRequest(prompt=pb.Prompt(text=TEXT), continuations=["", "x"]))
    assert (response.logprobs[0], response.tokens[0]) == (0, 0)
    assert response.logprobs[1] < 0


def test_a_context_that_is_too_short_is_refused_with_both_numbers(model: Model):
    (prompt,) = counted(model, TEXT)
    with pytest.raises(errors.ContextTooShort, match=rf"prompt of {prompt} tokens.*context is 256"):
        model.generate(asked(max_tokens=257 - prompt))
    assert model.generate(asked(max_tokens=256 - prompt)).completions
    with pytest.raises(errors.ContextTooShort):
        model.score(pb.ScoreRequest(prompt=pb.Prompt(text=TEXT), continuations=["a b" * 300]))


def test_a_request_that_cannot_be_used_leaves_the_model_usable(model: Model):
    with pytest.raises(errors.BadInput, match="max_tokens"):
        model.generate(asked(max_tokens=0))
    with pytest.raises(errors.Exhausted):
        model.generate(asked(n=5000))
    assert model.generate(asked()).completions


def test_it_says_what_was_loaded(model: Model):
    described = model.describe()
    assert described.backend in ("scripted", "transformers")
    assert described.context_tokens == 256
    assert described.device == "cpu"
    if described.backend == "transformers":
        assert len(described.tree_sha256) == len(described.tokenizer_sha256) == 64
        assert described.parameters * 4 <= described.weight_bytes + 4096 * 4
        assert described.verified_files >= 3
        assert any(each.startswith("torch ") for each in described.software)
