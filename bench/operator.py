"""What the operator costs on a real API server, beside an operator in kopf's common style.

    python -m bench.operator [--runs 1000 5000] [--samples 200] [--idle-seconds 30] [--json]

etcd and kube-apiserver run as processes of this machine, fresh for every row; no node is there, and what
controllers and kubelets would write is written by the benchmark itself. Times of Jobs and counts of
requests are the API server's, read from its audit log; memory and processor time are the kernel's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from bench.operator_cluster import (
    CONNECTIONS,
    IMAGE,
    NAMESPACE,
    RUNS,
    Cluster,
    cluster,
    job_of,
)
from bench.operator_process import MIB, Running, children, processor_seconds, running
from hermes_operator.cache import Cache, Kind

LOOK_EVERY_SECONDS = 0.2
LOOK_AT_ONE_EVERY_SECONDS = 0.005
APART_SECONDS = 0.1
"""Between two samples on an idle cluster: what follows the Job is written by then."""
SETTLED_SECONDS = 2.0
"""After the last Job or phase: what is still under way comes in."""
TTL_SECONDS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An operator that is measured."""

    name: str
    command: tuple[str, ...]
    limit_mib: int
    """Bound on its memory; 0: none."""
    collects_by_ttl: bool
    """It deletes runs ttlSecondsAfterFinished after their end."""


def hermes(limit_mib: int) -> Subject:
    command = ("-m", "hermes_operator", "run")
    return Subject(name="HERMES", command=command, limit_mib=limit_mib, collects_by_ttl=True)


COMMON = Subject(
    name="common kopf style",
    command=(
        *("-m", "kopf", "run", "--standalone", "--namespace", NAMESPACE),
        *("-m", "bench.operator_common_style"),
    ),
    limit_mib=0,
    collects_by_ttl=False,
)

Stage = Literal["zero", "jobs", "running", "idle", "ended", "gone"]


@dataclass(slots=True, kw_only=True)
class Row:
    """What one operator made of one number of runs."""

    subject: str
    runs: int
    mode: Literal["burst", "one by one"]
    limit: str = ""
    asked_seconds: float = 0.0
    """From the first run's creation asked for to the last one's answered."""
    job_ms: list[float] = field(default_factory=list)
    """From a run's creation asked for to its Job's creation answered."""
    last_job_seconds: float = 0.0
    """From the first run's creation asked for to the last Job's answered."""
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    """The operator's, by stage, then by verb and resource."""
    refused: int = 0
    """The operator's requests that were answered with 4xx or 5xx."""
    idle_seconds: float = 0.0
    resident_mib: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    kills: int = 0
    """Times that the kernel killed it for its bound."""
    processor_seconds: dict[str, float] = field(default_factory=dict)
    """By program, from before the first run to after the last one's end."""
    running_seconds: float = 0.0
    """Until all are Running, the writer's own work included."""
    ended_seconds: float = 0.0
    """Until all are Succeeded, the writer's own work included."""
    writer_seconds: float = 0.0
    """Of both, until the writer had written its last."""
    succeeded: int = 0
    gone_seconds: float = 0.0
    gave_up: str = ""
    """What was not reached in the time that there was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The same writes without an operator: what API server, etcd and the benchmark's own client take."""

    runs: int
    create_seconds: float
    apply_seconds: float
    """Three applies a run: account, policy, Job."""
    client_share: float
    """Of all processor time in both, the benchmark's own."""


class Late(Exception):
    """It was not reached in time, or the operator has ended."""


