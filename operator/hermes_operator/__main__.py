"""`hermes-operator run` and `hermes-operator crd`: parses, wires, and waits for a signal.

Everything that acts runs here in one loop: the Lease first, then the watches, then, once the picture is
whole, the workers. On SIGTERM the workers finish the look they are in, the Lease is given back, and the
exit code is 0; losing the Lease ends the process at once with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from lightkube import AsyncClient, KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ConfigError

from hermes_operator import health, logs, watch
from hermes_operator.apply import KubernetesApi
from hermes_operator.cache import Cache, Kind
from hermes_operator.crd import crd_yaml
from hermes_operator.decide import decide
from hermes_operator.lease import Election, Elector, LeaseLost
from hermes_operator.metrics import Metrics
from hermes_operator.names import FIELD_MANAGER, MANAGER
from hermes_operator.observed import RunKey
from hermes_operator.queue import WorkQueue
from hermes_operator.reconcile import Reconciler
from hermes_operator.settings import Settings, SettingsError
from hermes_operator.turn import positions
from hermes_operator.work import Workers

log = logging.getLogger(__name__)

FINISH_SECONDS_MAX = 2.5
"""How long a stop waits for the looks that workers are in."""

WATCHES_END_SECONDS_MAX = 1.0
"""How long a stop waits for the watches; they hold nothing."""

DONE, FAILED, USED_WRONGLY = 0, 1, 2
"""Exit codes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    if options.verb == "crd":
        sys.stdout.write(crd_yaml())
        return DONE
    return run(os.environ)


def run(environment: Mapping[str, str]) -> int:
    """Run until a signal comes; the exit code."""
    try:
        settings = Settings.from_env(environment)
    except SettingsError as error:
        sys.stderr.write(f"hermes-operator: {error}\n")
        return USED_WRONGLY
    logs.configure(settings.log_format)
    try:
        config = KubeConfig.from_env().get()
    except ConfigError as error:
        sys.stderr.write(f"hermes-operator: no cluster to talk to: {error}; set KUBECONFIG or run in a pod\n")
        return USED_WRONGLY
    if config is None:
        sys.stderr.write("hermes-operator: the kubeconfig has no current context\n")
        return USED_WRONGLY
    return asyncio.run(Operator(settings, config).run())


