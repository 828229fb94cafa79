"""Runs every command of the README's `sh` blocks, in order, but `make test`, which CI runs after."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands(text: str) -> list[str]:
    """The commands of the blocks marked `sh`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def main() -> int:
    for command in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        if command == "make test":
            continue
        print(f"$ {command}", flush=True)
        done = subprocess.run(command, shell=True, cwd=ROOT, check=False)
        if done.returncode:
            print(f"README: {command!r} ended with {done.returncode}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