class Measuring:
    """One operator on one fresh cluster, stage by stage."""

    def __init__(self, row: Row, subject: Subject, found: Cluster, operator: Running, until: float) -> None:
        self.row = row
        self._subject = subject
        self._cluster = found
        self._administrator = found.administrator
        self._operator = operator
        self._until = until
        self._warm = self._counted = 0
        self._names: list[str] = []
        self._used: dict[str, float] = {}

    async def warm_up(self) -> None:
        """Return once the operator makes Jobs; what it did until then does not count."""
        await self._administrator.create_runs(["warm-up"])
        await self._jobs_of(["warm-up"], LOOK_EVERY_SECONDS)
        await self._remove_runs()
        await self._administrator.sweep()
        await asyncio.sleep(SETTLED_SECONDS)
        self._close("zero")
        self._used = self._processors()

    async def create(self, names: list[str], **spec: object) -> None:
        """Create the runs and return once all have their Jobs."""
        self._names = names
        if self.row.mode == "burst":
            await self._written("all created", self._administrator.create_runs(names, **spec))
            await self._jobs_of(names, LOOK_EVERY_SECONDS)
        else:
            for name in names:
                await self._administrator.create_runs([name], **spec)
                await self._jobs_of([name], LOOK_AT_ONE_EVERY_SECONDS)
                await asyncio.sleep(APART_SECONDS)
        await asyncio.sleep(SETTLED_SECONDS)
        self._close("jobs")

    async def start(self) -> None:
        """Let every driver run."""
        began = time.monotonic()
        await self._written("all Running", self._administrator.start_jobs())
        self.row.writer_seconds += time.monotonic() - began
        await self._phase("Running")
        self.row.running_seconds = time.monotonic() - began
        await asyncio.sleep(SETTLED_SECONDS)
        self._close("running")

    async def idle(self, seconds: float) -> None:
        """Leave everything as it is."""
        self.row.idle_seconds = seconds
        await asyncio.sleep(seconds)
        self._close("idle")

    async def end(self) -> None:
        """Let every driver end well."""
        began = time.monotonic()
        await self._written("all Succeeded", self._administrator.end_jobs())
        self.row.writer_seconds += time.monotonic() - began
        await self._phase("Succeeded")
        self.row.ended_seconds = time.monotonic() - began
        await asyncio.sleep(SETTLED_SECONDS)
        self._close("ended")
        used = self._processors()
        self.row.processor_seconds = {name: used[name] - self._used[name] for name in used}

    async def go(self) -> None:
        """Until no run is left: by their TTL, or deleted by their user."""
        began = time.monotonic()
        await self._remove_runs()
        self.row.gone_seconds = time.monotonic() - began
        self._close("gone")

    def sum_up(self) -> None:
        """What is read off the whole audit log, however far it got."""
        row, trail = self.row, self._cluster.trail
        trail.read()
        asked = {name: trail.runs[name] for name in self._names if name in trail.runs}
        made = {name: trail.jobs[job_of(name)] for name in asked if job_of(name) in trail.jobs}
        row.job_ms = sorted((one.answered_at - asked[name].asked_at) * 1e3 for name, one in made.items())
        first = min((one.asked_at for one in asked.values()), default=0.0)
        row.asked_seconds = max((one.answered_at for one in asked.values()), default=first) - first
        row.last_job_seconds = max((one.answered_at for one in made.values()), default=first) - first
        row.succeeded = len(trail.phases["Succeeded"].intersection(self._names))
        row.refused = sum(one.code >= 400 for one in trail.requests[self._warm :])
        row.peak_mib = max(row.peak_mib, self._operator.peak_mib())
        row.kills = self._operator.limit.kills()
        row.limit = self._operator.limit.kind

    def _close(self, stage: Stage) -> None:
        """Count what was asked since the last stage, and weigh the operator."""
        self._cluster.trail.read()
        seen = self._cluster.trail.requests
        if stage == "zero":
            self._warm = len(seen)
        else:
            new = seen[self._counted :]
            self.row.requests[stage] = dict(Counter(f"{one.verb} {one.resource}" for one in new))
        self._counted = len(seen)
        self.row.resident_mib[stage] = self._operator.resident_mib()
        self.row.peak_mib = max(self.row.peak_mib, self._operator.peak_mib())

    async def _remove_runs(self) -> None:
        waits_for_ttl = self._subject.collects_by_ttl and self.row.mode == "one by one" and self._names
        if not waits_for_ttl:
            await self._written("all deleted", self._administrator.delete_runs())
        while await self._administrator.count(RUNS):
            self._check("the last run being gone")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _jobs_of(self, names: list[str], every_seconds: float) -> None:
        wanted, trail = {job_of(name) for name in names}, self._cluster.trail
        await self._reached("a Job for each run", lambda: wanted <= trail.jobs.keys(), every_seconds)

    async def _phase(self, phase: str) -> None:
        wanted, found = set(self._names), self._cluster.trail.phases[phase]
        await self._reached(phase, lambda: wanted <= found, LOOK_EVERY_SECONDS)

    async def _reached(self, what: str, holds: Callable[[], bool], every_seconds: float) -> None:
        self._cluster.trail.read()
        while not holds():
            self._check(what)
            await asyncio.sleep(every_seconds)
            self._cluster.trail.read()

    async def _written(self, what: str, work: Coroutine[None, None, None]) -> None:
        """Let the administrator write, for as long as there is time and an operator."""
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(work, name="write")
            ended = group.create_task(self._operator.process.wait(), name="wait for the operator")
            left = self._until - time.monotonic()
            await asyncio.wait((writing, ended), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            is_written = writing.done()
            writing.cancel()
            ended.cancel()
        if not is_written:
            self._check(what)

    def _check(self, what: str) -> None:
        if self._operator.has_ended:
            raise Late(f"{what}: the operator ended with {self._operator.process.returncode}")
        if time.monotonic() > self._until:
            raise Late(f"{what}: not in time")

    def _processors(self) -> dict[str, float]:
        return {"operator": self._operator.processor_seconds(), **_used()}


@asynccontextmanager
async def measuring(subject: Subject, row: Row, seconds_max: float) -> AsyncIterator[Measuring]:
    """The operator on a fresh cluster; what was reached is summed up when the block is left."""
    with tempfile.TemporaryDirectory(prefix="hermes-bench-") as name:
        folder = Path(name)
        async with cluster(folder) as found:
            environment = {
                "KUBECONFIG": str(found.kubeconfig),
                "HERMES_NAMESPACES": NAMESPACE,
                "HERMES_RUNTIME_IMAGE": IMAGE,
                "HERMES_HTTP_PORT": "0",
                "HERMES_LOG_FORMAT": "json",
            }
            async with running(
                subject.command, environment=environment, folder=folder, limit_bytes=subject.limit_mib * MIB
            ) as operator:
                until = time.monotonic() + seconds_max
                one = Measuring(row, subject, found, operator, until)
                try:
                    yield one
                except Late as late:
                    row.gave_up = str(late)
                    if operator.has_ended:
                        print(_tail(operator.log), file=sys.stderr)
                finally:
                    one.sum_up()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-20:])


