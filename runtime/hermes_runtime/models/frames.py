"""How a worker and its supervisor talk: frames of length, kind, request number, payload.

Payloads are protobuf messages, JSON (the spec) or text; nothing is unpickled. No I/O here.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from hermes_runtime import errors

_HEADER = struct.Struct("!IBQ")
_COUNT = struct.Struct("!I")
PAYLOAD_BYTES_MAX = 64 * 1024 * 1024


class Kind(IntEnum):
    """What a frame is. Below 16: to the worker; from 16: from the worker."""

    LOAD = 1
    """The spec, as JSON; the first frame."""
    GENERATE = 2
    SCORE = 3
    COUNT = 4
    CANCEL = 5
    """Stop working at the request with this number."""
    STOP = 6
    """End, now."""
    LOADED = 16
    """A DescribeResponse: the model is loaded and has decoded a token."""
    FAILED = 17
    """The model cannot be loaded; payload as REFUSED."""
    BEAT = 18
    """A step was done."""
    ANSWER = 19
    """Token numbers of the prompt, then the response."""
    REFUSED = 20
    """Class of an error of ours, a zero byte, its message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame."""

    kind: Kind
    number: int = 0
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """The bytes of a frame."""
    return _HEADER.pack(len(frame.payload), frame.kind, frame.number) + frame.payload


class Decoder:
    """Bytes in, frames out, however the bytes were cut."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Frames that are whole now. Raises Malformed: what follows cannot be read either."""
        self._rest += received
        while len(self._rest) >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(self._rest)
            if length > PAYLOAD_BYTES_MAX:
                raise errors.Malformed(f"a frame of {length} bytes is over {PAYLOAD_BYTES_MAX}")
            if len(self._rest) < _HEADER.size + length:
                return
            payload = bytes(self._rest[_HEADER.size : _HEADER.size + length])
            del self._rest[: _HEADER.size + length]
            try:
                known = Kind(kind)
            except ValueError:
                raise errors.Malformed(f"no frame is of kind {kind}") from None
            yield Frame(kind=known, number=number, payload=payload)


def answer_payload(prompt: array[int], message: bytes) -> bytes:
    """Payload of ANSWER."""
    return _COUNT.pack(len(prompt)) + prompt.tobytes() + message


def answer_of(payload: bytes) -> tuple[array[int], bytes]:
    """Prompt's token numbers and the response's bytes of an ANSWER."""
    (count,) = _COUNT.unpack_from(payload)
    prompt = array("I")
    end = _COUNT.size + count * prompt.itemsize
    prompt.frombytes(payload[_COUNT.size : end])
    return prompt, payload[end:]


def error_payload(error: errors.HermesError) -> bytes:
    """Payload of FAILED and REFUSED."""
    return f"{type(error).__name__}\0{error}".encode()


def error_of(payload: bytes) -> errors.HermesError:
    """The error that a payload of FAILED or REFUSED stands for."""
    name, _, message = payload.decode().partition("\0")
    known = getattr(errors, name, None)
    if isinstance(known, type) and issubclass(known, errors.HermesError):
        return known(message)
    return errors.HermesError(f"{name}: {message}")
