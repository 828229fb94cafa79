"""`hermes report` and `hermes explain`: views of what a run recorded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hermes_runtime.cli.parser import Commands, verb


def add(commands: Commands) -> None:
    """Add `report` and `explain`."""
    report = verb(
        commands,
        "report",
        "Write a run's summary, tables and report.html again from its store.",
        _report,
        example="hermes report runs/quickstart",
    )
    report.add_argument("folder", type=Path, help="the run's folder")
    explain = verb(
        commands,
        "explain",
        "Tell why one instance ended as it did: what was seen, suspected, tried, submitted.",
        _explain,
        example="hermes explain runs/quickstart toolz__mutant-0003 --arm PM",
    )
    explain.add_argument("folder", type=Path, help="the run's folder")
    explain.add_argument("instance", help="the instance's id")
    explain.add_argument("--arm", help="only this arm (default: all)")


def _report(arguments: argparse.Namespace) -> int:
    from hermes_runtime.evaluate.views import write_views

    print(f"report: {write_views(arguments.folder.absolute())}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from hermes_runtime.evaluate.views import explain_instance

    colour = sys.stdout.isatty()
    print(explain_instance(arguments.folder.absolute(), arguments.instance, arguments.arm, colour=colour))
    return 0