async def burst(subject: Subject, runs: int, *, idle_seconds: float, seconds_max: float) -> Row:
    """All runs at once."""
    row = Row(subject=subject.name, runs=runs, mode="burst")
    async with measuring(subject, row, seconds_max) as one:
        await one.warm_up()
        await one.create([f"burst-{number}" for number in range(runs)])
        await one.start()
        await one.idle(idle_seconds)
        await one.end()
        await one.go()
    return row


async def one_by_one(subject: Subject, runs: int, *, idle_seconds: float, seconds_max: float) -> Row:
    """One run after another, each once the one before it has its Job."""
    row = Row(subject=subject.name, runs=runs, mode="one by one")
    async with measuring(subject, row, seconds_max) as one:
        await one.warm_up()
        names = [f"sample-{number}" for number in range(runs)]
        await one.create(names, ttlSecondsAfterFinished=TTL_SECONDS)
        await one.start()
        await one.idle(idle_seconds)
        await one.end()
        await one.go()
    return row


async def floor(runs: int) -> Floor:
    """The same writes by the benchmark's own client."""
    with tempfile.TemporaryDirectory(prefix="hermes-bench-") as name:
        async with cluster(Path(name)) as found:
            before, began = _used(), time.monotonic()
            await found.administrator.create_runs([f"floor-{number}" for number in range(runs)])
            create_seconds, created = time.monotonic() - began, _used()
            cache = Cache()
            async for one in found.administrator.list(RUNS):
                cache.remember(Kind.RUN, one)
            listed, began = _used(), time.monotonic()
            await found.administrator.apply_children(list(cache.runs()))
            apply_seconds, applied = time.monotonic() - began, _used()
    spent = {name: created[name] - before[name] + applied[name] - listed[name] for name in before}
    return Floor(
        runs=runs,
        create_seconds=create_seconds,
        apply_seconds=apply_seconds,
        client_share=spent["bench"] / sum(spent.values()),
    )


