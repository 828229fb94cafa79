"""PortableMultiInstanceManager: one process for each device, watched, restarted, fed.

One thread does all I/O with the workers and carries out what the roster decides; callers wait on
futures. Death is seen through the process's own descriptor and through the end of its socket. A request
is answered once, whatever died meanwhile. Not covered: a worker that answers wrongly.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec, probe
from hermes_runtime.models.affinity import blocks
from hermes_runtime.models.counted import Rereads
from hermes_runtime.models.environment import child_environment, device_of, torch_device
from hermes_runtime.models.frames import (
    Decoder,
    Frame,
    Kind,
    answer_of,
    encode,
    error_of,
    memory_of,
    resume_payload,
    tokens_of,
)
from hermes_runtime.models.roster import (
    Budgets,
    Cancel,
    Instruction,
    Job,
    Kill,
    Refuse,
    Retire,
    Roster,
    Send,
    Spawn,
)
from hermes_runtime.models.stepping import Accepted, Request, Response, Token
from hermes_runtime.models.worker import spec_json

_READ_BYTES = 256 * 1024
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a worker, for logs and for tests."""

    what: str
    """"started", "loaded", "failed", "sent", "beat", "decoded", "answered", "killed", "retired" or "died"."""
    worker: int
    process: int
    number: int = 0
    """Request that it was about; 0 if none."""
    detail: str = ""


