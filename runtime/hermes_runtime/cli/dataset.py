"""`hermes dataset`: build instances, prove instances."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from hermes_runtime.cli.parser import Commands, noun, verb


def add(commands: Commands) -> None:
    """Add `dataset`."""
    verbs = noun(commands, "dataset", "Instances: tasks with tests that tell whether they are solved.")
    mutants = verb(
        verbs,
        "mutants",
        "Put single defects into real packages; keep those that their tests find.",
        _mutants,
        example="hermes dataset mutants --count 20 --seed 42 --out build/mutants.jsonl",
    )
    mutants.add_argument("--count", type=int, default=20, help="number of instances")
    mutants.add_argument("--seed", type=int, default=42, help="same seed, same instances, byte for byte")
    mutants.add_argument("--package", action="append", help="only this package (may be given again)")
    mutants.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the file (*.jsonl), or a folder in which it is named by its seed",
    )
    mutants.add_argument(
        "--cache", type=Path, help="folder for what is fetched once (default: $HERMES_CACHE)"
    )
    check = verb(
        verbs,
        "check",
        "Prove of every instance that it fails unpatched and that its gold patch resolves it.",
        _check,
        example="hermes dataset check instances.jsonl",
    )
    check.add_argument("file", type=Path, help="a JSON Lines file of instances")
    check.add_argument("--sandbox", default="auto", choices=["auto", "bubblewrap", "landlock"])
    check.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="instances at once")
    check.add_argument("--json", action="store_true", help="a JSON line for each instance")


def _mutants(arguments: argparse.Namespace) -> int:
    from hermes_runtime.evaluate.datasets.mutants import build
    from hermes_runtime.models.cache import cache_folder

    instances = build(
        arguments.out.absolute(),
        count=arguments.count,
        seed=arguments.seed,
        packages=tuple(arguments.package) if arguments.package else None,
        cache=arguments.cache.absolute() if arguments.cache else cache_folder(os.environ, Path.home()),
        say=lambda text: print(text, file=sys.stderr),
    )
    print(instances)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from hermes_runtime.evaluate.check import check_all
    from hermes_runtime.evaluate.instances import read_instances
    from hermes_runtime.sandbox.choose import choose

    instances = list(read_instances(arguments.file))
    checked = asyncio.run(check_all(instances, choose(arguments.sandbox), arguments.jobs))
    for one in checked:
        if arguments.json:
            told = {"instance_id": one.instance_id, "holds": not one.problems, "problems": one.problems}
            print(json.dumps({**told, "notes": one.notes, "seconds": round(one.seconds, 3)}))
        else:
            print(f"{one.instance_id}: {'; '.join(one.problems) or 'holds'} ({one.seconds:.1f} s)")
    bad = sum(bool(one.problems) for one in checked)
    print(f"{len(checked) - bad} of {len(checked)} instances hold", file=sys.stderr)
    return 1 if bad else 0