def _used() -> dict[str, float]:
    """Processor time of the API server, its etcd and the benchmark."""
    found = {Path(name).name: processor_seconds(pid) for name, pid in children().items()}
    own = os.times()
    servers = {name: found[name] for name in ("kube-apiserver", "etcd")}
    return {**servers, "bench": own.user + own.system}


REMOVAL = "delete hermesruns"
"""What an operator asks when a run's TTL has passed."""


def per_run(row: Row, stages: Iterable[str]) -> float:
    """The operator's requests for each run in these stages, its Lease and its watches aside."""
    return sum(count for stage in stages for count in asked(row, stage).values()) / row.runs


def to_succeed(row: Row) -> float:
    """Requests a run from its creation to its success."""
    return per_run(row, LIVE) - _removals(row)


def to_go(row: Row) -> float:
    """Requests a run for its removal, by its TTL or by its user."""
    return per_run(row, ("gone",)) + _removals(row)


def _removals(row: Row) -> float:
    return sum(asked(row, stage).get(REMOVAL, 0) for stage in LIVE) / row.runs


def asked(row: Row, stage: str) -> dict[str, int]:
    """What the operator asked in a stage, beyond its Lease and its watches."""
    found = row.requests.get(stage, {})
    return {
        what: count for what, count in found.items() if not what.startswith("watch ") and "leases" not in what
    }


def quantile(times: list[float], share: float) -> float:
    """Of sorted times."""
    return times[min(len(times) - 1, int(len(times) * share))] if times else float("nan")


Cell = Callable[[Row], float]

LIVE: tuple[Stage, ...] = ("jobs", "running", "idle", "ended")

FIGURES: tuple[tuple[str, str, Cell, bool], ...] = (
    # what, how it is printed, the figure, whether its ratio to the baseline says anything
    ("run asked for -> its Job created, p50, ms", ",.0f", lambda row: quantile(row.job_ms, 0.5), True),
    ("the same, p95, ms", ",.0f", lambda row: quantile(row.job_ms, 0.95), True),
    ("all runs created after, s", ".1f", lambda row: row.asked_seconds, False),
    ("last Job created after, s", ".1f", lambda row: row.last_job_seconds, True),
    ("Jobs a second, first run to last Job", ",.0f", lambda row: _rate(row), True),
    ("until all Running, s", ".1f", lambda row: row.running_seconds, True),
    ("until all Succeeded, s", ".1f", lambda row: row.ended_seconds, True),
    ("of both, until the writer had written, s", ".1f", lambda row: row.writer_seconds, False),
    ("runs Succeeded", ",.0f", lambda row: row.succeeded, False),
    ("requests a run, creation to Succeeded", ".2f", to_succeed, True),
    ("requests a run for its removal", ".2f", to_go, True),
    ("requests refused", ",.0f", lambda row: row.refused, False),
    ("requests a second, idle", ".2f", lambda row: _idle_rate(row), False),
    ("memory before, MiB", ",.0f", lambda row: row.resident_mib.get("zero", float("nan")), True),
    ("memory with all Jobs there, MiB", ",.0f", lambda row: row.resident_mib.get("jobs", float("nan")), True),
    ("memory with all Running, MiB", ",.0f", lambda row: row.resident_mib.get("idle", float("nan")), True),
    ("memory with all Succeeded, MiB", ",.0f", lambda row: row.resident_mib.get("ended", float("nan")), True),
    ("memory, peak, MiB", ",.0f", lambda row: row.peak_mib, True),
    ("killed for its memory", ",.0f", lambda row: row.kills, False),
    ("operator's CPU, s", ",.1f", lambda row: row.processor_seconds.get("operator", float("nan")), True),
    ("API server's and etcd's CPU, s", ",.1f", lambda row: _servers(row), True),
    (
        "the benchmark's own CPU, s",
        ",.1f",
        lambda row: row.processor_seconds.get("bench", float("nan")),
        False,
    ),
)


