"""Our decoding against transformers' own, and what must not change an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.transformers_model import TransformersModel
from tests.contract import tiny_model

TEXTS = ["def add(a, b):\n", "for item in items:\n    total", "assert add(1, 2) == 3, 'th", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    model.train(False)
    return model


def loaded(folder: Path, beat=lambda: None, **fields: object) -> TransformersModel:
    given = {"backend": Backend.TRANSFORMERS, "path": folder, "context_tokens": 256, "device": "cpu"} | fields
    model = TransformersModel(ModelSpec(**given), beat)  # type: ignore[arg-type]  # a table of fields
    model.load()
    return model


@pytest.fixture(scope="module")
def ours(folder: Path) -> TransformersModel:
    return loaded(folder)


def asked(text: str, **fields: object) -> pb.GenerateRequest:
    given = {"max_tokens": 40} | fields
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), **given)  # type: ignore[arg-type]  # a table


def their_texts(folder: Path, theirs: PreTrainedModel, text: str, **how: object) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        found = theirs.generate(**prompt, do_sample=False, pad_token_id=0, **how)  # type: ignore[operator]
    texts: list[str] = []
    for row in found[:, prompt["input_ids"].shape[1] :].tolist():
        end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        texts.append(str(tokenizer.decode(row[:end], skip_special_tokens=False)))
    return texts


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_is_what_transformers_generates(folder, theirs, ours, text):
    mine = ours.generate(asked(text)).completions[0]
    assert [mine.text] == their_texts(folder, theirs, text, max_new_tokens=40)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
@pytest.mark.parametrize("text", TEXTS)
def test_beam_search_is_what_transformers_finds(folder, theirs, ours, text, width):
    mine = ours.generate(asked(text, search=pb.SEARCH_BEAM, n=width, max_tokens=15)).completions
    expected = their_texts(
        folder, theirs, text, max_new_tokens=15, num_beams=width, num_return_sequences=width
    )
    if width > 1:
        assert [completion.text for completion in mine] == expected
    else:
        assert len(mine) == 1


def test_a_score_is_the_sum_of_teacher_forced_log_probabilities(folder, theirs, ours):
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    continuations = ["<L0>", "    return a + b\n", "x", "total += item.price<end>", "add(" * 9]
    scores = ours.score(pb.ScoreRequest(prompt=pb.Prompt(text=TEXTS[0]), continuations=continuations))
    for text, score in zip(continuations, scores.logprobs, strict=True):
        before = tokenizer.encode(TEXTS[0], add_special_tokens=False)
        after = tokenizer.encode(text, add_special_tokens=False)
        with torch.inference_mode():
            logits = theirs(torch.tensor([before + after])).logits.log_softmax(-1)[0]
        expected = sum(logits[len(before) + at - 1, token].item() for at, token in enumerate(after))
        assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_the_number_of_slots_changes_no_answer(folder, ours, slots):
    request = asked(
        TEXTS[0], search=pb.SEARCH_SAMPLE, n=7, prefixes=["<L0>", "<L1>", "", "    return a"], seed=3
    )
    scores = pb.ScoreRequest(prompt=request.prompt, continuations=["a", "b" * 20, "c d", "return", "<end>"])
    other = loaded(folder, slots=slots)
    expected = ours.generate(request).completions
    found = other.generate(request).completions
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-3)
    assert other.score(scores).logprobs == pytest.approx(ours.score(scores).logprobs, abs=1e-3)


def test_a_completion_does_not_depend_on_how_many_are_asked_for(ours):
    many = ours.generate(asked(TEXTS[0], search=pb.SEARCH_SAMPLE, n=20, seed=5)).completions
    few = ours.generate(asked(TEXTS[0], search=pb.SEARCH_SAMPLE, n=3, seed=5)).completions
    assert [each.text for each in few] == [each.text for each in many[:3]]
    assert len({each.text for each in many}) > 10


def test_the_seed_changes_what_is_sampled(ours):
    one = ours.generate(asked(TEXTS[0], search=pb.SEARCH_SAMPLE, seed=1)).completions[0]
    other = ours.generate(asked(TEXTS[0], search=pb.SEARCH_SAMPLE, seed=2)).completions[0]
    assert one.text != other.text


def test_sampling_among_one_token_is_greedy(ours):
    greedy = ours.generate(asked(TEXTS[1])).completions[0].text
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert ours.generate(asked(TEXTS[1], search=pb.SEARCH_SAMPLE, **narrow)).completions[0].text == greedy


def test_sampled_log_probabilities_are_those_at_temperature_one(ours):
    request = asked(TEXTS[0], search=pb.SEARCH_SAMPLE, n=20, max_tokens=1, temperature=3.0)
    checked = 0
    for completion in ours.generate(request).completions:
        if "\ufffd" not in completion.text and completion.text:
            score = ours.score(pb.ScoreRequest(prompt=request.prompt, continuations=[completion.text]))
            if score.tokens[0] == 1:
                assert score.logprobs[0] == pytest.approx(completion.logprob, abs=1e-4)
                checked += 1
    assert checked >= 3


def test_a_special_token_as_stop_text_ends_a_completion(ours):
    request = asked(TEXTS[0], search=pb.SEARCH_SAMPLE, n=40, temperature=2.0, stop=["<end>"], seed=1)
    ended = [
        each for each in ours.generate(request).completions if each.finish_reason == pb.FINISH_REASON_STOP
    ]
    assert ended
    assert not any("<end>" in each.text or "</s>" in each.text for each in ended)


def test_a_chat_is_rendered_by_the_models_own_template(ours):
    chat = pb.Prompt(messages=[pb.Message(role="user", content="add two")])
    spelled = pb.Prompt(text="<|user|>add two<end><|assistant|>")
    assert ours.generate(pb.GenerateRequest(prompt=chat, max_tokens=8)) == ours.generate(
        pb.GenerateRequest(prompt=spelled, max_tokens=8)
    )


def test_a_model_without_a_chat_template_names_the_dialect_to_use(tmp_path):
    model = loaded(tiny_model.write(tmp_path / "tiny", chat=False))
    chat = pb.Prompt(messages=[pb.Message(role="user", content="add two")])
    with pytest.raises(errors.Unsupported, match="use the dialect 'line_repair'"):
        model.generate(pb.GenerateRequest(prompt=chat, max_tokens=8))


def test_an_empty_prompt_starts_with_the_models_start_token(ours):
    empty = ours.generate(asked(""))
    assert empty.usage.prompt_tokens_new == 1
    assert empty.completions == ours.generate(asked("<s>")).completions


def test_running_out_of_memory_ends_the_request_and_not_the_model(folder):
    left = [0]

    def beat() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError

    model = loaded(folder, beat)
    expected = model.generate(asked(TEXTS[0]))
    left[0] = 5
    with pytest.raises(errors.Exhausted, match="fewer completions"):
        model.generate(asked(TEXTS[0]))
    assert model.generate(asked(TEXTS[0])) == expected


def test_wider_beams_than_slots_are_refused_with_the_remedy(ours):
    with pytest.raises(errors.Exhausted, match=r"spec\.model\.slots"):
        ours.generate(asked(TEXTS[0], search=pb.SEARCH_BEAM, n=9))


def test_half_precision_is_loaded_as_asked_and_repeats_itself(folder):
    model = loaded(folder, dtype="bfloat16")
    request = asked(TEXTS[0], search=pb.SEARCH_SAMPLE, n=5, seed=9)
    assert model.describe().dtype == "bfloat16"
    assert model.generate(request) == model.generate(request)
    assert model.describe().weight_bytes < loaded(folder).describe().weight_bytes * 0.51 + 1024


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"context_tokens": 257}, errors.Unsupported, "256 tokens, but 257"),
        ({"dtype": "float8"}, errors.BadInput, "float8"),
        ({"quantization": "int3"}, errors.BadInput, "int3"),
        ({"device": "cuda:99"}, errors.Unsupported, "cuda:99"),
    ],
)
def test_a_spec_that_cannot_be_met_is_refused(folder, fields, error, says):
    if says == "cuda:99" and torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    with pytest.raises(error, match=says):
        loaded(folder, **fields)
