"""Which worker does what, and what happens when one dies or hangs: decided here, without I/O.

Events and the time come in; instructions go out. Requests are pure, so one whose worker died is run
again, first in the queue; one that has seen DEATHS_MAX workers die is refused, and the rest go on.
A worker that is silent for longer than its budget is killed, and counts as dead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from hermes_runtime import errors
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
    """Workers that may die at one request before it is refused."""
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
    deaths: int = 0
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
class Refuse:
    """End request `number` with `error`."""

    number: int
    error: errors.HermesError


Instruction = Spawn | Send | Cancel | Kill | Refuse


class State(Enum):
    """Of a worker."""

    STOPPED = auto()
    """No process; one is started at `since`."""
    LOADING = auto()
    IDLE = auto()
    BUSY = auto()
    DYING = auto()
    """Killed; its death is not reported yet."""
    OUT = auto()
    """Given up."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    state: State = State.STOPPED
    since: float = 0.0
    """Time of the last sign of life; for STOPPED, when to start."""
    job: Job | None = None
    failures: int = 0
    """Deaths since the last answer."""
    load_deaths: int = 0
    restarts: int = 0


@dataclass(slots=True, kw_only=True)
class Roster:
    """All workers and all waiting requests of one model. Not thread-safe."""

    workers: int
    budgets: Budgets = field(default_factory=Budgets)
    lost: errors.HermesError | None = None
    """Why no worker is left, once none is."""
    _all: list[_Worker] = field(init=False)
    _queue: deque[Job] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._all = [_Worker() for _ in range(self.workers)]

    @property
    def restarts(self) -> int:
        """Processes started beyond the first of each worker."""
        return sum(worker.restarts for worker in self._all)

    @property
    def is_ready(self) -> bool:
        """Whether every worker that is not given up has loaded, and at least one has."""
        working = [worker for worker in self._all if worker.state is not State.OUT]
        return bool(working) and all(worker.state in (State.IDLE, State.BUSY) for worker in working)

    @property
    def is_quiet(self) -> bool:
        """Whether no request waits or is worked at."""
        return not self._queue and all(worker.job is None for worker in self._all)

    def state(self, worker: int) -> State:
        """Of one worker."""
        return self._all[worker].state

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
                case State.BUSY if silent >= self.budgets.step_seconds:
                    done.append(self._kill(index, f"has not done a step for {silent:.1f} s"))
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
                case State.BUSY:
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
            if worker.job is not None and worker.job.number == number:
                worker.job.cancelled = True
                return [Cancel(worker=index, number=number)] if worker.state is State.BUSY else []
        return []

    def loaded(self, index: int, now: float) -> list[Instruction]:
        """A worker has loaded its model and decoded a token."""
        worker = self._all[index]
        if worker.state is State.LOADING:
            worker.state, worker.since, worker.load_deaths = State.IDLE, now, 0
        return self._dispatch(now)

    def load_failed(self, index: int, error: errors.HermesError, now: float) -> list[Instruction]:
        """A worker says that the model cannot be loaded; another try would not help."""
        return self._give_up(index, error)

    def beat(self, index: int, now: float) -> list[Instruction]:
        """A worker did a step."""
        worker = self._all[index]
        if worker.state is State.BUSY:
            worker.since = now
        return []

    def answered(self, index: int, number: int, now: float) -> list[Instruction]:
        """A worker has ended request `number`, with an answer or an error."""
        worker = self._all[index]
        if worker.state is State.BUSY and worker.job is not None and worker.job.number == number:
            worker.state, worker.since, worker.job, worker.failures = State.IDLE, now, None, 0
        return self._dispatch(now)

    def died(self, index: int, how: str, now: float) -> list[Instruction]:
        """The process of a worker is gone."""
        worker = self._all[index]
        if worker.state in (State.OUT, State.STOPPED):
            return []
        was_loading, job = worker.job is None and worker.state in (State.LOADING, State.DYING), worker.job
        worker.job = None
        worker.failures += 1
        worker.load_deaths = worker.load_deaths + 1 if was_loading else 0
        done: list[Instruction] = []
        if job is not None and not job.cancelled:
            job.deaths += 1
            if job.deaths >= self.budgets.deaths:
                done.append(Refuse(number=job.number, error=_poison(job, how)))
            else:
                self._queue.appendleft(job)
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
        waiting += [
            worker.job.number for worker in self._all if worker.job is not None and not worker.job.cancelled
        ]
        self._queue.clear()
        return [Refuse(number=number, error=error) for number in waiting]

    def _kill(self, index: int, why: str) -> Kill:
        self._all[index].state = State.DYING
        return Kill(worker=index, why=why)

    def _give_up(self, index: int, error: errors.HermesError) -> list[Instruction]:
        self._all[index].state, self._all[index].job = State.OUT, None
        if all(worker.state is State.OUT for worker in self._all):
            return self.abandon(error)
        return []

    def _wait(self, failures: int) -> float:
        if failures <= 1:
            return 0.0
        return float(
            min(self.budgets.backoff_seconds * 2 ** (failures - 2), self.budgets.backoff_seconds_max)
        )

    def _dispatch(self, now: float) -> list[Instruction]:
        done: list[Instruction] = []
        for index, worker in enumerate(self._all):
            if worker.state is State.IDLE and self._queue:
                worker.job = self._queue.popleft()
                worker.state, worker.since = State.BUSY, now
                done.append(Send(worker=index, job=worker.job))
        return done


def _poison(job: Job, how: str) -> errors.HermesError:
    return errors.HermesError(
        f"the model's process died {job.deaths} times at this request ({how}), which is therefore refused: "
        "ask for fewer completions or a shorter prompt; others are served"
    )
