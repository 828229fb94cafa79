"""Which worker does what, and what happens when one dies or hangs: decided here, without I/O.

Events and the time come in; instructions go out. A request goes to the worker that knows most of its
prompt, then to the one with the fewest, then to the first. Requests are pure, so those whose worker died
are run again, first in the queue and elsewhere if possible; from then on each has a worker to itself, so
that one which kills takes no other with it, and is refused once BUDGETS.deaths workers died at it with
nothing new decoded. A worker that is silent for longer than its budget is killed, and counts as dead. One
that has done enough, or has grown, is replaced by a successor that is ready first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from hermes_runtime import errors
from hermes_runtime.models.affinity import Memory
from hermes_runtime.models.frames import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """How long a worker may be silent, and how much may wait."""

    load_seconds: float = 900.0
    """From the start of the process until the model has decoded its first token."""
    step_seconds: float = 60.0
    """Between two steps (a piece of the prompt, or a token of every completion) of a request."""
    queue: int = 256
    """Requests that wait; more are refused."""
    deaths: int = 3
    """Workers that may die at one request, with nothing new decoded, before it is refused."""
    recycle_requests: int = 0
    """Requests after which a worker is replaced; 0: never for that."""
    recycle_growth_bytes: int = 0
    """Growth of its memory since it was loaded, after which a worker is replaced; 0: never for that."""
    load_deaths: int = 5
    """Deaths in a row while loading, after which a worker is given up."""
    backoff_seconds: float = 0.1
    """Wait before the second restart in a row; doubled for each further one."""
    backoff_seconds_max: float = 5.0


@dataclass(slots=True, kw_only=True)
class Job:
    """A request on its way."""

    number: int
    kind: Kind
    payload: bytes
    prefix: tuple[bytes, ...] = ()
    """Its prompt's blocks, as `affinity` has them."""
    deaths: int = 0
    """Of workers that had it."""
    strikes: int = 0
    """Of these, since anything new was decoded of it."""
    avoid: int = -1
    """The worker that died last; another is better."""
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Start the process of `worker`."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Give `job` to `worker`."""

    worker: int
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Tell `worker` to stop working at request `number`."""

    worker: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Kill the process of `worker`; its death is reported as any other."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Tell `worker`, which has nothing to do, to end; its death is reported as any other."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """End request `number` with `error`."""

    number: int
    error: errors.HermesError


Instruction = Spawn | Send | Cancel | Kill | Retire | Refuse


class State(Enum):
    """Of a worker."""

    STOPPED = auto()
    """No process; one is started at `since`."""
    LOADING = auto()
    IDLE = auto()
    BUSY = auto()
    DRAINING = auto()
    """Its successor is ready: it ends what it has, and takes no more."""
    RETIRED = auto()
    """Told to end."""
    DYING = auto()
    """Killed; its death is not reported yet."""
    OUT = auto()
    """Given up."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    place: int
    """Which of the specs, and so which device, it is for."""
    state: State = State.STOPPED
    since: float = 0.0
    """Time of the last sign of life; for STOPPED, when to start."""
    jobs: dict[int, Job] = field(default_factory=dict)
    failures: int = 0
    """Deaths since the last answer."""
    load_deaths: int = 0
    restarts: int = 0
    replaces: int | None = None
    """The worker that it will be the successor of, while it is not ready."""
    is_succeeded: bool = False
    """Another has taken its place."""
    answered: int = 0
    """Requests since it was loaded."""
    memory_bytes_first: int = 0
    memory_bytes: int = 0
    memory: Memory = field(default_factory=Memory)

    @property
    def is_open(self) -> bool:
        """Whether it may be given more; one that has a request to itself may not."""
        return self.state in (State.IDLE, State.BUSY) and not any(job.deaths for job in self.jobs.values())


