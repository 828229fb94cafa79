"""The pages for those who install and run it name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hermes_operator.metrics import Metrics
from hermes_operator.names import Condition, Reason, Who

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
INSTALL = (ROOT / "docs" / "install.md").read_text()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_line_that_says_what_to_do(reason):
    rows = [line.split("|")[1] for line in OPERATIONS.splitlines() if line.startswith("|")]
    assert [row for row in rows if re.search(rf"\b{reason}\b", row)], f"{reason} is in no table"


def test_no_table_names_a_reason_that_there_is_not():
    told = {
        word.strip()
        for line in OPERATIONS.partition("## The operator")[0].splitlines()
        if line.startswith("|")
        for word in line.split("|")[1].split(",")
    }
    assert told - {"Reason", "---"} == {reason.value for reason in Reason}


@pytest.mark.parametrize("condition", list(Condition))
def test_every_condition_has_a_heading(condition):
    assert re.search(rf"^### {condition}\b", OPERATIONS, flags=re.MULTILINE)


def test_everyone_whose_failure_it_can_be_is_named():
    told = OPERATIONS.partition("### Complete")[2].partition("### Hermetic")[0]
    assert all(who in told for who in Who)


def test_every_metric_is_explained_and_no_other():
    text = Metrics().exposition().decode()
    there = set(re.findall(r"^# TYPE hermes_operator_(\w+)", text, flags=re.MULTILINE))
    there = {name for name in there if not name.endswith("_created")}
    told = set(re.findall(r"`(?:hermes_operator|…)_(\w+)", OPERATIONS.partition("## The operator")[2]))
    assert told == there


def test_values_that_the_pages_name_are_values_of_the_chart():
    values = yaml.safe_load((ROOT / "charts" / "hermes" / "values.yaml").read_text())
    tops = "|".join(values)
    named = set(re.findall(rf"(?:`|--set )((?:{tops})\.[A-Za-z.]+?)(?:=|`)", INSTALL + OPERATIONS))
    assert named
    for place in named:
        found = values
        for part in place.split("."):
            assert part in found, place
            found = found[part]
