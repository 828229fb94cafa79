"""What an attempt runs: pytest in this process, one line of JSON for each thing found out.

The request: `tests` (node ids; a file or a class stands for all in it; none at all: everything),
`deselect`, `stop_at_first`, `coverage` (files of the tree, relative). The lines: {"collected": [ids]},
{"test": id, "status": …} as each test ends, and last {"done": exit code, "coverage": {file: {line:
[indices into "covered"]}}}. So an attempt that is killed has still told what it knew.

Coverage is the C tracer's, by test; lines of a module's own body count as run by none.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest


def main(request: dict[str, Any], report: int) -> None:
    """Run the tests; ends the process."""
    for root in reversed(request["import_roots"]):
        if root not in sys.path:
            sys.path.insert(0, root)
    tree: str = request["tree"]
    sys.argv = ["pytest"]
    plugin = _Plugin(request, report)
    files: list[str] = []
    for test in request["tests"]:
        file = test.split("::")[0]
        if file not in files and os.path.exists(os.path.join(tree, file)):
            files.append(file)
    arguments = ["-q", "--tb=short", "--color=no", "--no-header", "--rootdir=" + tree]
    arguments += ["-p", "no:cacheprovider", "-p", "no:randomly", "--continue-on-collection-errors"]
    arguments += ["--basetemp=" + request["temporary"] + "/pytest"]
    arguments += ["-x"] if request.get("stop_at_first") else []
    arguments += ["--no-cov"] if _has_pytest_cov() else []
    arguments += ["--deselect=" + test for test in request.get("deselect", ())]
    code = 0
    if files or not request["tests"]:
        code = int(pytest.main([*arguments, *files], plugins=[plugin]))
    plugin.say({"done": code, **plugin.coverage()})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def warm_up(scratch: str) -> None:
    """Load what pytest loads: run two tests once, in the zygote, and forget them. Prints nothing."""
    import coverage

    path, modules = list(sys.path), set(sys.modules)
    kept = os.dup(1), os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    here = os.path.dirname(os.path.abspath(__file__))
    tempfile.tempdir = scratch
    folder = tempfile.mkdtemp()
    try:
        measuring = coverage.Coverage(data_file=None, include=[here + "/*"], config_file=False)
        measuring.start()
        measuring.switch_context("0")
        pytest.main(
            ["-q", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-p", "no:randomly"]  # noqa: RUF005
            + ["-c", os.devnull, "--rootdir=" + folder, "--basetemp=" + folder + "/pytest"]
            + [here + "/warm_up.py"]
        )
        measuring.stop()
        measuring.get_data().contexts_by_lineno(here + "/warm_up.py")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        shutil.rmtree(folder, ignore_errors=True)
        tempfile.tempdir = None
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for one in (silence, *kept):
            os.close(one)
        sys.path[:] = path
        for name in ("warm_up", "conftest"):
            if name not in modules:
                sys.modules.pop(name, None)


def _has_pytest_cov() -> bool:
    import importlib.util

    return importlib.util.find_spec("pytest_cov") is not None


class _Plugin:
    """Selects the requested tests, and tells each one's status and the lines it ran."""

    def __init__(self, request: dict[str, Any], report: int) -> None:
        self._wanted: list[str] = request["tests"]
        self._tree: str = request["tree"]
        self._report = report
        self._status: dict[str, str] = {}
        self._covered: list[str] = []
        self._files: list[str] = list(request.get("coverage") or ())
        self._coverage: Any | None = self._start_coverage() if self._files else None

    def say(self, what: dict[str, Any]) -> None:
        """Write one line of the report."""
        line = json.dumps(what, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self._report, line) :]

    def _start_coverage(self) -> Any:
        import coverage

        paths = [os.path.join(self._tree, file) for file in self._files]
        measuring = coverage.Coverage(data_file=None, include=paths, config_file=False)
        measuring._warn_no_data = False
        measuring.start()
        return measuring

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        if self._wanted:
            exact = set(self._wanted)
            groups = tuple(part for one in self._wanted for part in (one + "::", one + "["))
            dropped = [item for item in items if not (item.nodeid in exact or item.nodeid.startswith(groups))]
            if dropped:
                gone = set(map(id, dropped))
                items[:] = [item for item in items if id(item) not in gone]
                config.hook.pytest_deselected(items=dropped)
        self.say({"collected": [item.nodeid for item in items]})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.say({"broken": report.nodeid})

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        if self._coverage is not None:
            self._coverage.switch_context(str(len(self._covered)))
            self._covered.append(item.nodeid)
        yield
        if self._coverage is not None:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        test, status = report.nodeid, None
        if hasattr(report, "wasxfail"):
            status = "xfailed" if report.skipped else "passed"
        elif report.skipped:
            status = "skipped"
        elif report.failed:
            status = "failed" if report.when == "call" else "error"
        elif report.when == "call":
            status = "passed"
        if status is not None and _WORSE.index(status) >= _WORSE.index(self._status.get(test, "passed")):
            self._status[test] = status
        if report.when == "teardown":
            self.say({"test": test, "status": self._status.get(test, "passed")})

    def coverage(self) -> dict[str, Any]:
        """Lines by test; stops measuring."""
        if self._coverage is None:
            return {}
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, dict[int, list[int]]] = {}
        for file in self._files:
            path = os.path.join(self._tree, file)
            by_line = data.contexts_by_lineno(path)
            if not by_line:
                continue
            inside = lines_of_functions(path)
            lines[file] = {
                line: sorted(int(context) for context in contexts if context)
                for line, contexts in sorted(by_line.items())
                if line in inside and any(contexts)
            }
        return {"coverage": lines, "covered": self._covered}


_WORSE = ("passed", "xfailed", "skipped", "failed", "error")


def lines_of_functions(path: str) -> set[int]:
    """Lines with code of functions, not of the module's or a class's own body; none if it cannot compile."""
    try:
        with open(path, "rb") as file:
            module = compile(file.read(), path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return set()
    out: set[int] = set()
    left = [module]
    while left:
        code = left.pop()
        left += [one for one in code.co_consts if isinstance(one, CodeType)]
        if code.co_flags & 1:  # CO_OPTIMIZED: a function, a lambda or a comprehension
            own = _lines(code)
            out |= own - {code.co_firstlineno} or own
    return out


def _lines(code: CodeType) -> set[int]:
    import dis

    return {line for _, line in dis.findlinestarts(code) if line}
