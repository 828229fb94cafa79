"""How a worker and its supervisor talk: frames of length, kind, request number, payload.

Payloads are protobuf messages, JSON (the spec) or text; nothing is unpickled. No I/O here.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from hermes_runtime import errors
from hermes_runtime.models.stepping import Accepted, Token

_HEADER = struct.Struct("!IBQ")
_COUNT = struct.Struct("!I")
_TOKEN = struct.Struct("!IId")
_MEMORY = struct.Struct("!Q")
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
    RESUME = 7
    """As GENERATE, after what was accepted of the request's completions."""
    LOADED = 16
    """A DescribeResponse: the model is loaded and has decoded a token."""
    FAILED = 17
    """The model cannot be loaded; payload as REFUSED."""
    BEAT = 18
    """A step was done. Payload: bytes of memory that the process takes, or nothing."""
    ANSWER = 19
    """Token numbers of the prompt, then the response."""
    REFUSED = 20
    """Class of an error of ours, a zero byte, its message."""
    TOKENS = 21
    """Tokens that a step decoded of a request's completions."""


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


def tokens_payload(tokens: Iterable[Token]) -> bytes:
    """Payload of TOKENS."""
    return b"".join(_TOKEN.pack(each.completion, each.token, each.logprob) for each in tokens)


def tokens_of(number: int, payload: bytes) -> list[Token]:
    """The tokens in a TOKENS of request `number`, in the order in which they were decoded."""
    return [
        Token(number=number, completion=completion, token=token, logprob=logprob)
        for completion, token, logprob in _TOKEN.iter_unpack(payload)
    ]


def resume_payload(accepted: Mapping[int, Accepted], request: bytes) -> bytes:
    """Payload of RESUME."""
    parts = [_COUNT.pack(len(accepted))]
    for completion, each in accepted.items():
        parts += [_TOKEN.pack(completion, len(each.tokens), each.logprob), array("I", each.tokens).tobytes()]
    return b"".join([*parts, request])


def resume_of(payload: bytes) -> tuple[dict[int, Accepted], bytes]:
    """What was accepted, and the request's bytes, of a RESUME."""
    (count,), at = _COUNT.unpack_from(payload), _COUNT.size
    accepted: dict[int, Accepted] = {}
    for _ in range(count):
        completion, length, logprob = _TOKEN.unpack_from(payload, at)
        at += _TOKEN.size
        tokens = array("I")
        tokens.frombytes(payload[at : at + length * tokens.itemsize])
        at += length * tokens.itemsize
        accepted[completion] = Accepted(tokens=tuple(tokens), logprob=logprob)
    return accepted, payload[at:]


def memory_payload(memory_bytes: int) -> bytes:
    """Payload of BEAT."""
    return _MEMORY.pack(memory_bytes)


def memory_of(payload: bytes) -> int:
    """Bytes of memory in a BEAT; 0 if it does not tell."""
    return int(_MEMORY.unpack(payload)[0]) if payload else 0


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