def _rate(row: Row) -> float:
    return len(row.job_ms) / row.last_job_seconds if row.last_job_seconds else float("nan")


def _idle_rate(row: Row) -> float:
    return sum(asked(row, "idle").values()) / row.idle_seconds if row.idle_seconds else float("nan")


def _servers(row: Row) -> float:
    used = row.processor_seconds
    return used.get("kube-apiserver", float("nan")) + used.get("etcd", float("nan"))


def table(ours: Row, common: Row) -> str:
    """Both beside each other, and the common style as a multiple of ours."""
    lines = [
        f"| {ours.runs:,} runs, {'at once' if ours.mode == 'burst' else 'one by one'} "
        f"| {ours.subject} | {common.subject} | ratio |",
        "|---|---:|---:|---:|",
    ]
    for what, shape, cell, has_ratio in FIGURES:
        one, other = cell(ours), cell(common)
        ratio = f"{other / one:.2f}" if has_ratio and one and other == other else ""
        lines.append(f"| {what} | {_shown(one, shape)} | {_shown(other, shape)} | {ratio} |")
    for row in (ours, common):
        asked_of = ", ".join(
            f"{what} {count / row.runs:.2f}"
            for what, count in sorted(sum((Counter(asked(row, stage)) for stage in LIVE), Counter()).items())
        )
        lines += ["", f"{row.subject}, bound on its memory: {row.limit}; requests a run: {asked_of}."]
        if row.gave_up:
            lines.append(f"It did not get to the end: {row.gave_up}.")
    return "\n".join(lines)


def _shown(figure: float, shape: str) -> str:
    return "" if figure != figure else format(figure, shape)


def floors(found: list[Floor]) -> str:
    """What the same writes take when nobody but the benchmark makes them."""
    lines = [
        "| the same writes without an operator | runs created, s | their three objects applied, s "
        "| the benchmark's share of CPU |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one.runs:,} | {one.create_seconds:.1f} | {one.apply_seconds:.1f} | {one.client_share:.0%} |"
        for one in found
    ]
    return "\n".join(lines)


async def measured(options: argparse.Namespace) -> None:
    """All of it, printed as it comes."""
    ours, rows, lowest = hermes(options.limit_mib), [], []
    subjects = ((ours, options.seconds_max), (COMMON, options.common_seconds_max))
    if not options.json:
        print(f"{CONNECTIONS} connections create; load before: {os.getloadavg()[0]:.1f}.\n", flush=True)
    for work, counts in ((one_by_one, [options.samples]), (burst, options.runs)):
        for runs in filter(None, counts):
            pair = [
                await work(subject, runs, idle_seconds=options.idle_seconds, seconds_max=seconds_max)
                for subject, seconds_max in subjects
            ]
            rows += pair
            if not options.json:
                print(f"{table(*pair)}\n", flush=True)
    for runs in options.runs:
        lowest.append(await floor(runs))
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "floors": [asdict(one) for one in lowest]}))
    else:
        print(floors(lowest))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[100], help="sizes of the bursts")
    parser.add_argument("--samples", type=int, default=20, help="runs one by one; 0: none")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="how long is listened for requests")
    parser.add_argument("--limit-mib", type=int, default=128, help="bound on our operator's memory; 0: none")
    parser.add_argument("--seconds-max", type=float, default=1200.0, help="time that ours has for each row")
    parser.add_argument("--common-seconds-max", type=float, default=300.0, help="time that the other has")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    asyncio.run(measured(parser.parse_args()))


if __name__ == "__main__":
    main()
