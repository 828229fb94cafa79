"""One process that holds one model: `python -m hermes_runtime.models.worker`, started by the supervisor.

The main thread loads and computes; a second one reads frames, so that a request can be cancelled while
it is computed. A frame is sent for each step, at most one in BEAT_SECONDS. The process ends with its
supervisor: at the end of its socket, and on Linux by the parent's death signal.
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
from array import array
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.counted import CountedModel
from hermes_runtime.models.environment import SOCKET_AUDIT
from hermes_runtime.models.frames import Decoder, Frame, Kind, answer_payload, encode, error_payload
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


class Worker:
    """Frames from `connection` in, answers out, until its end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._current = 0
        self._last_beat = 0.0

    def run(self) -> None:
        """Load, then answer. Returns when the model cannot be loaded."""
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        first = self._inbox.get()
        assert first.kind is Kind.LOAD, "the first frame carries the spec"
        try:
            model = model_of(spec_of(first.payload), self._step)
            described = model.load()
        except errors.HermesError as error:
            self._send(Frame(kind=Kind.FAILED, payload=error_payload(error)))
            return
        self._send(Frame(kind=Kind.LOADED, payload=described.SerializeToString()))
        while True:
            self._answer(model, self._inbox.get())

    def _answer(self, model: CountedModel, frame: Frame) -> None:
        self._current = frame.number
        kind = Kind.ANSWER
        try:
            payload = _work(model, frame)
        except Cancelled:
            kind, payload = Kind.REFUSED, error_payload(errors.HermesError("cancelled by the caller"))
        except errors.HermesError as error:
            kind, payload = Kind.REFUSED, error_payload(error)
        except Exception as error:  # the model lives on: what failed is the request
            traceback.print_exc()
            told = errors.HermesError(f"the model failed at this request: {type(error).__name__}: {error}")
            kind, payload = Kind.REFUSED, error_payload(told)
        self._cancelled.discard(frame.number)
        self._send(Frame(kind=kind, number=frame.number, payload=payload))

    def _step(self) -> None:
        if self._current in self._cancelled:
            raise Cancelled
        now = time.monotonic()
        if now - self._last_beat >= BEAT_SECONDS:
            self._last_beat = now
            self._send(Frame(kind=Kind.BEAT, number=self._current))

    def _send(self, frame: Frame) -> None:
        try:
            self._connection.sendall(encode(frame))
        except OSError:
            os._exit(0)  # the supervisor is gone

    def _read(self) -> None:
        decoder = Decoder()
        with contextlib.suppress(OSError, errors.Malformed):
            while received := self._connection.recv(_READ_BYTES):
                for frame in decoder.feed(received):
                    if frame.kind is Kind.STOP:
                        os._exit(0)
                    elif frame.kind is Kind.CANCEL:
                        self._cancelled.add(frame.number)
                    else:
                        self._inbox.put(frame)
        os._exit(0)


def _work(model: CountedModel, frame: Frame) -> bytes:
    try:
        match frame.kind:
            case Kind.GENERATE:
                completed, prompt = model.complete(pb.GenerateRequest.FromString(frame.payload))
                return answer_payload(prompt, completed.SerializeToString())
            case Kind.SCORE:
                rated, prompt = model.rate(pb.ScoreRequest.FromString(frame.payload))
                return answer_payload(prompt, rated.SerializeToString())
            case Kind.COUNT:
                counted = model.count_tokens(pb.CountTokensRequest.FromString(frame.payload))
                return answer_payload(array("I"), counted.SerializeToString())
            case _:
                raise errors.Malformed(f"a worker does not take frames of kind {frame.kind.name}")
    except DecodeError as error:
        raise errors.Malformed(f"the request cannot be parsed: {error}") from error


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
