"""The table of platforms: what it says, what a trial takes away, and what is named instead.

`python -m tests.unit.test_model_platform` writes the table of docs/models.md anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_runtime.models.platform import (
    MATRIX,
    Choice,
    Platform,
    Result,
    Standing,
    Tried,
    alternatives,
    platform_of,
    problem,
    refusal,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- platforms: begin -->", "<!-- platforms: end -->"


def table() -> str:
    """The table of docs/models.md."""
    lines = [["Platform", *Choice], ["---"] * (len(Choice) + 1)]
    for platform, row in MATRIX.items():
        cells = [
            ": ".join(
                part
                for part in (row[choice].standing, row[choice].note + _instead(row[choice].instead))
                if part
            )
            for choice in Choice
        ]
        lines.append([platform, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _instead(choice: Choice | None) -> str:
    return f"; {choice} instead" if choice else ""


def page() -> tuple[str, str, str]:
    """What stands before the table, the table, what follows."""
    before, rest = PAGE.read_text().split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


def test_the_table_of_the_page_is_that_of_the_code():
    assert page()[1].strip() == table(), "stale: run python -m tests.unit.test_model_platform"


@pytest.mark.parametrize(
    ("device", "machine", "flags", "capability", "is_hip", "expected"),
    [
        ("cuda:0", "x86_64", (), (9, 0), False, Platform.CUDA_80),
        ("cuda:0", "x86_64", (), (8, 0), False, Platform.CUDA_80),
        ("cuda", "x86_64", (), (7, 5), False, Platform.CUDA_75),
        ("cuda:1", "x86_64", (), (7, 2), False, Platform.CUDA_60),
        ("cuda:1", "x86_64", (), (6, 0), False, Platform.CUDA_60),
        ("cuda:1", "x86_64", (), (5, 2), False, Platform.OTHER),
        ("cuda:0", "x86_64", (), (9, 4), True, Platform.ROCM),
        ("xpu:0", "x86_64", ("avx2",), None, False, Platform.XPU),
        ("mps", "arm64", (), None, False, Platform.MPS),
        ("cpu", "x86_64", ("avx", "avx2"), None, False, Platform.CPU_X86),
        ("cpu", "x86_64", ("avx",), None, False, Platform.OTHER),
        ("cpu", "aarch64", ("asimd",), None, False, Platform.CPU_ARM),
        ("cpu", "arm64", (), None, False, Platform.CPU_ARM),
        ("cpu", "riscv64", (), None, False, Platform.OTHER),
    ],
)
def test_a_device_is_of_one_platform(device, machine, flags, capability, is_hip, expected):
    found = platform_of(device, machine=machine, cpu_flags=flags, capability=capability, is_hip=is_hip)
    assert found is expected


@pytest.mark.parametrize("platform", list(Platform))
def test_every_platform_has_one_first_choice_and_an_entry_for_each_other(platform: Platform):
    row = MATRIX[platform]
    assert set(row) == set(Choice)
    assert [entry.standing for entry in row.values()].count(Standing.FIRST) == 1


@pytest.mark.parametrize("platform", list(Platform))
@pytest.mark.parametrize("choice", list(Choice))
def test_what_is_refused_names_something_that_is_not(platform: Platform, choice: Choice):
    entry = MATRIX[platform][choice]
    assert (entry.standing is Standing.REFUSED) == (entry.instead is not None)
    if entry.instead is not None:
        assert MATRIX[platform][entry.instead].standing is not Standing.REFUSED
        assert entry.note


@pytest.mark.parametrize("platform", list(Platform))
@pytest.mark.parametrize("choice", list(Choice))
def test_alternatives_are_others_that_the_table_allows_and_never_without_a_plain_type(platform, choice):
    found = alternatives(choice, platform)
    assert choice not in found
    assert len(set(found)) == len(found)
    assert all(MATRIX[platform][each].standing is not Standing.REFUSED for each in found)
    assert any(each.quantization == "none" for each in found)


@pytest.mark.parametrize(
    ("choice", "platform", "expected"),
    [
        (Choice.INT8, Platform.CUDA_60, [Choice.NF4, Choice.FLOAT16, Choice.FLOAT32]),
        (Choice.NF4, Platform.CPU_X86, [Choice.INT8, Choice.BFLOAT16, Choice.FLOAT32, Choice.FLOAT16]),
        (Choice.NF4, Platform.OTHER, [Choice.FLOAT32, Choice.FLOAT16, Choice.BFLOAT16]),
        (Choice.BFLOAT16, Platform.CUDA_75, [Choice.FLOAT16, Choice.FLOAT32]),
    ],
)
def test_who_asks_for_few_bits_is_offered_few_bits_first(choice, platform, expected):
    assert alternatives(choice, platform) == expected


def tried(result: Result, detail: str = "") -> Tried:
    return Tried(choice=Choice.NF4, result=result, detail=detail)


@pytest.mark.parametrize(
    ("platform", "trial", "says"),
    [
        (Platform.CPU_X86, None, None),
        (Platform.CPU_X86, tried(Result.OK), None),
        (Platform.CPU_X86, tried(Result.CRASHED, "SIGSEGV"), "crashed: SIGSEGV"),
        (Platform.CPU_X86, tried(Result.REFUSED, "no kernel"), "was refused: no kernel"),
        (Platform.CPU_X86, tried(Result.WRONG, "likeness 0.1"), "computed something else: likeness 0.1"),
        (Platform.OTHER, tried(Result.OK), "is not made for it"),
    ],
)
def test_a_trial_takes_away_from_the_table_and_never_adds(platform, trial, says):
    found = problem(Choice.NF4, platform, trial)
    assert (found is None) if says is None else (found is not None and says in found)


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        (Choice.INT8, "set spec.model.quantization to int8"),
        (Choice.BFLOAT16, "set spec.model.quantization to none (bfloat16 works here)"),
        (None, "use another host"),
    ],
)
def test_a_refusal_names_the_host_the_reason_and_the_remedy(instead, says):
    text = refusal(Choice.NF4, Platform.CPU_X86, "it crashed", instead)
    assert text.startswith("nf4 cannot be had on this host (CPU, x86-64 with AVX2): it crashed; ")
    assert says in text


if __name__ == "__main__":
    before, _, after = page()
    PAGE.write_text(f"{before}\n{table()}\n{after}")
