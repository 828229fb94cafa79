from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.scripted import ScriptedModel, tokens_of

CODER = """
dialect: chat
context_tokens: 4096
rules:
  - match: 'not an edit'
    completions:
      - "<<<<<<< SEARCH\\n    return a - b\\n=======\\n    return a + b\\n>>>>>>> REPLACE"
  - role: user
    match: 'assert add'
    turn: 0
    completions: ["I think that line 2 is wrong."]
  - match: '^<err>'
    starts: {"<L1>": [{text: "    return a + b", logprob: -0.25}, "    return b"]}
    completions: ["    pass"]
    scores: {"<L1>": -0.1, "<L0>": -3.5}
default: {completions: ["I do not know."]}
"""


def loaded(folder: Path, script: str, **fields: object) -> ScriptedModel:
    path = folder / "script.yaml"
    path.write_text(script)
    model = ScriptedModel(ModelSpec(backend=Backend.SCRIPTED, path=path, **fields))  # type: ignore[arg-type]
    model.load()
    return model


def said(model: ScriptedModel, prompt: pb.Prompt, **fields: object) -> list[str]:
    given = {"max_tokens": 100} | fields
    request = pb.GenerateRequest(prompt=prompt, **given)  # type: ignore[arg-type]  # a table of fields
    return [completion.text for completion in model.generate(request).completions]


def chat(*turns: tuple[str, str]) -> pb.Prompt:
    return pb.Prompt(messages=[pb.Message(role=role, content=content) for role, content in turns])


def test_it_plays_a_coder_whose_first_edit_is_malformed(tmp_path):
    model = loaded(tmp_path, CODER)
    task = ("user", "E   assert add(1, 2) == 3")
    (first,) = said(model, chat(("system", "You repair code."), task))
    assert first == "I think that line 2 is wrong."
    (second,) = said(model, chat(task, ("assistant", first), ("user", "That is not an edit: …")))
    assert second.startswith("<<<<<<< SEARCH\n    return a - b\n=======")


def test_forced_starts_and_scores_are_answered_as_listed(tmp_path):
    model = loaded(tmp_path, CODER)
    request = pb.GenerateRequest(
        prompt=pb.Prompt(text="<err>assert<fix>"),
        prefixes=["<L1>", "<L0>"],
        n=3,
        max_tokens=20,
        search=pb.SEARCH_SAMPLE,
    )
    completions = model.generate(request).completions
    texts = [completion.text.strip() for completion in completions]
    assert texts == ["return a + b", "return b", "return a + b", "pass", "pass", "pass"]
    assert [completion.prefix_logprob for completion in completions] == [-0.1] * 3 + [-3.5] * 3
    assert completions[0].logprob == -0.25
    scores = pb.ScoreRequest(prompt=request.prompt, continuations=["<L0>", "other words"])
    assert list(model.score(scores).logprobs) == [-3.5, -2]


def test_what_no_rule_fits_has_the_default(tmp_path):
    assert said(loaded(tmp_path, CODER), pb.Prompt(text="hello")) == ["I do not know."]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", []), ("a b", ["a", " b"]), ("\n  a\n", ["\n  a", "\n"]), ("  ", ["  "])],
)
def test_a_token_is_a_word_with_the_space_before_it(text, tokens):
    assert tokens_of(text) == tokens
    assert "".join(tokens) == text


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("default: {completions: []}", "default.completions"),
        ("{}", "default"),
        ("default: {completions: [a]}\nrulez: []", "rulez"),
        ("default: {completions: [a], match: '('}", "not a regular expression"),
        ("default: {completions: [a]", "is not YAML"),
        ("- a", "at its top"),
    ],
)
def test_a_script_with_a_mistake_is_refused_by_place(tmp_path, script, says):
    with pytest.raises(errors.BadInput, match=says):
        loaded(tmp_path, script)


def test_a_script_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(errors.NotFound, match=r"none\.yaml"):
        ScriptedModel(ModelSpec(backend=Backend.SCRIPTED, path=tmp_path / "none.yaml")).load()


def test_a_context_longer_than_the_scripts_is_refused(tmp_path):
    with pytest.raises(errors.Unsupported, match="contextTokens"):
        loaded(tmp_path, CODER, context_tokens=5000)


def test_it_shows_life_while_it_waits(tmp_path):
    beats: list[int] = []
    path = tmp_path / "slow.yaml"
    path.write_text("{delay_ms: 60, default: {completions: [a]}}")
    model = ScriptedModel(ModelSpec(backend=Backend.SCRIPTED, path=path), lambda: beats.append(1))
    model.load()
    model.generate(pb.GenerateRequest(prompt=pb.Prompt(text="x"), max_tokens=1))
    assert len(beats) >= 2


def test_it_dies_after_as_many_requests_as_the_script_says(tmp_path):
    path = tmp_path / "mortal.yaml"
    path.write_text("{fail_after: 2, default: {completions: [a]}}")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from hermes.model.v1 import model_pb2 as pb\n"
        "from hermes_runtime.models import Backend, ModelSpec\n"
        "from hermes_runtime.models.scripted import ScriptedModel\n"
        "model = ScriptedModel(ModelSpec(backend=Backend.SCRIPTED, path=Path(sys.argv[1])))\n"
        "model.load()\n"
        "for number in range(5):\n"
        "    model.generate(pb.GenerateRequest(prompt=pb.Prompt(text='x'), max_tokens=1))\n"
        "    print(number, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (ended.stdout.split(), ended.returncode) == (["0", "1"], -signal.SIGKILL)
