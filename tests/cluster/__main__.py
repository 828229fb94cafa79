"""`python -m tests.cluster binaries`: parses and calls, nothing else."""

import argparse
import sys

from tests.cluster.binaries import programs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("binaries", help="build the programs, and print the folder they lie in")
    parser.parse_args(arguments)
    print(programs().folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