class Ticket:
    """A request that was accepted."""

    def __init__(self, manager: PortableMultiInstanceManager, number: int, future: Future[Response]) -> None:
        self._manager = manager
        self.number = number
        self.future = future

    def result(self, timeout_seconds: float | None = None) -> Response:
        """The answer. Raises TimedOut (and cancels), or the request's own error."""
        try:
            return self.future.result(timeout_seconds)
        except FutureTimeout:
            self.cancel()
            raise errors.TimedOut(
                f"no answer from the model in {timeout_seconds} s: allow more, or ask for less"
            ) from None
        except CancelledError:
            raise errors.HermesError("the request was cancelled") from None

    def cancel(self) -> None:
        """Stop waiting, and stop the work where it has begun."""
        self._manager.cancel(self)


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request that is not answered yet, and what was decoded of it: so much is lost by no death."""

    kind: Kind
    trace: str
    future: Future[Response]
    told: Callable[[Token], None]
    accepted: dict[int, list[Token]] = field(default_factory=dict)
    """By completion."""

    def frame(self, job: Job) -> Frame:
        """What a worker is sent, which goes on where an earlier one ended."""
        if not self.accepted:
            return Frame(kind=job.kind, number=job.number, payload=job.payload)
        accepted = {
            completion: Accepted(tokens=tuple(each.token for each in tokens), logprob=tokens[-1].logprob)
            for completion, tokens in self.accepted.items()
        }
        return Frame(kind=Kind.RESUME, number=job.number, payload=resume_payload(accepted, job.payload))


@dataclass(slots=True, kw_only=True)
class _Process:
    """A worker's process and the supervisor's end of its socket."""

    popen: subprocess.Popen[bytes]
    connection: socket.socket
    sentinel: int | None
    decoder: Decoder = field(default_factory=Decoder)
    outbox: deque[memoryview] = field(default_factory=deque)


def accelerators() -> tuple[str, ...]:
    """Devices of this host besides the CPU, best first, found without loading any driver."""
    nvidia = sorted(
        int(path.name.removeprefix("nvidia"))
        for path in Path("/dev").glob("nvidia[0-9]*")
        if path.name.removeprefix("nvidia").isdigit()
    )
    if nvidia:
        return tuple(f"cuda:{index}" for index in range(len(nvidia)))
    return ("mps",) if sys.platform == "darwin" and os.uname().machine == "arm64" else ()


def devices_of(specs: Sequence[ModelSpec], seen: Sequence[str]) -> list[str]:
    """The device of each spec. Raises BadInput where two would share one, or the models differ."""
    if not specs:
        raise errors.BadInput("no model to load: give at least one spec")
    plain = {replace(spec, device="") for spec in specs}
    if len(plain) > 1:
        raise errors.BadInput("the specs differ in more than their device, so answers would: give one model")
    devices = [device_of(spec, seen) for spec in specs]
    for device in set(devices) - {""}:
        if (count := devices.count(device)) > 1:
            raise errors.BadInput(
                f"{count} processes are asked for on device {device}, which would only share its time: "
                "give one spec for each device, and raise slots instead"
            )
    return devices


class PortableMultiInstanceManager:
    """The model port over worker processes. Thread-safe; a context manager that shuts down."""

    def __init__(
        self,
        *,
        budgets: Budgets | None = None,
        observe: Callable[[Event], None] = lambda event: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`observe` is called in the supervisor's thread and must be quick; `environment` is the
        base from which the child's is made (the process's own if None)."""
        self._budgets = budgets or Budgets()
        self._observe = observe
        self._base = environment
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._selector = selectors.DefaultSelector()
        self._commands: deque[Callable[[float], list[Instruction]]] = deque()
        self._asked: dict[int, _Asked] = {}
        self._processes: dict[int, _Process] = {}
        self._rereads = Rereads()
        self._number = 0
        self._described: pb.DescribeResponse | None = None
        self._roster: Roster | None = None
        self._thread: threading.Thread | None = None
        self._specs: list[ModelSpec] = []
        self._devices: list[str] = []
        self._home = ""
        self._ending = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(drain=kind is None)

    def initialize(self, specs: Sequence[ModelSpec]) -> pb.DescribeResponse:
        """Start a worker for each spec and wait until each has decoded a token.

        Raises what the load raises: NotFound, Damaged, Unsupported; BadInput for specs that clash.
        """
        for spec, device in zip(specs, devices_of(specs, accelerators()), strict=True):
            probe.check(spec, device, os.environ if self._base is None else self._base)
        with self._lock:
            if self._thread is not None or self._ending:
                raise errors.BadInput("this manager was initialized before: make a new one")
            self._devices = devices_of(specs, accelerators())
            self._specs = [
                replace(spec, path=spec.path.absolute(), device=torch_device(device))
                for spec, device in zip(specs, self._devices, strict=True)
            ]
            self._roster = Roster(workers=len(specs), budgets=self._budgets, jobs=jobs_of(specs[0]))
            self._home = tempfile.mkdtemp(prefix="hermes-model-home-")
            self._wake_out, self._wake_in = socket.socketpair()
            self._wake_out.setblocking(False)
            self._wake_in.setblocking(False)
            self._selector.register(self._wake_out, selectors.EVENT_READ, None)
            self._thread = threading.Thread(target=self._supervise, name="model-supervisor", daemon=True)
            self._thread.start()
            roster = self._roster
            self._changed.wait_for(lambda: roster.is_ready or roster.lost is not None)
            lost = roster.lost
        if lost is not None:
            self.shutdown(drain=False)
            raise lost
        return self.describe()

    def describe(self) -> pb.DescribeResponse:
        """What was really loaded, and how often a worker was restarted since."""
        with self._lock:
            if self._described is None or self._roster is None:
                raise errors.PeerLost("the model is still loading: try again in a moment")
            described = pb.DescribeResponse()
            described.CopyFrom(self._described)
            described.restarts = self._roster.restarts
            return described

    def generate(
        self, request: pb.GenerateRequest, timeout_seconds: float | None = None
    ) -> pb.GenerateResponse:
        """As the port's."""
        response = self.submit(request).result(timeout_seconds)
        assert isinstance(response, pb.GenerateResponse)
        return response

    def score(self, request: pb.ScoreRequest, timeout_seconds: float | None = None) -> pb.ScoreResponse:
        """As the port's."""
        response = self.submit(request).result(timeout_seconds)
        assert isinstance(response, pb.ScoreResponse)
        return response

    def count_tokens(
        self, request: pb.CountTokensRequest, timeout_seconds: float | None = None
    ) -> pb.CountTokensResponse:
        """As the port's."""
        response = self.submit(request).result(timeout_seconds)
        assert isinstance(response, pb.CountTokensResponse)
        return response

    def submit(self, request: Request, told: Callable[[Token], None] = lambda token: None) -> Ticket:
        """Queue a request. Raises Exhausted (too many wait), PeerLost (not up, or shutting down).

        `told` is given each token of each completion once, in order, whatever dies meanwhile; it is called
        in the supervisor's thread and must be quick. Beams, and models that answer at once, tell none.
        """
        kind = _kind(request)
        trace = "" if isinstance(request, pb.CountTokensRequest) else request.trace
        future: Future[Response] = Future()
        with self._lock:
            if self._roster is None or self._ending:
                state = "shutting down" if self._ending else "not initialized"
                raise errors.PeerLost(f"the model is {state}")
            self._number += 1
            job = Job(
                number=self._number, kind=kind, payload=request.SerializeToString(), prefix=_blocks(request)
            )
            self._asked[job.number] = _Asked(kind=kind, trace=trace, future=future, told=told)
            try:
                instructions = self._roster.submit(job, time.monotonic())
            except errors.HermesError:
                del self._asked[job.number]
                raise
            self._later(lambda now: instructions)
        return Ticket(self, job.number, future)

    def cancel(self, ticket: Ticket) -> None:
        """As the ticket's."""
        with self._lock:
            known = self._asked.pop(ticket.number, None)
            if known is None:
                return
            roster = self._roster
            assert roster is not None
            self._later(lambda now: roster.cancel(ticket.number, now))
        known.future.cancel()

    def shutdown(self, drain: bool = True) -> None:
        """Take no more requests; let those taken end (`drain`) or refuse them; end the workers."""
        with self._lock:
            self._ending = True
            thread, roster = self._thread, self._roster
            if thread is None or roster is None:
                return
            if drain:
                self._changed.wait_for(lambda: roster.is_quiet or roster.lost is not None)
            error = errors.PeerLost("the model was shut down")
            self._later(lambda now: roster.abandon(error))
        thread.join()
        with self._lock:
            self._thread = None
            for asked in self._asked.values():
                _fail(asked.future, error)
            self._asked.clear()

    # In the supervisor's thread, but for `_later`.

    def _later(self, command: Callable[[float], list[Instruction]]) -> None:
        self._commands.append(command)
        with contextlib.suppress(BlockingIOError, OSError):  # full: it wakes anyway; closed: it has ended
            self._wake_in.send(b"\0")

    def _supervise(self) -> None:
        roster = self._roster
        assert roster is not None
        try:
            while not (self._ending and roster.lost is not None and not self._commands):
                with self._lock:
                    now = time.monotonic()
                    while self._commands:
                        self._carry_out(self._commands.popleft()(now))
                    self._carry_out(roster.tick(now))
                    deadline = roster.deadline()
                    self._changed.notify_all()
                    if self._ending and roster.lost is not None:
                        break
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                for key, mask in self._selector.select(wait):
                    with self._lock:
                        self._ready(key, mask)
        finally:
            self._end()

    def _ready(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is None:
            with contextlib.suppress(BlockingIOError):
                while self._wake_out.recv(4096):
                    pass
            return
        index: int
        process: _Process
        index, process = key.data
        if self._processes.get(index) is not process:
            return  # buried in this round; its descriptors may be its successor's by now
        if key.fd == process.sentinel:
            self._bury(index)
            return
        if mask & selectors.EVENT_WRITE:
            self._flush(index)
        if mask & selectors.EVENT_READ:
            self._receive(index, process)

    def _receive(self, index: int, process: _Process) -> None:
        try:
            received = process.connection.recv(_READ_BYTES)
            for frame in process.decoder.feed(received):
                self._take(index, frame)
        except BlockingIOError:
            return
        except (OSError, errors.Malformed):
            received = b""
        if not received and self._processes.get(index) is process:
            self._bury(index)

    def _take(self, index: int, frame: Frame) -> None:
        roster, now = self._roster, time.monotonic()
        assert roster is not None
        match frame.kind:
            case Kind.LOADED:
                self._described = self._described or pb.DescribeResponse.FromString(frame.payload)
                self._tell("loaded", index)
                self._carry_out(roster.loaded(index, now))
            case Kind.FAILED:
                error = error_of(frame.payload)
                self._tell("failed", index, detail=str(error))
                self._carry_out(roster.load_failed(index, error, now))
            case Kind.BEAT:
                self._tell("beat", index, frame.number)
                self._carry_out(roster.beat(index, now, memory_of(frame.payload)))
            case Kind.TOKENS:
                if self._accept(frame):
                    roster.decoded(index, frame.number)
                self._tell("decoded", index, frame.number)
                self._carry_out(roster.beat(index, now))
            case Kind.ANSWER | Kind.REFUSED:
                self._settle(frame)
                self._tell("answered", index, frame.number)
                self._carry_out(roster.answered(index, frame.number, now))
            case _:
                raise errors.Malformed(f"a worker does not send frames of kind {frame.kind.name}")

    def _accept(self, frame: Frame) -> bool:
        """Keep and tell tokens that were decoded. False: nobody waits for them."""
        known = self._asked.get(frame.number)
        if known is None:
            return False
        for token in tokens_of(frame.number, frame.payload):
            known.accepted.setdefault(token.completion, []).append(token)
            known.told(token)
        return True

    def _settle(self, frame: Frame) -> None:
        known = self._asked.pop(frame.number, None)
        if known is None:
            return  # cancelled meanwhile
        if frame.kind is Kind.REFUSED:
            _fail(known.future, error_of(frame.payload))
            return
        prompt, message = answer_of(frame.payload)
        response = _response(known.kind, message)
        if not isinstance(response, pb.CountTokensResponse):
            self._rereads.settle(known.trace, prompt, response.usage)
        if known.future.set_running_or_notify_cancel():
            known.future.set_result(response)

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Spawn(worker=index):
                    self._spawn(index)
                case Send(worker=index, job=job):
                    self._tell("sent", index, job.number)
                    known = self._asked.get(job.number)
                    if known is not None:
                        self._write(index, known.frame(job))
                    else:  # cancelled before it was sent, which the roster is told next
                        self._write(index, Frame(kind=job.kind, number=job.number, payload=job.payload))
                case Cancel(worker=index, number=number):
                    self._write(index, Frame(kind=Kind.CANCEL, number=number))
                case Kill(worker=index, why=why):
                    self._tell("killed", index, detail=why)
                    if index in self._processes:
                        self._processes[index].popen.kill()
                case Retire(worker=index):
                    self._tell("retired", index)
                    self._write(index, Frame(kind=Kind.STOP))
                case Refuse(number=number, error=error):
                    known = self._asked.pop(number, None)
                    if known is not None:
                        _fail(known.future, error)

    def _spawn(self, index: int) -> None:
        assert self._roster is not None
        place = self._roster.place(index)
        spec = self._specs[place]
        ours, theirs = socket.socketpair()
        environment = child_environment(
            os.environ if self._base is None else self._base,
            device=self._devices[place],
            threads=spec.threads,
            home=self._home,
            search_path=sys.path,
        )
        with theirs:
            descriptor = theirs.fileno()
            popen = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "hermes_runtime.models.worker",
                    f"--descriptor={descriptor}",
                    f"--parent={os.getpid()}",
                ],
                pass_fds=[descriptor],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints must not mix with a command's result
            )
        ours.setblocking(False)
        sentinel = os.pidfd_open(popen.pid) if sys.platform == "linux" else None
        process = _Process(popen=popen, connection=ours, sentinel=sentinel)
        self._processes[index] = process
        self._selector.register(ours, selectors.EVENT_READ, (index, process))
        if sentinel is not None:
            self._selector.register(sentinel, selectors.EVENT_READ, (index, process))
        self._tell("started", index)
        self._write(index, Frame(kind=Kind.LOAD, payload=spec_json(spec)))

    def _write(self, index: int, frame: Frame) -> None:
        process = self._processes.get(index)
        if process is not None:
            process.outbox.append(memoryview(encode(frame)))
            self._flush(index)

    def _flush(self, index: int) -> None:
        process = self._processes[index]
        try:
            while process.outbox:
                sent = process.connection.send(process.outbox[0])
                process.outbox[0] = process.outbox[0][sent:]
                if not process.outbox[0]:
                    process.outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            process.outbox.clear()  # it is dead, which the selector reports in a moment
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.outbox else 0)
        self._selector.modify(process.connection, wanted, (index, process))

    def _bury(self, index: int) -> None:
        """Take in what a dead process had still sent, reap it, and let the roster know."""
        process = self._processes[index]
        with contextlib.suppress(OSError, errors.Malformed):
            while received := process.connection.recv(_READ_BYTES):
                for frame in process.decoder.feed(received):
                    self._take(index, frame)
        del self._processes[index]
        how = self._reap(process)
        roster = self._roster
        assert roster is not None
        self._observe(Event(what="died", worker=index, process=process.popen.pid, detail=how))
        self._carry_out(roster.died(index, how, time.monotonic()))

    def _reap(self, process: _Process) -> str:
        self._selector.unregister(process.connection)
        process.connection.close()
        if process.sentinel is not None:
            self._selector.unregister(process.sentinel)
            os.close(process.sentinel)
        try:
            code = process.popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            code = process.popen.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"ended by {signal.Signals(-code).name}"
        return f"ended with code {code}"

    def _end(self) -> None:
        with self._lock:
            for index in list(self._processes):
                self._write(index, Frame(kind=Kind.STOP))
            for process in self._processes.values():
                if process.outbox:
                    process.popen.kill()  # it does not read
                self._reap(process)
            self._processes.clear()
            self._selector.close()
            self._wake_in.close()
            self._wake_out.close()
            shutil.rmtree(self._home, ignore_errors=True)
            self._changed.notify_all()

    def _tell(self, what: str, index: int, number: int = 0, detail: str = "") -> None:
        process = self._processes.get(index)
        pid = process.popen.pid if process else 0
        self._observe(Event(what=what, worker=index, process=pid, number=number, detail=detail))


def jobs_of(spec: ModelSpec) -> int:
    """Requests that a worker is given at once: as many as it can decode, and as many whose turn is next."""
    return 1 if spec.backend is Backend.SCRIPTED else 2 * spec.slots


def _blocks(request: Request) -> tuple[bytes, ...]:
    if isinstance(request, pb.CountTokensRequest):
        return ()
    turns = [f"{message.role}\0{message.content}" for message in request.prompt.messages]
    return blocks(request.tenant, "\0".join(turns) or request.prompt.text)


def _kind(request: Request) -> Kind:
    match request:
        case pb.GenerateRequest():
            return Kind.GENERATE
        case pb.ScoreRequest():
            return Kind.SCORE
        case pb.CountTokensRequest():
            return Kind.COUNT


def _response(kind: Kind, message: bytes) -> Response:
    match kind:
        case Kind.GENERATE:
            return pb.GenerateResponse.FromString(message)
        case Kind.SCORE:
            return pb.ScoreResponse.FromString(message)
        case _:
            return pb.CountTokensResponse.FromString(message)


def _fail(future: Future[Response], error: errors.HermesError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
