"""`hermes shard`: one shard of a run, in a pod whose other containers serve."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from hermes_runtime.cli.parser import Commands, verb
from hermes_runtime.errors import BadInput


def add(commands: Commands) -> None:
    """Add `shard`."""
    parser = verb(
        commands,
        "shard",
        "Do one shard of a run on a cluster; started by the operator, not by hand.",
        _shard,
        example="JOB_COMPLETION_INDEX=0 hermes shard --run-id team.night.0a1b2c3d",
    )
    parser.add_argument("--run-id", required=True, help="what results and events are kept under")
    parser.add_argument("--sockets", type=Path, default=Path("/run/hermes"), help="folder of the sockets")
    parser.add_argument("--work", type=Path, default=Path("/work"), help="folder shared with the agents")
    parser.add_argument("--models", type=Path, default=Path("/models"), help="folder of the model cache")
    parser.add_argument("--termination-log", type=Path, help="file for what is told at the end")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines")


def _shard(arguments: argparse.Namespace) -> int:
    from hermes_runtime.evaluate.shard import Request, shard
    from hermes_runtime.models.cache import cache_folder

    return shard(
        Request(
            document=os.environ.get("HERMES_RUN_DOCUMENT", ""),
            run_id=arguments.run_id,
            index=_number("JOB_COMPLETION_INDEX", 0),
            attempt=_number("HERMES_ATTEMPT", 1),
            sockets=arguments.sockets.absolute(),
            work=arguments.work.absolute(),
            models=arguments.models.absolute(),
            cache=cache_folder(os.environ, Path.home()).absolute(),
            termination_log=arguments.termination_log,
            json_progress=arguments.json,
        )
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise BadInput(f"{name}={text!r} is no number: Kubernetes sets it in an Indexed Job")
    return int(text)
