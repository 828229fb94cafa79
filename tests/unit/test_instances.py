from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermes_runtime.errors import BadInput, NotFound
from hermes_runtime.evaluate.instances import Instance, read_instances, to_line

LEAST: dict[str, object] = {
    "instance_id": "calc__1",
    "repo": "calc",
    "problem_statement": "add() subtracts",
    "FAIL_TO_PASS": ["tests/test_calc.py::test_add"],
    "PASS_TO_PASS": [],
    "source": "calc",
}


def write(folder: Path, *rows: dict[str, object]) -> Path:
    file = folder / "instances.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path):
    file = write(tmp_path, {**LEAST, "python": "env/bin/python"})
    (instance,) = read_instances(file)
    assert instance.source == str(tmp_path / "calc")
    assert instance.python == str(tmp_path / "env" / "bin" / "python")


def test_an_interpreter_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "real" / "bin").mkdir(parents=True)
    (tmp_path / "real" / "bin" / "python").symlink_to("/usr/bin/python3")
    (tmp_path / "env").symlink_to(tmp_path / "real")
    (instance,) = read_instances(write(tmp_path, {**LEAST, "python": "env/bin/python"}))
    assert instance.python == str(tmp_path / "real" / "bin" / "python")


def test_lists_of_tests_may_be_json_strings_as_swe_bench_writes_them(tmp_path):
    (instance,) = read_instances(write(tmp_path, {**LEAST, "FAIL_TO_PASS": '["a::b", "a::c"]'}))
    assert instance.FAIL_TO_PASS == ("a::b", "a::c")


def test_reading_what_was_written_gives_the_instance_back(tmp_path):
    text = "ünï\n\u2028x"  # U+2028 ends a line for str.splitlines
    instance = Instance.model_validate({**LEAST, "source": str(tmp_path), "problem_statement": text})
    file = tmp_path / "instances.jsonl"
    file.write_text(to_line(instance) + "\n", encoding="utf-8")
    assert list(read_instances(file)) == [instance]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"FAIL_TO_PASS": []}, "FAIL_TO_PASS is empty", id="nothing to show"),
        pytest.param({"visible_tests": ["other"]}, "visible_tests not in FAIL_TO_PASS", id="unknown visible"),
        pytest.param(
            {"PASS_TO_PASS": LEAST["FAIL_TO_PASS"]}, "in FAIL_TO_PASS and in PASS_TO_PASS", id="both"
        ),
        pytest.param({"instance_id": "../x"}, "instance_id", id="an id that is a path"),
        pytest.param({"surprise": 1}, "surprise", id="unknown field"),
        pytest.param({"FAIL_TO_PASS": "not json"}, "FAIL_TO_PASS", id="a string that is no list"),
        pytest.param({"test_timeout_seconds": 0}, "test_timeout_seconds", id="no time"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_reason(tmp_path, change, why):
    with pytest.raises(BadInput, match=f"line 2: .*{why}"):
        list(read_instances(write(tmp_path, LEAST, {**LEAST, "instance_id": "b", **change})))


def test_the_same_id_twice_is_refused(tmp_path):
    with pytest.raises(BadInput, match="there twice"):
        list(read_instances(write(tmp_path, LEAST, LEAST)))


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(NotFound, match="hermes dataset mutants"):
        list(read_instances(tmp_path / "none.jsonl"))
