"""`python -m tests.cluster VERB`: parses and calls, nothing else."""

import argparse
import os
import shlex
import sys

from tests.cluster import install, kind
from tests.cluster.binaries import missing_go, programs
from tests.cluster.packages import missing_packages


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("packages", help="print the Debian packages that are missing for `up`")
    verbs.add_parser("binaries", help="build the programs, and print the folder they lie in")
    verbs.add_parser("prepare", help="build the programs where tests can use them; say why where not")
    verbs.add_parser("up", help="bring a cluster up; prints its kubeconfig")
    verbs.add_parser("kubeconfig", help="print the kubeconfig of the cluster that is up")
    verbs.add_parser("env", help='print what a shell needs: eval "$(python -m tests.cluster env)"')
    verbs.add_parser("base", help="make an image of Debian and Python to build on; prints its name")
    verbs.add_parser("load", help="give the cluster an image").add_argument("image")
    verbs.add_parser("install", help="build HERMES from this checkout, and install it there")
    verbs.add_parser("down", help="take the cluster down, and leave nothing but the cache")
    given = parser.parse_args(arguments)
    match given.verb:
        case "packages":
            print(" ".join(missing_packages()))
        case "binaries":
            print(programs().folder)
        case "prepare":
            if (missing := kind.missing()) is not None:
                print(f"tests on a cluster are skipped: {missing}", file=sys.stderr)
            if missing_go() is None:
                programs()
        case "up":
            print(kind.up().kubeconfig)
        case "base":
            print(kind.base())
        case "load":
            kind.load(given.image)
        case "install":
            print(install.install().kubeconfig)
        case "down":
            kind.down()
        case _:
            cluster = kind.running()
            if cluster is None:
                print("no cluster is up: python -m tests.cluster up", file=sys.stderr)
                return 1
            if given.verb == "kubeconfig":
                print(cluster.kubeconfig)
            else:
                for name, value in cluster.environment(os.environ).items():
                    if os.environ.get(name) != value:
                        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
