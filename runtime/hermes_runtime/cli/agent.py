"""`hermes agent serve`: one planner, coder or tester as a process."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from hermes_runtime.cli.parser import Commands, noun, verb
from hermes_runtime.supervise.seal import seal


def add(commands: Commands) -> None:
    """Add `agent`."""
    verbs = noun(commands, "agent", "Handlers of acts.")
    serve = verb(
        verbs,
        "serve",
        "Serve one agent on a Unix socket until SIGTERM.",
        _serve,
        example="hermes agent serve coder --socket s/coder --store s/store --model s/model",
    )
    serve.add_argument("role", choices=["planner", "coder", "tester"])
    serve.add_argument("--socket", type=Path, required=True, help="where to serve")
    serve.add_argument("--store", type=Path, required=True, help="the store's socket")
    serve.add_argument("--model", type=Path, required=True, help="the model's socket")
    serve.add_argument("--sandbox", default="auto", choices=["auto", "bubblewrap", "landlock"])
    serve.add_argument("--seal", action="store_true", help="first of all, give up all but Unix sockets")
    serve.add_argument("--ready-file", type=Path, help="file that is there while the agent serves")
    serve.add_argument("--end-with-parent", action="store_true", help="end when standard input does")


def _serve(arguments: argparse.Namespace) -> int:
    wall = seal() if arguments.seal else None  # before anything that follows brings threads
    from hermes_runtime.agents.service import serve
    from hermes_runtime.supervise.parent import end_with_parent

    if arguments.end_with_parent:
        end_with_parent()
    asyncio.run(
        serve(
            arguments.role,
            socket=arguments.socket,
            store=arguments.store,
            model=arguments.model,
            sandbox=arguments.sandbox,
            ready_file=arguments.ready_file,
            seal=wall,
        )
    )
    return 0
