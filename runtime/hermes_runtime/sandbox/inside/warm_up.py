"""Two tests that the zygote runs once, before the first fork: so plugins and pytest's reporting are loaded.

pytest imports an environment's plugins with its own loader, which costs a second where no bytecode may
be written, and would in every attempt.
"""

from __future__ import annotations


def test_that_passes(tmp_path: object, capsys: object) -> None:
    assert tmp_path is not capsys


def test_that_fails() -> None:
    told = {"left": [1, 2, 3]}
    assert told == {"left": [1, 2, 4]}
