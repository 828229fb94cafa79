"""Where the fault may be, by the tests alone."""

import pytest

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.agents.localize import ochiai, suspicious_lines
from hermes_runtime.agents.planner import shuffled_ties

SOURCE = """\
def f(x,
      y):
    total = (x +
             y)
    return total
"""


@pytest.mark.parametrize(
    ("failing", "passing", "failing_count", "expected"),
    [
        pytest.param(2, 0, 2, 1.0, id="run by every failing test and by no other"),
        pytest.param(0, 5, 2, 0.0, id="run by no failing test"),
        pytest.param(1, 3, 1, 0.5, id="run by the failing test and three others"),
        pytest.param(0, 0, 0, 0.0, id="run by nobody"),
    ],
)
def test_ochiai(failing, passing, failing_count, expected):
    assert ochiai(failing, passing, failing_count) == pytest.approx(expected)


def spectrum(*lines):
    file = pb.FileSpectrum(file_path="m.py")
    before = 0
    for line, failing, passing in lines:
        file.line_steps.append(line - before)
        before = line
        file.failing.append(failing)
        file.passing.append(passing)
    return pb.Spectrum(files=[file], failing_count=1, passing_count=3)


def test_a_statement_over_several_lines_is_suspicious_as_a_whole():
    places = suspicious_lines(spectrum((3, 1, 0), (5, 1, 3)), {"m.py": SOURCE})
    assert [(place.line, place.ochiai) for place in places] == [(3, 1.0), (4, 1.0), (5, 0.5)]


def test_a_file_that_does_not_parse_counts_line_by_line():
    places = suspicious_lines(spectrum((3, 1, 0)), {"m.py": "def f(:\n"})
    assert [place.line for place in places] == [3]


def test_ties_are_shuffled_by_the_seed_and_only_ties():
    places = [pb.Place(line=n, ochiai=0.5 if n > 1 else 1.0) for n in range(1, 30)]
    one, other = shuffled_ties(places, 1), shuffled_ties(places, 2)
    assert one[0].line == other[0].line == 1
    assert [p.line for p in one] != [p.line for p in other]
    assert [p.line for p in one] == [p.line for p in shuffled_ties(places, 1)]
