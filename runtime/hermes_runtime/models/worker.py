"""One process that holds one model: `python -m hermes_runtime.models.worker`, started by the supervisor.

The main thread loads, and moves the model on step by step while it has work, taking in between what a
second one has read: requests, and which are cancelled. Decoded tokens are sent as they come; a sign of
life for each pass, at most one in BEAT_SECONDS. The process ends with its supervisor: at the end of its
socket, and on Linux by the parent's death signal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.counted import CountedModel
from hermes_runtime.models.environment import SOCKET_AUDIT
from hermes_runtime.models.frames import (
    Decoder,
    Frame,
    Kind,
    answer_payload,
    encode,
    error_payload,
    memory_payload,
    resume_of,
    tokens_payload,
)
from hermes_runtime.models.stepping import Accepted, OneAtATime, Request, SteppingModel, Token
from hermes_runtime.supervise.parent import die_with_parent

BEAT_SECONDS = 0.05
_READ_BYTES = 256 * 1024


class Cancelled(Exception):
    """Nobody waits for this request any more; raised out of a step."""


def spec_json(spec: ModelSpec) -> bytes:
    """`spec` as the payload of LOAD."""
    return json.dumps(
        {
            "backend": spec.backend.value,
            "path": str(spec.path),
            "device": spec.device,
            "dtype": spec.dtype,
            "quantization": spec.quantization,
            "context_tokens": spec.context_tokens,
            "slots": spec.slots,
            "prefix_cache_bytes": spec.prefix_cache_bytes,
            "threads": spec.threads,
        }
    ).encode()


def spec_of(payload: bytes) -> ModelSpec:
    """The spec in the payload of LOAD."""
    fields = json.loads(payload)
    return ModelSpec(**fields | {"backend": Backend(fields["backend"]), "path": Path(fields["path"])})


def model_of(spec: ModelSpec, beat: Callable[[], None]) -> CountedModel:
    """The backend of `spec`, not loaded. Imports what it needs; Unsupported where that is not there."""
    match spec.backend:
        case Backend.SCRIPTED:
            from hermes_runtime.models.scripted import ScriptedModel

            return ScriptedModel(spec, beat)
        case Backend.TRANSFORMERS:
            try:
                from hermes_runtime.models.transformers_model import TransformersModel
            except ModuleNotFoundError as error:
                raise errors.Unsupported(
                    f"the backend transformers needs packages that are not installed ({error.name}): on a "
                    "cluster use the whole runtime image; elsewhere install hermes-operator[model]"
                ) from error
            return TransformersModel(spec, beat)


def stepping(model: CountedModel) -> SteppingModel:
    """The same model, moved on step by step."""
    return model if isinstance(model, SteppingModel) else OneAtATime(model)


class Worker:
    """Frames from `connection` in, answers out, until its end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._working: dict[int, None] = {}
        self._last_beat = 0.0

    def run(self) -> None:
        """Load, then answer. Returns when the model cannot be loaded."""
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        first = self._inbox.get()
        assert first.kind is Kind.LOAD, "the first frame carries the spec"
        try:
            self._model = stepping(model_of(spec_of(first.payload), self._pass))
            described = self._model.load()
        except errors.HermesError as error:
            self._send(Frame(kind=Kind.FAILED, payload=error_payload(error)))
            return
        self._send(Frame(kind=Kind.LOADED, payload=described.SerializeToString()))
        while True:
            self._take_in()
            self._move_on()

    def _take_in(self) -> None:
        """Take all frames that are there; wait for one if there is nothing else to do."""
        while not self._inbox.empty() or (self._model.is_idle and not self._cancelled):
            frame = self._inbox.get()
            if frame.kind is Kind.CANCEL:
                continue  # it was only to wake this thread
            self._working[frame.number] = None
            try:
                request, accepted = _request(frame)
                self._model.take(frame.number, request, accepted)
            except Exception as error:
                self._refuse(frame.number, error)
        for number in list(self._cancelled):
            self._cancelled.discard(number)
            if number in self._working:
                self._model.cancel(number)
                self._refuse(number, Cancelled())

    def _move_on(self) -> None:
        stepped = self._model.step()
        by_request: dict[int, list[Token]] = {}
        for token in stepped.tokens:
            by_request.setdefault(token.number, []).append(token)
        frames = [
            Frame(kind=Kind.TOKENS, number=number, payload=tokens_payload(tokens))
            for number, tokens in by_request.items()
        ]
        for done in stepped.done:
            if done.error is not None or done.response is None:
                self._refuse(done.number, done.error or errors.HermesError("no answer"))
                continue
            del self._working[done.number]
            payload = answer_payload(done.prompt, done.response.SerializeToString())
            frames.append(Frame(kind=Kind.ANSWER, number=done.number, payload=payload))
        if frames:
            self._send(*frames)

    def _refuse(self, number: int, error: Exception) -> None:
        match error:
            case Cancelled():
                told = errors.HermesError("cancelled by the caller")
            case errors.HermesError():
                told = error
            case _:  # the model lives on: what failed is the request
                traceback.print_exception(error)
                told = errors.HermesError(
                    f"the model failed at this request: {type(error).__name__}: {error}"
                )
        self._working.pop(number, None)
        self._cancelled.discard(number)
        self._send(Frame(kind=Kind.REFUSED, number=number, payload=error_payload(told)))

    def _pass(self) -> None:
        """Before every forward pass: a sign of life, and the way out of a request that is worked at alone."""
        if self._cancelled and self._model.current in self._cancelled:
            raise Cancelled
        now = time.monotonic()
        if now - self._last_beat >= BEAT_SECONDS:
            self._last_beat = now
            number = next(iter(self._working), 0)
            self._send(Frame(kind=Kind.BEAT, number=number, payload=memory_payload(_memory_bytes())))

    def _send(self, *frames: Frame) -> None:
        try:
            self._connection.sendall(b"".join(encode(frame) for frame in frames))
        except OSError:
            os._exit(0)  # the supervisor is gone

    def _read(self) -> None:
        decoder = Decoder()
        with contextlib.suppress(OSError, errors.Malformed):
            while received := self._connection.recv(_READ_BYTES):
                for frame in decoder.feed(received):
                    if frame.kind is Kind.STOP:
                        os._exit(0)
                    if frame.kind is Kind.CANCEL:
                        self._cancelled.add(frame.number)
                    self._inbox.put(frame)
        os._exit(0)


