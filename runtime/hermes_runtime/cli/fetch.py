"""`hermes fetch`: a run of a cluster as a run's folder on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hermes_runtime.cli.parser import Commands, verb

if TYPE_CHECKING:
    from hermes_runtime.evaluate.cluster import Installation


def add(commands: Commands) -> None:
    """Add `fetch`."""
    parser = verb(
        commands,
        "fetch",
        "Fetch a run from a cluster's store, and write its report here. Fetched again, it goes on.",
        _fetch,
        example="hermes fetch quickstart -n default --watch",
    )
    parser.add_argument("run", help="name of the HermesRun")
    parser.add_argument("-n", "--namespace", default="default", help="its namespace (default: default)")
    parser.add_argument("--context", help="context of the kubeconfig (default: the current one)")
    parser.add_argument("--out", type=Path, help="folder for it (default: runs/<run>)")
    parser.add_argument("--watch", action="store_true", help="follow the run to its end first")
    parser.add_argument("--run-id", help="its id in the store, where the HermesRun is gone")
    parser.add_argument(
        "--installation", default="hermes-system", metavar="NAMESPACE", help="where HERMES is installed"
    )
    parser.add_argument(
        "--store", default="hermes-store/7443", metavar="SERVICE/PORT", help="the store there"
    )
    parser.add_argument(
        "--store-ca", default="", metavar="CONFIGMAP", help="its authority (default: as its Service says)"
    )
    parser.add_argument(
        "--reader", default="hermes-reader", metavar="SERVICEACCOUNT", help="who may read the store"
    )
    parser.add_argument("--json", action="store_true", help="the summary on stdout")


def _fetch(arguments: argparse.Namespace) -> int:
    from hermes_runtime.evaluate import views
    from hermes_runtime.evaluate.cluster import KubernetesApi, Wanted, bring, phase_of
    from hermes_runtime.evaluate.fetch import folder_of

    at = _installation(arguments)
    api = KubernetesApi(context=arguments.context, environment=os.environ)
    wanted = Wanted(
        namespace=arguments.namespace,
        name=arguments.run,
        run_id=arguments.run_id,
        watch=arguments.watch and arguments.run_id is None,
    )
    folder = folder_of(arguments.out, arguments.run)
    run = asyncio.run(bring(api, at, wanted, folder, _say))
    report = views.write_views(folder.root)
    if arguments.json:
        json.dump(views.read_summary(folder), sys.stdout, indent=2)
        print()
    else:
        print(f"report: {report}")
    return 1 if wanted.watch and run is not None and phase_of(run) == "Failed" else 0


def _installation(arguments: argparse.Namespace) -> Installation:
    from hermes_runtime.errors import BadInput
    from hermes_runtime.evaluate.cluster import Installation

    service, slash, port = arguments.store.partition("/")
    if not slash or not port.isdecimal():
        raise BadInput(f"--store {arguments.store!r}: give SERVICE/PORT, for example hermes-store/7443")
    return Installation(
        namespace=arguments.installation,
        service=service,
        port=int(port),
        reader=arguments.reader,
        ca_config_map=arguments.store_ca,
    )


def _say(text: str) -> None:
    print(f"fetch: {text}", file=sys.stderr, flush=True)