class Operator:
    """One process, wired."""

    def __init__(self, settings: Settings, config: SingleConfig) -> None:
        self._settings = settings
        self._config = config
        self._clock = time.monotonic
        self._metrics = Metrics()
        self._cache = Cache()
        self._queue: WorkQueue[RunKey] = WorkQueue(jitter=random.random)
        self._stop = asyncio.Event()
        self._watcher: watch.Watcher | None = None
        self._identity = settings.pod_name or f"{MANAGER}-{uuid.uuid4().hex[:12]}"
        self._client = AsyncClient(config, field_manager=FIELD_MANAGER, lazy=False)
        self._api = KubernetesApi(self._client, self._metrics)
        self._elector = Elector(
            Election(namespace=settings.lease_namespace, name=settings.lease_name, identity=self._identity),
            self._api,
            clock=self._clock,
            now=_now,
        )

    async def run(self) -> int:
        """Act while the Lease is ours, until a signal comes; the exit code."""
        self._take_signals()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._client.close)
            port = await stack.enter_async_context(
                health.served(
                    port=self._settings.http_port,
                    livez=self._livez,
                    readyz=self._readyz,
                    metrics=self._metrics,
                    before_metrics=self._gauge,
                )
            )
            log.info("serving /livez, /readyz and /metrics on port %d", port)
            if await self._acquired():
                try:
                    await self._act()
                finally:
                    await self._elector.release()
        return DONE

    async def _acquired(self) -> bool:
        """Wait for the Lease; False: a signal came first."""
        async with asyncio.TaskGroup() as group:
            acquire = group.create_task(self._elector.acquire(), name="acquire the Lease")
            stop = group.create_task(self._stop.wait(), name="wait for a signal")
            await asyncio.wait((acquire, stop), return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            acquire.cancel()
        return not acquire.cancelled()

    async def _act(self) -> None:
        settings = self._settings
        workers = Workers(
            queue=self._queue,
            reconciler=Reconciler(
                cache=self._cache,
                api=self._api,
                decide=decide,
                positions=positions,
                installation=settings.installation(),
                now=_now,
                instance=self._identity,
            ),
            metrics=self._metrics,
            clock=self._clock,
            now=_now,
            may_act=lambda: self._elector.is_leader,
        )
        watcher = watch.Watcher(
            cache=self._cache,
            watches=watch.Watches(settings.namespaces, silence_seconds_max=settings.watch_silence_seconds),
            api=self._api,
            metrics=self._metrics,
            wake=workers.wake,
            clock=self._clock,
            resync_seconds=settings.resync_seconds,
        )
        self._watcher = watcher
        async with asyncio.TaskGroup() as group:
            keep = group.create_task(self._keep(), name="keep the Lease")
            heal = group.create_task(watcher.heal(), name="heal what watches lose")
            watching = group.create_task(self._watch(watcher), name="watch")
            staff = group.create_task(self._staff(workers, watcher), name="workers")
            await self._stop.wait()
            log.info("stopping")
            workers.stop()
            heal.cancel()
            if not watcher.primed.is_set():
                staff.cancel()
            await asyncio.wait((staff,), timeout=FINISH_SECONDS_MAX)
            staff.cancel()
            # Nothing is written from here on, so the next operator may begin.
            keep.cancel()
            await asyncio.wait((staff, keep))
            await self._elector.release()
            await asyncio.wait((watching,), timeout=WATCHES_END_SECONDS_MAX)
            watching.cancel()

    async def _staff(self, workers: Workers, watcher: watch.Watcher) -> None:
        await watcher.primed.wait()
        log.info("the first lists are taken; %d runs", self._cache.counts()[Kind.RUN])
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.workers):
                group.create_task(workers.work(), name=f"worker {number}")

    async def _watch(self, watcher: watch.Watcher) -> None:
        await watch.watch(
            watcher,
            namespaces=self._settings.namespaces,
            config=self._config,
            watch_silence_seconds=self._settings.watch_silence_seconds,
            stop=self._stop,
            take_signals=self._take_signals,
        )
        if not self._stop.is_set():
            raise RuntimeError("the watches ended by themselves")

    async def _keep(self) -> None:
        try:
            await self._elector.keep()
        except LeaseLost as error:
            # Another may act in a few seconds: nothing of ours may be in flight then, and there is
            # nothing to save.
            log.error("%s; ending", error)
            logging.shutdown()
            os._exit(FAILED)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _livez(self) -> list[str]:
        if self._watcher is None:
            return []
        silent = self._watcher.watches.silent(self._clock())
        return [f"the watch of {one.kind} in {one.namespace} says nothing" for one in silent]

    def _readyz(self) -> list[str]:
        if self._watcher is None:
            # One that stands by is ready, or else no rollout would ever end.
            return [] if self._elector.election.has_looked else ["the Lease was not read yet"]
        return [] if self._watcher.primed.is_set() else ["the first lists are not taken yet"]

    def _gauge(self) -> None:
        metrics = self._metrics
        metrics.count_runs(Counter(run.phase for run in self._cache.line()))
        metrics.queue_waiting.set(self._queue.waiting)
        metrics.queue_held_back.set(self._queue.held_back)
        metrics.is_leader.set(self._elector.is_leader)
        if self._watcher is not None:
            metrics.watch_silence_seconds.set(self._watcher.watches.silence_seconds(self._clock()))


def _now() -> datetime:
    return datetime.now(UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hermes-operator",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "  HERMES_NAMESPACES=research HERMES_RUNTIME_IMAGE=hermes:0.1.0 hermes-operator run\n\n"
            "Makes HermesRun objects of a Kubernetes cluster happen."
        ),
        epilog=(
            "run reads the environment: HERMES_NAMESPACES and HERMES_RUNTIME_IMAGE are required; also\n"
            "HERMES_ IMAGE_PULL_POLICY, IMAGE_PULL_SECRETS, STORE_ADDRESS, STORE_CA_CONFIGMAP, MODEL_CLAIM,\n"
            "HUB_TOKEN_SECRET, HUB_ENDPOINT, MAX_CONCURRENT_RUNS, LEASE_NAMESPACE, LEASE_NAME, POD_NAME,\n"
            "HTTP_PORT, LOG_FORMAT (text or json), WORKERS, RESYNC_SECONDS, WATCH_SILENCE_SECONDS.\n"
            "The cluster is that of the pod it runs in, else of KUBECONFIG.\n\n"
            "Exit codes: 0 stopped by a signal, 1 failed or the Lease is lost, 2 used wrongly."
        ),
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="reconcile until a signal comes")
    verbs.add_parser("crd", help="print the custom resource definition as YAML")
    return parser


if __name__ == "__main__":
    sys.exit(main())