@dataclass(slots=True, kw_only=True)
class Roster:
    """All workers and all waiting requests of one model. Not thread-safe."""

    workers: int
    budgets: Budgets = field(default_factory=Budgets)
    jobs: int = 1
    """Requests that a worker is given at once."""
    lost: errors.HermesError | None = None
    """Why no worker is left, once none is."""
    _all: list[_Worker] = field(init=False)
    _queue: deque[Job] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._all = [_Worker(place=place) for place in range(self.workers)]

    @property
    def restarts(self) -> int:
        """Processes started beyond the first of each worker, because one had died."""
        return sum(worker.restarts for worker in self._all)

    @property
    def is_ready(self) -> bool:
        """Whether every worker that is not given up has loaded, and at least one has."""
        gone = (State.OUT, State.RETIRED)
        working = [each for each in self._all if each.state not in gone and each.replaces is None]
        there = (State.IDLE, State.BUSY, State.DRAINING)
        return bool(working) and all(worker.state in there for worker in working)

    @property
    def is_quiet(self) -> bool:
        """Whether no request waits or is worked at."""
        return not self._queue and not any(worker.jobs for worker in self._all)

    def state(self, worker: int) -> State:
        """Of one worker."""
        return self._all[worker].state

    def place(self, worker: int) -> int:
        """The spec that a worker is for."""
        return self._all[worker].place

    def tick(self, now: float) -> list[Instruction]:
        """What time alone brings: processes to start, silent ones to kill."""
        done: list[Instruction] = []
        for index, worker in enumerate(self._all):
            silent = now - worker.since
            match worker.state:
                case State.STOPPED if now >= worker.since:
                    worker.state, worker.since = State.LOADING, now
                    done.append(Spawn(worker=index))
                case State.LOADING if silent >= self.budgets.load_seconds:
                    done.append(self._kill(index, f"has not loaded its model in {silent:.1f} s"))
                case State.BUSY | State.DRAINING if silent >= self.budgets.step_seconds:
                    done.append(self._kill(index, f"has not done a step for {silent:.1f} s"))
                case State.RETIRED if silent >= self.budgets.step_seconds:
                    done.append(self._kill(index, f"has not ended for {silent:.1f} s"))
                case _:
                    pass
        return done + self._dispatch(now)

    def deadline(self) -> float | None:
        """When `tick` should be called at the latest; None: only after an event."""
        times: list[float] = []
        for worker in self._all:
            match worker.state:
                case State.STOPPED:
                    times.append(worker.since)
                case State.LOADING:
                    times.append(worker.since + self.budgets.load_seconds)
                case State.BUSY | State.DRAINING | State.RETIRED:
                    times.append(worker.since + self.budgets.step_seconds)
                case _:
                    pass
        return min(times, default=None)

    def submit(self, job: Job, now: float) -> list[Instruction]:
        """Queue a request. Raises Exhausted (the queue is full), or why no worker is left."""
        if self.lost is not None:
            raise self.lost
        if len(self._queue) >= self.budgets.queue:
            raise errors.Exhausted(
                f"{len(self._queue)} requests wait for the model already: send fewer at once, "
                "or try again later"
            )
        self._queue.append(job)
        return self._dispatch(now)

    def cancel(self, number: int, now: float) -> list[Instruction]:
        """Nobody waits for request `number` any more."""
        for job in self._queue:
            if job.number == number:
                self._queue.remove(job)
                return []
        for index, worker in enumerate(self._all):
            if number in worker.jobs:
                worker.jobs[number].cancelled = True
                working = worker.state in (State.BUSY, State.DRAINING)
                return [Cancel(worker=index, number=number)] if working else []
        return []

    def loaded(self, index: int, now: float) -> list[Instruction]:
        """A worker has loaded its model and decoded a token."""
        worker = self._all[index]
        if worker.state is not State.LOADING:
            return self._dispatch(now)
        worker.state, worker.since, worker.load_deaths = State.IDLE, now, 0
        worker.answered, worker.memory_bytes_first, worker.memory_bytes = 0, 0, 0
        done: list[Instruction] = []
        if worker.replaces is not None:
            replaced, worker.replaces = worker.replaces, None
            is_needed = self._all[replaced].state in (State.IDLE, State.BUSY)
            over = replaced if is_needed else index  # a new process runs in the old one's place already
            self._all[over].state, self._all[over].is_succeeded = State.DRAINING, True
            done += self._retired(over, now)
        return done + self._dispatch(now)

    def load_failed(self, index: int, error: errors.HermesError, now: float) -> list[Instruction]:
        """A worker says that the model cannot be loaded; another try would not help."""
        return self._give_up(index, error)

    def beat(self, index: int, now: float, memory_bytes: int = 0) -> list[Instruction]:
        """A worker did a step; its process takes so much memory."""
        worker = self._all[index]
        if worker.state in (State.BUSY, State.DRAINING):
            worker.since = now
        worker.memory_bytes_first = worker.memory_bytes_first or memory_bytes
        worker.memory_bytes = memory_bytes
        return []

    def decoded(self, index: int, number: int) -> None:
        """A worker has decoded tokens of request `number` that nobody had before."""
        if (job := self._all[index].jobs.get(number)) is not None:
            job.strikes = 0

    def answered(self, index: int, number: int, now: float) -> list[Instruction]:
        """A worker has ended request `number`, with an answer or an error."""
        worker = self._all[index]
        done: list[Instruction] = []
        if worker.state in (State.BUSY, State.DRAINING) and worker.jobs.pop(number, None) is not None:
            worker.since, worker.failures = now, 0
            worker.answered += 1
            if worker.state is State.DRAINING:
                done += self._retired(index, now)
            else:
                worker.state = State.BUSY if worker.jobs else State.IDLE
                done += self._recycled(index, now)
        return done + self._dispatch(now)

    def died(self, index: int, how: str, now: float) -> list[Instruction]:
        """The process of a worker is gone."""
        worker = self._all[index]
        if worker.state in (State.OUT, State.STOPPED):
            return []
        was_loading = not worker.jobs and worker.state in (State.LOADING, State.DYING)
        jobs, worker.jobs = list(worker.jobs.values()), {}
        worker.memory.clear()
        worker.failures += 1
        worker.load_deaths = worker.load_deaths + 1 if was_loading else 0
        done: list[Instruction] = []
        for job in reversed(jobs):
            if job.cancelled:
                continue
            job.deaths, job.strikes, job.avoid = job.deaths + 1, job.strikes + 1, index
            if job.strikes >= self.budgets.deaths:
                done.append(Refuse(number=job.number, error=_poison(job, how)))
            else:
                self._queue.appendleft(job)
        if worker.is_succeeded or (worker.replaces is not None and was_loading):
            worker.state = State.OUT
            if worker.replaces is not None:
                self._all[worker.replaces].answered = 0  # it stays, and is replaced at a later time
            return done + self.tick(now)
        if worker.load_deaths >= self.budgets.load_deaths:
            gone = errors.HermesError(
                f"the model's process died {worker.load_deaths} times in a row while loading ({how}): "
                "see its messages above; a model too large for the memory ends so"
            )
            return done + self._give_up(index, gone)
        worker.state, worker.restarts = State.STOPPED, worker.restarts + 1
        worker.since = now + self._wait(worker.failures)
        return done + self.tick(now)

    def abandon(self, error: errors.HermesError) -> list[Instruction]:
        """Refuse all that waits and is worked at, and take no more."""
        self.lost = error
        waiting = [job.number for job in self._queue]
        waiting += [job.number for worker in self._all for job in worker.jobs.values() if not job.cancelled]
        self._queue.clear()
        return [Refuse(number=number, error=error) for number in waiting]

    def _kill(self, index: int, why: str) -> Kill:
        self._all[index].state = State.DYING
        return Kill(worker=index, why=why)

    def _give_up(self, index: int, error: errors.HermesError) -> list[Instruction]:
        self._all[index].state, self._all[index].jobs = State.OUT, {}
        if all(worker.state is State.OUT for worker in self._all):
            return self.abandon(error)
        return []

    def _wait(self, failures: int) -> float:
        if failures <= 1:
            return 0.0
        return float(
            min(self.budgets.backoff_seconds * 2 ** (failures - 2), self.budgets.backoff_seconds_max)
        )

    # Recycling.

    def _recycled(self, index: int, now: float) -> list[Instruction]:
        """Start a successor for a worker that has done enough."""
        worker, budgets = self._all[index], self.budgets
        grown = worker.memory_bytes - worker.memory_bytes_first
        is_due = 0 < budgets.recycle_requests <= worker.answered
        is_due |= 0 < budgets.recycle_growth_bytes <= grown
        if not is_due or any(each.replaces == index for each in self._all):
            return []
        successor = _Worker(place=worker.place, state=State.LOADING, since=now, replaces=index)
        self._all.append(successor)
        return [Spawn(worker=len(self._all) - 1)]

    def _retired(self, index: int, now: float) -> list[Instruction]:
        worker = self._all[index]
        if worker.jobs or worker.state is not State.DRAINING:
            return []
        worker.state, worker.since = State.RETIRED, now
        return [Retire(worker=index)]

    # Who is given what.

    def _dispatch(self, now: float) -> list[Instruction]:
        done: list[Instruction] = []
        reserved: set[int] = set()
        for job in list(self._queue):
            index = self._alone(job, reserved) if job.deaths else self._best(job, reserved)
            if index is None:
                if not job.deaths:
                    break
                continue
            self._queue.remove(job)
            worker = self._all[index]
            if worker.state is State.IDLE:
                worker.state, worker.since = State.BUSY, now
            worker.jobs[job.number] = job
            worker.memory.add(job.prefix)
            done.append(Send(worker=index, job=job))
        return done

    def _best(self, job: Job, reserved: set[int]) -> int | None:
        """The worker with room that knows most of its prompt, then with the fewest, then the first."""
        room = [
            index
            for index, worker in enumerate(self._all)
            if worker.is_open and len(worker.jobs) < self.jobs and index not in reserved
        ]
        ranks = {
            index: (-self._all[index].memory.known(job.prefix), len(self._all[index].jobs), index)
            for index in room
        }
        return min(room, key=ranks.__getitem__, default=None)

    def _alone(self, job: Job, reserved: set[int]) -> int | None:
        """An empty worker for a request that saw a death; else one is kept from taking more."""
        free = [index for index, worker in enumerate(self._all) if worker.is_open and index not in reserved]
        ranks = {index: (len(self._all[index].jobs), index == job.avoid, index) for index in free}
        index = min(free, key=ranks.__getitem__, default=None)
        if index is None:
            return None
        reserved.add(index)
        return None if self._all[index].jobs else index


def _poison(job: Job, how: str) -> errors.HermesError:
    return errors.HermesError(
        f"the model's process died {job.strikes} times at this request ({how}), which is therefore refused: "
        "ask for fewer completions or a shorter prompt; others are served"
    )
