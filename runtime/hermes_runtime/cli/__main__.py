"""`hermes`: the parser of all nouns, and errors as exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hermes_runtime.cli import agent, dataset, fetch, model, run, shard, store, views
from hermes_runtime.cli.parser import Command
from hermes_runtime.document import DocumentError
from hermes_runtime.errors import BadInput, HermesError
from hermes_runtime.supervise.init import leave_process_1

EXAMPLES = """example:
  hermes run -f examples/quickstart.yaml     run it; the same command goes on where it was stopped
  hermes report runs/quickstart              write the report again from what is recorded
  hermes explain runs/quickstart INSTANCE    why one instance ended as it did
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="hermes",
        description="Runs multi-agent LLM work on this machine and measures what each way of talking costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nouns = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, fetch, views, model, store, dataset, agent, shard):
        module.add(nouns)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    leave_process_1()
    arguments = parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except (DocumentError, BadInput) as error:
        print(f"hermes: {error}", file=sys.stderr)
        return 2
    except HermesError as error:
        print(f"hermes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hermes: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
