"""What the server and its child processes say to each other: frames of JSON, each behind its length."""

from __future__ import annotations

import msgspec

from engine.calls import Beat, Broke, Call, Done, LogLine, Progress


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame to a child: where things are."""

    roots: tuple[str, ...]
    artifacts: str


class Invoke(msgspec.Struct, frozen=True, tag="invoke"):
    """Make this attempt with the handler ``module:name``; ``memory_mb`` bounds the address space it may add."""

    handler: str
    call: Call
    memory_mb: int | None = None


class CantSay(msgspec.Struct, frozen=True, tag="cant_say"):
    """The child could not tell its outcome."""

    message: str


ToChild = Hello | Invoke
FromChild = LogLine | Progress | Beat | Done | Broke | CantSay

# JSON rather than msgpack, which knows no integers over 64 bits
_encoder = msgspec.json.Encoder()
to_child = msgspec.json.Decoder(ToChild)
from_child = msgspec.json.Decoder(FromChild)


def frame(message: ToChild | FromChild) -> bytes:
    """The message as it goes over the pipe."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body
