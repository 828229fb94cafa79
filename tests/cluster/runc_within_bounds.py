#!/usr/bin/env python3
"""runc for a root that lacks CAP_SYS_RESOURCE: asks for what this root may give, and no more.

`docker run --privileged`, which kind lives on, asks for every capability, and runc refuses where one is
missing. This stands in runc's place: it takes that capability, a negative oom score and the resource
limits out of the container's configuration, then becomes the real runc. The engine starts it only where
root lacks the capability; the real runc is named by HERMES_RUNC.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]
WITHOUT = "CAP_SYS_RESOURCE"


def bounded(process: Manifest) -> None:
    """Take out of one process' configuration what this root cannot give."""
    for granted in (process.get("capabilities") or {}).values():
        if WITHOUT in granted:
            granted.remove(WITHOUT)
    if process.get("oomScoreAdj", 0) < 0:
        process["oomScoreAdj"] = 0
    process.pop("rlimits", None)


def after(arguments: list[str], *names: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument in names and index + 1 < len(arguments):
            return arguments[index + 1]
        for name in names:
            if argument.startswith(f"{name}="):
                return argument.removeprefix(f"{name}=")
    return None


def main(arguments: list[str]) -> None:
    if "create" in arguments or "run" in arguments:
        path = Path(after(arguments, "--bundle", "-b") or ".") / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        bounded(content["process"])
        path.write_text(json.dumps(content), encoding="utf-8")
    elif "exec" in arguments:
        given = after(arguments, "--process", "-p")
        if given:
            path = Path(given)
            process = json.loads(path.read_text(encoding="utf-8"))
            bounded(process)
            path.write_text(json.dumps(process), encoding="utf-8")
    runc = os.environ.get("HERMES_RUNC", "/usr/sbin/runc")
    os.execv(runc, [runc, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
