"""`hermes run`: prepare, seal, drive, report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hermes_runtime.cli.parser import Commands, verb


def add(commands: Commands) -> None:
    """Add `run`."""
    parser = verb(
        commands,
        "run",
        "Run a document on this machine; interrupted, the same command goes on where it was.",
        _run,
        example="hermes run -f examples/quickstart.yaml --set spec.evaluate.instances.mutants.count=5",
    )
    parser.add_argument("-f", "--file", type=Path, required=True, help="the run document (YAML)")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/<metadata.name>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="put a value over the document's"
    )
    parser.add_argument("--cache", type=Path, help="folder for what is fetched once (default: $HERMES_CACHE)")
    parser.add_argument(
        "--prepare-only", action="store_true", help="fetch, build and check everything; run nothing"
    )
    parser.add_argument("--json", action="store_true", help="progress as JSON lines; the summary on stdout")


def _run(arguments: argparse.Namespace) -> int:
    from hermes_runtime.document import parse
    from hermes_runtime.errors import NotFound
    from hermes_runtime.evaluate.run import Request, run

    if not arguments.file.is_file():
        raise NotFound(f"{arguments.file} is not there; examples/quickstart.yaml is one to start from")
    document = parse(
        arguments.file.read_text(encoding="utf-8"), name=str(arguments.file), overrides=arguments.set
    )
    request = Request(
        document=document,
        base=arguments.file.parent.absolute(),
        out=(arguments.out or Path("runs") / document.metadata.name).absolute(),
        cache=arguments.cache.absolute() if arguments.cache else None,
        prepare_only=arguments.prepare_only,
        json_progress=arguments.json,
    )
    outcome = run(request)
    if arguments.json and outcome.summary is not None:
        json.dump(outcome.summary, sys.stdout, indent=2)
        print()
    elif outcome.report is not None:
        print(f"report: {outcome.report}")
    return outcome.exit_code
