"""Each family of models: what ours gives is what transformers' own generate gives, forks and all.

`python -m tests.contract.test_model_families` writes the table of docs/models.md anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.transformers_model import PIECE_TOKENS, TransformersModel
from tests.contract import tiny_families
from tests.contract.tiny_families import FAMILIES, WINDOW_TOKENS, Family

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
STARTS = ["", "<L0>", "    return a", "<L1>", "for item in items:"]
CONTINUATIONS = ["<L0>", "    return a + b\n", "x", "total += item.price<end>", "add(" * 9]
SHORT = "def add(a, b):\n"
LONG = "for item in items:\n    total += item.price\n" * 3
TOKENS = 28
PIECES = "assert add(1, 2) == 3, 'three'\n" * 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One model, loaded by us and by transformers."""

    ours: TransformersModel
    narrow: TransformersModel
    """Ours, which decodes one row at a time."""
    theirs: PreTrainedModel
    words: PreTrainedTokenizerBase

    def tokens(self, text: str) -> list[int]:
        return [int(number) for number in self.words.encode(text, add_special_tokens=False)]

    def generated(self, text: str, start: str = "", *, tokens: int, beams: int = 1) -> list[str]:
        """What transformers' own generate says, without sampling."""
        prompt = torch.tensor([self.tokens(text) + self.tokens(start)])
        with torch.inference_mode():
            found = self.theirs.generate(  # type: ignore[operator]  # half typed
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=tokens,
                num_beams=beams,
                num_return_sequences=beams,
                pad_token_id=0,
            )
        texts = []
        for row in found[:, prompt.shape[1] :].tolist():
            end = row.index(self.words.eos_token_id) if self.words.eos_token_id in row else len(row)
            texts.append(str(self.words.decode(row[:end], skip_special_tokens=False)))
        return texts


def loaded(folder: Path, slots: int) -> TransformersModel:
    spec = ModelSpec(
        backend=Backend.TRANSFORMERS,
        path=folder,
        device="cpu",
        dtype="float32",
        context_tokens=tiny_families.CONTEXT_TOKENS,
        slots=slots,
    )
    model = TransformersModel(spec)
    model.load()
    return model


@cache
def pair(family: Family) -> Pair:
    with tempfile.TemporaryDirectory() as parent:
        folder = tiny_families.write(Path(parent) / "model", family)
        theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        theirs.train(False)
        return Pair(
            ours=loaded(folder, 8),
            narrow=loaded(folder, 1),
            theirs=theirs,
            words=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )


def asked(text: str, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=pb.Prompt(text=text), **{"max_tokens": TOKENS} | fields)  # type: ignore[arg-type]


# What a model is asked for. Each gives wrong answers as a failed assertion, and what an architecture
# cannot do as Unsupported, which is what the table tells.


def decodes_greedily(both: Pair) -> None:
    for text in (SHORT, LONG, PIECES):
        assert [each.text for each in both.ours.generate(asked(text)).completions] == both.generated(
            text, tokens=TOKENS
        )


def decodes_forced_starts_together(both: Pair) -> None:
    for text in (SHORT, LONG):
        found = both.ours.generate(asked(text, prefixes=STARTS, n=2)).completions
        expected = [both.generated(text, start, tokens=TOKENS)[0] for start in STARTS for _ in range(2)]
        assert [each.text for each in found] == expected


def samples_many_rows(both: Pair) -> None:
    for text in (SHORT, LONG):
        surest = asked(text, search=pb.SEARCH_SAMPLE, n=5, top_k=1, seed=1)
        found = both.ours.generate(surest).completions
        assert [each.text for each in found] == both.generated(text, tokens=TOKENS) * 5
        request = asked(text, search=pb.SEARCH_SAMPLE, n=5, prefixes=STARTS[:3], seed=1)
        together, alone = both.ours.generate(request), both.narrow.generate(request)
        assert [each.text for each in together.completions] == [each.text for each in alone.completions]
        assert len({each.text for each in together.completions}) > 10


def finds_beams(both: Pair) -> None:
    for text in (SHORT, LONG):
        found = both.ours.generate(asked(text, search=pb.SEARCH_BEAM, n=3, max_tokens=12)).completions
        assert [each.text for each in found] == both.generated(text, tokens=12, beams=3)


def scores(both: Pair) -> None:
    for text in (SHORT, LONG, PIECES):
        request = pb.ScoreRequest(prompt=pb.Prompt(text=text), continuations=CONTINUATIONS)
        before = both.tokens(text)
        for words, found in zip(CONTINUATIONS, both.ours.score(request).logprobs, strict=True):
            after = both.tokens(words)
            with torch.inference_mode():
                told = both.theirs(torch.tensor([before + after])).logits.float().log_softmax(-1)[0]
            expected = sum(told[len(before) + at - 1, token].item() for at, token in enumerate(after))
            assert found == pytest.approx(expected, abs=1e-3)


ASKED: dict[str, Callable[[Pair], None]] = {
    "greedy": decodes_greedily,
    "forced starts": decodes_forced_starts_together,
    "sampled rows": samples_many_rows,
    "beams": finds_beams,
    "score": scores,
}


@cache
def cell(family: Family, asking: str) -> str:
    """ "yes", or why not."""
    try:
        ASKED[asking](pair(family))
    except errors.Unsupported as error:
        return f"no: {error}"
    return "yes"


def table() -> str:
    """The table of docs/models.md."""
    rows = [
        [
            family.name,
            f"`{type(pair(family).theirs).__name__}`",
            family.particular or "-",
            *(cell(family, asking) for asking in ASKED),
        ]
        for family in FAMILIES
    ]
    head = ["Family", "Class of transformers", "Particular", *ASKED]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> tuple[str, str, str]:
    """What stands before the table, the table, what follows."""
    before, rest = PAGE.read_text().split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


@pytest.mark.parametrize("asking", ASKED)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_gives_what_transformers_generates_or_says_that_it_cannot(family: Family, asking: str):
    assert cell(family, asking) == "yes" or cell(family, asking).startswith("no: ")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_texts_are_longer_than_a_window_and_one_longer_than_a_piece(family: Family):
    both = pair(family)
    window = getattr(both.theirs.config, "sliding_window", None) or WINDOW_TOKENS
    assert len(both.tokens(SHORT)) < window < len(both.tokens(LONG))
    assert PIECE_TOKENS < len(both.tokens(PIECES)) < tiny_families.CONTEXT_TOKENS - 60


def test_a_model_that_keeps_a_state_and_no_keys_is_refused_when_it_is_loaded(tmp_path: Path):
    folder = tiny_families.write(tmp_path / "model", tiny_families.STATE_SPACE)
    with pytest.raises(errors.Unsupported, match="cannot be forked"):
        loaded(folder, 1)


def test_the_table_of_the_page_is_what_was_found():
    assert page()[1].strip() == table(), "stale: run python -m tests.contract.test_model_families"


if __name__ == "__main__":
    before, _, after = page()
    PAGE.write_text(f"{before}\n{table()}\n{after}")
    sys.exit(0)