def _request(frame: Frame) -> tuple[Request, dict[int, Accepted]]:
    try:
        match frame.kind:
            case Kind.GENERATE:
                return pb.GenerateRequest.FromString(frame.payload), {}
            case Kind.RESUME:
                accepted, payload = resume_of(frame.payload)
                return pb.GenerateRequest.FromString(payload), accepted
            case Kind.SCORE:
                return pb.ScoreRequest.FromString(frame.payload), {}
            case Kind.COUNT:
                return pb.CountTokensRequest.FromString(frame.payload), {}
            case _:
                raise errors.Malformed(f"a worker does not take frames of kind {frame.kind.name}")
    except DecodeError as error:
        raise errors.Malformed(f"the request cannot be parsed: {error}") from error


def _memory_bytes() -> int:
    """Memory of this process that is nobody else's too; 0 where the kernel does not tell."""
    try:
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def count_socket_events(file: Path) -> None:
    """From here on count this process's socket events, but for Unix sockets, in `file`.

    Evidence, not a wall: code that does not go through Python's audit is not seen. Cannot be undone.
    """
    counts: dict[str, int] = {"total": 0}
    file.write_text(json.dumps(counts))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not event.startswith("socket."):
            return
        if any(isinstance(each, socket.socket) and each.family == socket.AF_UNIX for each in arguments):
            return
        if event == "socket.__new__" and arguments[1] == socket.AF_UNIX:
            return
        counts[event] = counts.get(event, 0) + 1
        counts["total"] += 1
        file.write_text(json.dumps(counts, sort_keys=True))

    sys.addaudithook(hook)


def main() -> None:
    """Serve the socket that was inherited."""
    parser = argparse.ArgumentParser(description="Holds one model; started by hermes, not by hand.")
    parser.add_argument("--descriptor", type=int, required=True, help="socket to the supervisor")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    given = parser.parse_args()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != given.parent:  # it died before the kernel was asked
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which drains
    connection = socket.socket(fileno=given.descriptor)
    if path := os.environ.get(SOCKET_AUDIT):
        count_socket_events(Path(f"{path}.{os.getpid()}"))
    Worker(connection).run()


if __name__ == "__main__":
    main()
