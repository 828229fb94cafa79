"""Every benchmark, one after the other: the tables of bench/README.md.

python -m bench [store|sandbox|acts|models|engine|operator]
"""

from __future__ import annotations

import subprocess
import sys

BENCHES: dict[str, list[str]] = {
    "store": [],
    "sandbox": [],
    "acts": [],
    "models": ["--model", "repair"],
    "engine": [],
    "operator": ["--runs", "1000", "5000", "--samples", "200", "--idle-seconds", "30"],
}


def main(wanted: list[str]) -> int:
    """Run the named ones (all, if none is named); 2 if a name is unknown."""
    unknown = [name for name in wanted if name not in BENCHES]
    if unknown:
        print(f"bench: no {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    for name in wanted or BENCHES:
        print(f"\n## {name}\n", flush=True)
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *BENCHES[name]], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
